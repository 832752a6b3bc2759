"""The loop of every trainer here: epochs that can be replayed, checkpoints, signals, evaluation."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import isfinite
from pathlib import Path
from types import FrameType
from typing import Any

from dassl.engine import TrainerX
from dassl.utils import AverageMeter, MetricMeter, set_random_seed
from torch import nn
from tqdm import tqdm

from ..config import Key, check_cfg
from ..data import (
    OF_THE_MODEL,
    build_data,
    match_input,
    naming_workers,
    need_apart,
    need_val,
    training_images,
)
from ..errors import BlackBoxError
from ..files import BEST, MODEL, RESUME, FolderLock, missing, newest, save
from . import metrics
from .matching import identity, load, settings, with_contents
from .rng import rng_state, set_rng_state

PORTIONS = 10  # a run is saved after every tenth of its steps, or more often
# a terminal's signals, and what schedulers send some time before they kill
NAMES = "INT", "TERM", "HUP", "USR1", "USR2", "XCPU", "QUIT"
if sys.platform == "win32":
    raise ImportError("Windows is not served: use Linux, macOS, or its Subsystem for Linux.")
SIGNALS = [signal.Signals[f"SIG{name}"] for name in NAMES]
# seconds: a closed terminal and `timeout` send two signals, and a script passes its group's on
TOGETHER = 2.0


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context the signals that end a run are handled so."""
    former = {
        number: signal.signal(number, handler)
        for number in SIGNALS
        if threading.current_thread() is threading.main_thread()  # others cannot set handlers
        # for `nohup`; and a shell ignores SIGINT for all that a script starts in the background
        and (number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN)
    }
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


