"""The class between Dassl's trainer and the methods: a run from its folder to its result."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from dassl.engine import TrainerX
from dassl.utils import AverageMeter, MetricMeter, set_random_seed
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from . import record
from .bank import PLAIN, TEMPLATES
from .config import Key, Validator, check_cfg, node_of, values_read
from .data import build_data, checked_training, match_input, naming_workers, ordered_loader
from .errors import BlackBoxError, BudgetSpent
from .files import BEST, MODEL, RESUME, FolderLock, digest, missing, newest, save
from .oracle import Meter, Oracle, Prompt, Texts, build_oracle
from .oracle.bill import Plan, Price, batches_of, query_cost, total
from .rng import rng_state, seeded_generator, set_rng_state

# a terminal's signals, and what schedulers send some time before they kill
if sys.platform == "win32":
    raise ImportError("Windows is not served: use Linux, macOS, or its Subsystem for Linux.")
NAMES = "INT", "TERM", "HUP", "USR1", "USR2", "XCPU", "QUIT"
SIGNALS = [signal.Signals[f"SIG{name}"] for name in NAMES]
# seconds: a closed terminal and `timeout` send two signals, and a script passes its group's on
TOGETHER = 2.0


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within this context the signals that end a run are handled so."""
    former, main = {}, threading.current_thread() is threading.main_thread()
    for number in SIGNALS if main else ():  # other threads cannot set handlers
        # for `nohup`; and a shell ignores SIGINT for all that a script starts in the background
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            former[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before or signal.SIG_DFL)