class ResumableTrainer(TrainerX):
    """A Dassl trainer whose runs hold their folder, go on where they stopped, and stop when asked.

    A subclass gives `open_model`, whose model is told by `description`, then `build_model`,
    `forward_backward` and `model_inference`, and sets `learner`, which evaluation needs.
    """

    keys: Mapping[str, Key] = {}  # of the method, under `TRAINER.<node>` (`config.node_of`)
    node: str  # where that is not the class's name in capitals
    reads: tuple[str, ...] = ("OPTIM.MAX_EPOCH", "ORACLE")  # nodes and keys that have an effect
    scheduled = False  # whether a learning rate follows OPTIM's schedule; all of it is read then
    optimizers: tuple[str, ...] = ()  # what OPTIM.NAME may be; empty: any
    unit = "steps"  # of `clock`, over which the bar and the curves are drawn
    model_name = MODEL
    stage = metrics.EVALUATION  # or "training", then its end
    cfg: Any
    best_result: float
    max_epoch: int
    evaluator: Any
    head: nn.Module | None = None
    learner: nn.Module
    optim: Any = None
    sched: Any = None
    steps_done = 0  # that trained what is in use; queries of lost steps are on the bill alone
    batches_done = 0  # of this epoch
    signum, since = 0, 0.0  # the signal that came, and when
    epoch_rng: dict[str, Any] | None = None  # random states at this epoch's start; between epochs
    loaded_from: Mapping[str, Any] = {}  # what the checkpoint in evaluation tells of its training
    bar = tqdm(disable=True)
    check_cfg = staticmethod(check_cfg)
    train_to_the_end = TrainerX.train
    parse_batch_train = TrainerX.parse_batch_test  # images and labels, without Dassl's domains

    def nothing(self, *_: Any, **__: Any) -> Any:
        """What those of the following hooks do that a subclass leaves out."""

    train_transform = nothing  # of the training images; without it, that of INPUT.TRANSFORMS
    counts = nothing  # what a checkpoint keeps of the bill
    take_over = nothing  # raise the bill to such counts, and that of the run in a directory
    before_step = nothing  # raise where no further step can be paid for
    after_step = nothing  # look at what the step has led to
    evaluating: Callable[[], AbstractContextManager] = nullcontext  # what is asked for evaluation

    def build_data_loader(self) -> None:
        """Hold the folder, open the model, and load the data as it wants them."""
        cfg = self.cfg
        self.lock = FolderLock(cfg.OUTPUT_DIR) if cfg.OUTPUT_DIR else None
        self.process, self.results = os.getpid(), dict[str, float]()
        self.time_meter, self.losses = AverageMeter(), MetricMeter()
        self.open_model()
        self.cfg = match_input(cfg, self.description)
        print("\n".join(f"INPUT.{key}: {self.cfg.INPUT[key]}" for key in OF_THE_MODEL))
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)  # whatever the model's construction drew
        dm, self.pictures, self.augmentation = build_data(self.cfg, self.train_transform())
        self.dm, self.train_loader_x = dm, dm.train_loader_x
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname

    def steps_total(self) -> int:
        """Steps that the whole run has, if none is lost."""
        return self.max_epoch * len(self.train_loader_x)

    def clock(self) -> int:
        return self.steps_done

    def parts(self) -> dict[str, Any]:
        """What a run that goes on needs beside the learner: parts that have a state, by name."""
        return {"optimizer": self.optim, "scheduler": self.sched}

    def check_training(self) -> None:
        """Raise where training would look at test images, or at pictures that cannot be decoded."""
        cfg, dataset, name = self.cfg, self.dm.dataset, self.cfg.DATASET.NAME
        if cfg.TEST.FINAL_MODEL == "best_val" or cfg.ORACLE.VAL_EVERY:
            need_val(dataset, name)
        need_apart(dataset, name)
        if cfg.DATALOADER.NUM_WORKERS and multiprocessing.get_start_method() != "fork":
            self.pictures.room = 0  # every worker would keep its own, for an epoch
        self.pictures.load(f"{name}, train")

    def train(self) -> None:
        with handled(self.note), naming_workers(self.cfg.DATALOADER.NUM_WORKERS):
            try:
                self.train_to_the_end()
            finally:
                self.bar.close()  # an error's sentence begins on a line of its own
                self.stage = metrics.EVALUATION

    def note(self, signum: int, frame: FrameType | None) -> None:
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
            number, self.signum = self.signum, 0
            print(f"Stopped by {signal.Signals(number).name}: {state}")
            raise SystemExit(128 + number)

    def before_train(self) -> None:
        if not self.output_dir:
            raise BlackBoxError("OUTPUT_DIR is empty: name the run's folder with --output-dir.")
        self.check_training()
        # what must agree for a run to go on, with the pictures as they are now
        images = training_images(self.dm.dataset.train_x)
        self.run_settings = with_contents(settings(self.cfg), images)
        threading.excepthook = quiet_on_a_full_disk
        super().before_train()
        Path(self.output_dir, metrics.NAME).unlink(missing_ok=True)  # the run goes on
        self.batches = self.train_loader_x  # what an epoch iterates over
        self.saved_at = self.steps_done, self.clock()
        self.stage = "training"

    def open_bar(self, total: int) -> None:
        name, unit = self.cfg.TRAINER.NAME, f" {self.unit}"
        self.bar = tqdm(desc=name, total=total, initial=self.clock(), unit=unit)

    def run_epoch(self) -> None:
        self.augmentation.epoch = self.epoch
        self.set_model_mode("train")
        self.num_batches = len(self.batches)
        skip, self.batches_done = self.batches_done, 0
        # A resumed epoch is replayed from its start: the loader draws as it drew before, and
        # finished batches are passed over.
        if self.epoch_rng is not None:
            set_rng_state(self.epoch_rng)
        self.epoch_rng = rng_state()
        end = time.time()
        for self.batch_idx, batch in enumerate(self.batches):  # noqa: B020  an attribute
            if self.batch_idx >= skip:
                self.before_step()
                summary = self.forward_backward(batch)
                self.steps_done += 1
                self.time_meter.update(time.time() - end)
                self.report(summary)
                self.after_step()
            self.batches_done = self.batch_idx + 1
            if skip < self.batches_done < self.num_batches:
                self.save_if_due()
            end = time.time()
        self.update_lr()
        self.batches_done, self.epoch_rng = 0, None

    def save_if_due(self) -> None:
        """Save where enough has happened since the last time, and before a signal ends the run."""
        unsaved = self.steps_done > self.saved_at[0]
        if unsaved and (self.signum or self.due()):
            self.write_checkpoint(RESUME)
        self.leave(f"{self.clock():,} {self.unit} are saved. The same command goes on from here.")

    def due(self) -> bool:
        return self.steps_done - self.saved_at[0] >= max(1, self.steps_total() // PORTIONS)

    def report(self, summary: dict[str, float]) -> None:
        if not isfinite(summary["loss"]):
            cure = "check the model's weights" + ", or lower OPTIM.LR" * self.scheduled
            raise BlackBoxError(f"The loss of step {self.steps_done} is {summary['loss']}: {cure}.")
        self.losses.update(summary)
        self.bar.update(self.clock() - self.bar.n)
        step = self.epoch * self.num_batches + self.batch_idx
        if (step + 1) % self.cfg.TRAIN.PRINT_FREQ == 0:
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                f"batch [{self.batch_idx + 1}/{self.num_batches}] {self.unit} {self.clock():,} "
                f"time {self.time_meter.val:.3f} ({self.time_meter.avg:.3f}) {self.losses} "
                f"lr {self.get_current_lr() if self.optim else 0:.4e}"
            )
        for name, meter in self.losses.meters.items():
            self.write_scalar("train/" + name, meter.avg, self.clock())

    def select_best(self) -> None:
        """With `TEST.FINAL_MODEL best_val`, keep the model if it is the best so far on `val`."""
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.write_checkpoint(BEST, result)

    def after_epoch(self) -> None:
        self.select_best()
        every, done = self.cfg.TRAIN.CHECKPOINT_FREQ, self.epoch + 1
        if done == self.max_epoch or (every > 0 and done % every == 0):
            self.save_model(self.epoch, self.output_dir)
        self.save_if_due()

    def after_train(self) -> None:
        self.bar.close()
        self.stage = metrics.END_OF_TRAINING
        super().after_train()

    def write_checkpoint(self, name: str, val_result: float | None = None) -> Path:
        """Everything that evaluation and resumption need; tensors and plain values only."""
        if name != BEST:
            self.saved_at = self.steps_done, self.clock()
        state = {
            "state_dict": self.learner.state_dict(),
            "epoch": self.epoch + (self.epoch_rng is None),  # else it is not over
            **{name: part and part.state_dict() for name, part in self.parts().items()},
            "val_result": val_result,
            "blackbox": {
                "format": 2,  # 0.1.0 wrote no number and no digest
                "identity": identity(self),
                "settings": self.run_settings,
                "batches_done": self.batches_done,
                "steps_done": self.steps_done,
                "rng": self.epoch_rng or rng_state(),
                "augmentation_seed": self.augmentation.seed,
                "best_result": float(self.best_result),
                "counts": self.counts(),
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
        state = load(path, self, self.run_settings)
        extra = state["blackbox"]
        for name, part in self.parts().items():
            if part is not None:
                part.load_state_dict(state[name])
        self.take_over(extra["counts"], directory)
        self.best_result, self.steps_done = extra["best_result"], extra["steps_done"]
        self.batches_done, self.epoch_rng = extra["batches_done"], extra["rng"]
        self.augmentation.seed = extra["augmentation_seed"]
        at = f"epoch {state['epoch']}, batch {self.batches_done}, {self.clock():,} {self.unit}"
        print(f"Resume from {path}: {at}")
        return state["epoch"]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a model for evaluation: that of `epoch`, with `best_val` the best, or the last."""
        folder = Path(directory, self.model_name)
        if epoch is not None:
            path = folder / f"model.pth.tar-{epoch}"
        elif self.cfg.TEST.FINAL_MODEL == "best_val" and (folder / BEST).is_file():
            path = folder / BEST
        else:
            path = newest(folder) or folder / "model.pth.tar"
        if not path.is_file():
            raise missing(path, Path(directory))
        state = load(path, self)
        self.loaded_from, counts = state["blackbox"], state["blackbox"]["counts"]
        queries = f", {counts['training']['queries']:,} queries" if counts else ""
        print(f"Load {path} (epoch {state['epoch']}{queries})")

    def test(self, split: str | None = None) -> float:
        """Dassl's evaluation, without a trace in the random sources; a result without `split`."""
        random_sources, before = rng_state(), self.counts()
        workers = naming_workers(self.cfg.DATALOADER.NUM_WORKERS)
        with self.evaluating(), workers, handled(self.note):
            accuracy = super().test(split)
        set_rng_state(random_sources)
        if split is None and self.output_dir:
            metrics.write(self, before)
        return accuracy

    def parse_batch_test(self, batch: dict) -> Any:
        if self.stage != "training":  # what is watched between steps belongs to a step
            self.leave("the evaluation is not finished. The same command begins it again.")
        return super().parse_batch_test(batch)

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        split, _, name = tag.partition("/")
        if split != "train":  # Dassl's `test` tells its results here, and returns the first alone
            self.results[name] = float(scalar_value)
        super().write_scalar(tag, scalar_value, global_step)


def quiet_on_a_full_disk(args: threading.ExceptHookArgs) -> None:
    """No traceback of TensorBoard's thread, whose error this one's next call raises."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)