class Trainer(TrainerX):
    """A trainer whose model answers queries, each of which is counted.

    Training ends with the budget or with the epochs, whichever comes first; a run that is stopped
    goes on where it was. A shape, `SearchTrainer` or `ProbeTrainer`, gives `build_model`, `prices`,
    `forward_backward` and `asked`, and sets `learner` and `parts`.
    """

    keys: Mapping[str, Key] = {}  # of the method, under TRAINER, by its name or `node` in capitals
    # nodes and keys that have an effect; with all of OPTIM, a learning rate follows its schedule
    reads: tuple[str, ...] = ("OPTIM.MAX_EPOCH", "ORACLE")
    host: Mapping[str, Validator] = {}  # what Dassl's own keys may hold with this trainer
    counted, unit = True, "queries"  # whether there is a bill; what the bar and curves count
    learns_by_steps = True  # the model changes before training ends
    reads_features = False  # the head reads features of images and class texts, not logits
    needs: tuple[str, ...]  # grants that the method cannot do without
    prices: Callable[[], list[Price]]  # of the steps of an epoch
    price: Callable[[int], Price] = staticmethod(partial(query_cost, 1))  # of a batch in evaluation
    asked: Callable[[torch.Tensor], Prompt]  # in evaluation, about pictures `[B, 3, H, W]`
    text = "", torch.empty(0)  # the last prompt's digest, and its texts' features `[C, E]`
    template = "{}."  # of a class's text
    model_name = MODEL
    stage = record.EVALUATION  # or "training", then its end
    evaluator: Any
    head: Any = None
    learner: torch.nn.Module  # what evaluation needs
    optim: Any = None
    sched: Any = None
    parts: dict[str, Any]  # what a run that goes on needs beside the learner, with a state each
    steps_done = batches_done = 0  # steps that trained what is in use; batches of this epoch
    signum, since = 0, 0.0  # the signal that came, and when
    epoch_rng: dict[str, Any] | None = None  # random states at this epoch's start; between epochs
    made_with: Mapping[str, str] = {}  # what must agree for a run to go on, once that is checked
    loaded_from: Mapping[str, Any] = {}  # what the checkpoint in evaluation tells of its training
    bar = tqdm(disable=True)
    check_cfg = staticmethod(check_cfg)
    parse_batch_train = TrainerX.parse_batch_test  # images and labels, without Dassl's domains
    # hooks: before the first step of a process, after the last one; the training images' transform
    prepare = finish = train_transform = TrainerX.before_epoch  # which does nothing

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.evaluator = self.calibrated = record.Calibrated(self.evaluator)

    def open_model(self) -> Oracle:
        return build_oracle(self.cfg, self.device, client=self.cfg.TRAINER.NAME)

    def build_data_loader(self) -> None:
        """Hold the folder, open the model, and load the data as it wants them."""
        cfg = self.cfg
        self.lock = FolderLock(cfg.OUTPUT_DIR) if cfg.OUTPUT_DIR else None
        self.process, self.time_meter, self.losses = os.getpid(), AverageMeter(), MetricMeter()
        budget = cfg.ORACLE.MAX_QUERIES, cfg.ORACLE.MAX_IMAGE_QUERIES
        bill = f"{cfg.OUTPUT_DIR}/queries.json" if self.lock and self.counted else None
        holds = self.lock.check if self.lock else None
        self.oracle = Meter(self.open_model(), *budget, bill, holds)
        self.description, self.pools = self.oracle.description, ThreadpoolController()
        self.cfg: Any = match_input(cfg, self.description)
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)  # whatever the model's construction drew
        dm, self.pictures, self.augmentation = build_data(self.cfg, self.train_transform())
        self.batches = self.train_loader_x = dm.train_loader_x  # what an epoch iterates over
        self.loader = partial(ordered_loader, self.cfg, self.pictures)
        self.dm, self.val_loader, self.test_loader = dm, dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname
        self.generator = seeded_generator(cfg.SEED)  # of what the method draws

    def name_classes(self, *needs: str) -> None:
        """Tell the oracle what it will be asked about, if it grants what the method needs."""
        behind = "contexts" in needs  # the words of a context, the class's name stands
        known = self.settings.get("TEMPLATE") or TEMPLATES.get(self.cfg.DATASET.NAME, PLAIN)
        self.needs, self.template = needs, "{}." if behind else known
        self.oracle.require(*needs)
        print(f'Template: "{self.template}"{" behind the context" if behind else ""}')
        self.oracle.set_classes(self.dm.dataset.classnames, self.template)

    @property
    def settings(self) -> Any:
        """The method's node of the configuration."""
        return self.cfg.TRAINER.get(node_of(type(self)), {})

    def one_thread(self, small: bool = True) -> AbstractContextManager:
        """For small matrices, where threads wait for each other; a user's OMP_NUM_THREADS stays."""
        many = not small or "OMP_NUM_THREADS" in os.environ
        return nullcontext() if many else self.pools.limit(limits=1)

    @cached_property
    def plan(self) -> Plan:
        texts = int(self.reads_features and not self.learns_by_steps)  # of the classes, once
        return Plan(self.prices(), self.max_epoch, self.oracle.limits, (texts, 0))

    def passes(self, done: int = 0) -> list[str]:
        """The splits that are still evaluated on after so many steps, each as often as it is."""
        plan, steps, every = self.plan, self.plan.steps, self.cfg.ORACLE.VAL_EVERY
        tested, epoch = not self.cfg.TEST.NO_TEST, len(plan.epoch)
        best = tested and self.cfg.TEST.FINAL_MODEL == "best_val"
        curve = plan.until(steps)[0] // every - plan.until(done)[0] // every if every else 0
        # one more where the budget ends an epoch
        chosen = steps // epoch - done // epoch + (steps < plan.epochs * epoch)
        if not self.learns_by_steps:  # once, when all is fitted
            curve, chosen = int(steps > 0 and every > 0), int(steps > 0)
        return ["val"] * (curve + best * chosen) + [self.cfg.TEST.SPLIT] * tested

    def evaluation(self, passes: Sequence[str]) -> Price:
        """Of evaluations on these splits, at most."""
        texts = len(passes if self.learns_by_steps else passes[:1]) * self.reads_features
        prices: list[Price] = [(texts, 0)]
        for split in passes:
            items = (split == "val" and self.dm.dataset.val) or self.dm.dataset.test
            prices += map(self.price, batches_of(len(items), self.cfg.DATALOADER.TEST.BATCH_SIZE))
        return total(prices)

    def describe_cost(self) -> str:
        """What the whole run would ask of the model, as a line; `--no-train` prints it."""
        steps, most = self.plan.steps, max(self.plan.epoch)[0]
        lists = [Texts.of(self.dm.dataset.classnames, self.template)]
        if further := getattr(self.head, "texts", ()):
            lists.append(Texts.of(further, self.head.template))
        prices = self.plan.until(steps), self.evaluation(self.passes())
        return f"{steps:,} steps of {most:,} queries: {self.oracle.describe(*prices, lists)}"

    def train(self) -> None:
        with handled(self.note), naming_workers(self.cfg.DATALOADER.NUM_WORKERS):
            try:
                super().train()
            except BudgetSpent as spent:
                if self.stage != "training":
                    raise
                tqdm.write(f"{spent} Ended in epoch {self.epoch + 1}, batch {self.batches_done}.")
                self.after_epoch()
                self.after_train()
            finally:
                self.bar.close()  # an error's sentence begins on a line of its own
                self.stage = record.EVALUATION

    def check_training(self) -> None:
        """Raise, once, where training has no folder or no query, or unfit pictures."""
        if self.made_with or not self.max_epoch:
            return
        self.lock = self.lock or FolderLock(self.output_dir)
        images = checked_training(self.cfg, self.dm.dataset, self.pictures)
        self.made_with = record.with_contents(record.counted(values_read(self.cfg)), images)
        if not (self.cfg.RESUME or newest(Path(self.output_dir, self.model_name))):
            self.oracle.afford(*self.plan.step(0))

    def before_train(self) -> None:
        self.check_training()
        super().before_train()
        Path(self.output_dir, record.NAME).unlink(missing_ok=True)  # the run goes on
        self.saved_at, self.stage = (self.steps_done, self.clock()), "training"
        done, run = self.plan.until(self.steps_done), self.plan.until(self.plan.steps)
        paid = self.oracle.counts["training"].values()  # some without a trace in the parameters
        self.oracle.set_lost(*(spent - cost for spent, cost in zip(paid, done, strict=True)))
        if lost := self.oracle.lost["queries"]:
            print(f"Lost: {lost:,} of {self.clock():,} training queries, after the last checkpoint")
        still = run[0] - done[0], run[1] - done[1]
        self.oracle.check_allowance(still, self.evaluation(self.passes(self.steps_done)))
        if self.counted:
            print(f"The whole run: {self.describe_cost()}")
        self.prepare()
        name, whole = type(self).__name__, run[0] if self.counted else self.plan.steps
        self.bar = tqdm(None, name, whole, initial=self.clock(), unit=f" {self.unit}")

    def run_epoch(self) -> None:
        self.augmentation.epoch = self.epoch
        self.num_batches = len(self.batches)
        skip, self.batches_done = self.batches_done, 0
        every = self.cfg.ORACLE.VAL_EVERY if self.counted and self.learns_by_steps else 0
        # a resumed epoch is replayed: the loader draws as it drew, finished batches are passed over
        if self.epoch_rng is not None:
            set_rng_state(self.epoch_rng)
        self.epoch_rng = rng_state()
        end = time.time()
        for self.batch_idx, batch in enumerate(self.batches):  # noqa: B020  an attribute
            if self.batch_idx >= skip:
                self.set_model_mode("train")
                self.oracle.afford(*self.plan.step(self.steps_done))  # a whole step, or none
                before, summary = self.clock(), self.forward_backward(batch)
                self.steps_done += 1
                self.time_meter.update(time.time() - end)
                self.report(summary)
                if every and self.clock() // every > before // every:
                    self.look_at_val()
            self.batches_done = self.batch_idx + 1
            if skip < self.batches_done < self.num_batches:
                self.save_if_due()
            end = time.time()
        self.update_lr()
        self.batches_done, self.epoch_rng = 0, None

    def report(self, summary: dict[str, float]) -> None:
        if not isfinite(summary["loss"]):
            cure = "check the model's weights" + ", or lower OPTIM.LR" * ("OPTIM" in self.reads)
            raise BlackBoxError(f"The loss of step {self.steps_done} is {summary['loss']}: {cure}.")
        self.losses.update(summary)
        self.bar.update(self.clock() - self.bar.n)
        if self.steps_done % self.cfg.TRAIN.PRINT_FREQ == 0:
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                f"batch [{self.batch_idx + 1}/{self.num_batches}] {self.unit} {self.clock():,} "
                f"time {self.time_meter.val:.3f} ({self.time_meter.avg:.3f}) {self.losses} "
                f"lr {self.get_current_lr() if self.optim else 0:.4e}"
            )
        for name, meter in self.losses.meters.items():
            self.write_scalar("train/" + name, meter.avg, self.clock())

    def look_at_val(self) -> None:
        """Write a line of `val_curve.csv`; it decides nothing."""
        counts, accuracy = self.oracle.counts["training"], self.test(split="val")
        with open(Path(self.output_dir, "val_curve.csv"), "a") as f:
            f.write(f"{counts['queries']},{counts['image_queries']},{accuracy}\n")

    def after_epoch(self) -> None:
        """Look at val and save where that is due; in the last one, finish the training first."""
        cfg, done = self.cfg, self.epoch + 1
        last = done == self.max_epoch or self.epoch_rng is not None  # where the budget ended it
        if last:
            self.finish()
        every, chosen = cfg.TRAIN.CHECKPOINT_FREQ, cfg.TEST.FINAL_MODEL == "best_val"
        if chosen and not cfg.TEST.NO_TEST and (last or self.learns_by_steps):
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result: float = result
                self.write_checkpoint(BEST, result)
        if last or (every > 0 and done % every == 0):
            self.save_model(self.max_epoch - 1 if last else self.epoch, self.output_dir)
        self.save_if_due()

    def after_train(self) -> None:
        self.bar.close()
        self.stage = record.END_OF_TRAINING
        left, cost = self.oracle.left() or 0, self.plan.step(self.steps_done)[0]
        if self.learns_by_steps and self.epoch_rng is None and 0 < cost <= left:
            unspent = f"{left:,} of {self.oracle.limits['queries']:,} queries left"
            print(f"OPTIM.MAX_EPOCH {self.max_epoch} ended training with {unspent}; raise it.")
        super().after_train()
        if self.counted:
            print(self.oracle.summary())

    def clock(self) -> int:
        """Training queries, or steps."""
        return self.oracle.counts["training"]["queries"] if self.counted else self.steps_done

    def note(self, signum: int, frame: Any) -> None:
        """Remember the first signal; a second one ends at once."""
        if os.getpid() != self.process:
            return  # a loader's worker, which a terminal interrupts too: its parent decides
        if not self.signum:
            self.signum, self.since = signum, time.monotonic()
            said = f"{signal.Signals(signum).name}: the step is finished and saved; once more ends"
            with suppress(OSError):  # a terminal that was closed
                os.write(2, f"\n{said} at once\n".encode())  # it may have come within a `print`
        elif time.monotonic() > self.since + TOGETHER:
            raise SystemExit(128 + signum)

    def leave(self, state: str) -> None:
        """End the run if a signal came; `state` says how things stand and how to go on."""
        if self.signum:
            print(f"Stopped by {signal.Signals(self.signum).name}: {state}")
            raise SystemExit(128 + self.signum)

    def save_if_due(self) -> None:
        """Save where enough has happened since the last time, and before a signal ends the run."""
        steps, asked = self.steps_done - self.saved_at[0], self.clock() - self.saved_at[1]
        tenth = max(1, self.plan.steps // 10)
        due = steps >= tenth or (self.counted and 0 < self.cfg.ORACLE.SAVE_EVERY <= asked)
        if steps > 0 and (self.signum or due):
            self.write_checkpoint(RESUME)
        self.leave(f"{self.clock():,} {self.unit} are saved. The same command goes on from here.")

    def write_checkpoint(self, name: str, val_result: float | None = None) -> Path:
        """Everything that evaluation and resumption need; tensors and plain values only."""
        if name != BEST:
            self.saved_at = self.steps_done, self.clock()
        state = {
            "state_dict": self.learner.state_dict(),
            "epoch": self.epoch + (self.epoch_rng is None),  # else it is not over
            **{name: part and part.state_dict() for name, part in self.parts.items()},
            "val_result": val_result,
            "blackbox": {
                "format": 2,  # 0.1.0 wrote no number and no digest
                "identity": record.identity(self),
                "settings": self.made_with,
                "classnames": list(self.dm.dataset.classnames),
                "labels": [item.label for item in self.dm.dataset.train_x],
                "batches_done": self.batches_done,
                "steps_done": self.steps_done,
                "rng": self.epoch_rng or rng_state(),
                "augmentation_seed": self.augmentation.seed,
                "best_result": float(self.best_result),
                "counts": self.oracle.counts if self.counted else None,
            },
        }
        return save(state, Path(self.output_dir, self.model_name), name)

    def save_model(self, epoch: int, directory: str, *_: Any, **__: Any) -> None:
        """The file is named after `epoch`; the true epoch and the counts are inside."""
        path = self.write_checkpoint(f"model.pth.tar-{epoch + 1}")
        print(f"Checkpoint saved to {path} ({self.clock():,} {self.unit})")

    def resume_model_if_exist(self, directory: str) -> int:
        """Returns the epoch to start at."""
        folder = Path(directory, self.model_name)
        # a run that was resumed from elsewhere goes on from its own folder once it has saved there
        path = newest(Path(self.output_dir, self.model_name)) or newest(folder)
        if path is None:
            if self.cfg.RESUME:
                raise missing(folder / "model.pth.tar", Path(directory))
            return 0
        state = record.load(path, self, self.made_with, resumed=True)
        extra = state["blackbox"]
        with self.one_thread():  # as in training: CMA-ES repeats what it computed
            for name, part in self.parts.items():
                if part is not None:
                    part.load_state_dict(state[name])
        if self.counted:
            self.oracle.at_least(extra["counts"])
            self.oracle.take_over(f"{directory}/queries.json")  # what was spent after it, too
        self.best_result, self.steps_done = extra["best_result"], extra["steps_done"]
        self.batches_done, self.epoch_rng = extra["batches_done"], extra["rng"]
        self.augmentation.seed = extra["augmentation_seed"]
        at = f"epoch {state['epoch']}, batch {self.batches_done}, {self.clock():,} {self.unit}"
        print(f"Resume from {path}: {at}")
        return state["epoch"]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a model for evaluation: that of `epoch`, with `best_val` the best, or the last."""
        # without anything to load, a folder that is named and not there is an error all the same
        if not self.max_epoch and (not directory or os.path.isdir(directory)):
            return
        folder = Path(directory, self.model_name)
        path = folder / (BEST if epoch is None else f"model.pth.tar-{epoch}")
        chosen = self.cfg.TEST.FINAL_MODEL == "best_val" and path.is_file()
        if epoch is None and not chosen:
            path = newest(folder) or folder / "model.pth.tar"
        if not path.is_file():
            raise missing(path, Path(directory))
        state = record.load(path, self, record.counted(values_read(self.cfg)), resumed=False)
        self.loaded_from = state["blackbox"]
        print(f"Load {path} (epoch {state['epoch']})")

    def test(self, split: str | None = None) -> float:
        """Dassl's evaluation, without a trace in the random sources; a result without `split`."""
        self.oracle.check_allowance((0, 0), self.evaluation([split or self.cfg.TEST.SPLIT]))
        random_sources, before = rng_state(), self.oracle.counts["evaluation"]
        workers = naming_workers(self.cfg.DATALOADER.NUM_WORKERS)
        with self.oracle.evaluation(), workers, handled(self.note):
            accuracy = super().test(split)
        set_rng_state(random_sources)
        if split is None and self.output_dir:
            record.write(self, before)
        return accuracy

    def parse_batch_test(self, batch: dict) -> Any:
        if self.stage != "training":  # what is watched between steps belongs to a step
            self.leave("the evaluation is not finished. The same command begins it again.")
        return super().parse_batch_test(batch)

    def model_inference(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]`."""
        images, prompt = self.oracle.upload(pixels), self.asked(pixels)
        if not self.reads_features:
            scores = self.oracle.query(images, prompt)[0]
            return scores if self.head is None else self.head(scores)
        key = digest(prompt.contexts)
        if self.text[0] != key:  # the texts of a prompt are asked for once while it is in use
            self.text = key, self.oracle.text_features(prompt)[0]
        return self.head(self.oracle.image_features(images), self.text[1])
