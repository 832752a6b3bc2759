"""The loop of every trainer here: epochs that can be replayed, checkpoints, signals, evaluation."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from dassl.engine import TrainerX
from dassl.utils import AverageMeter, MetricMeter, set_random_seed
from torch import nn
from tqdm import tqdm

from ..config import check_cfg
from ..data import (
    OF_THE_MODEL,
    Augmentation,
    Pictures,
    build_data,
    match_input,
    naming_workers,
    need_apart,
    need_val,
    training_images,
)
from ..errors import BlackBoxError
from ..files import sweep
from ..keys import Key
from . import metrics
from .checkpoints import BEST, FORMAT, MODEL, RESUME, choose, meant, newest, save
from .lock import FolderLock
from .matching import check_inference, check_settings, identity, load, settings, with_contents
from .rng import rng_state, set_rng_state
from .signals import StopRequest

PORTIONS = 10  # a run is saved after every tenth of its steps, or more often


class ResumableTrainer(TrainerX):
    """A Dassl trainer whose runs hold their folder, go on where they stopped, and stop when asked.

    A subclass gives `open_model`, which sets what `description` tells, then `build_model`,
    `forward_backward` and `model_inference`; it sets `learner` (what evaluation needs), and perhaps
    `head`, `optim` and `sched`.

    Attributes:
        keys: of the method, with defaults, under `TRAINER.<node>` (`registry.node_of`).
        node: where that is not the class's name in capitals.
        reads: nodes, and keys, of OPTIM and ORACLE that have an effect.
        scheduled: whether a learning rate follows OPTIM's schedule; all of OPTIM is read then.
        optimizers: what OPTIM.NAME may be; empty: any.
        batches: what an epoch iterates over.
        steps_done: steps that trained what is in use; queries of lost steps are on the bill alone.
        batches_done: of this epoch.
        epoch_rng: random states at this epoch's start; None between epochs.
        loaded_counts, loaded_seed: of the training whose model is evaluated.
    """

    model_name = MODEL

    keys: Mapping[str, Key] = {}
    node: str
    reads: tuple[str, ...] = ("OPTIM.MAX_EPOCH", "ORACLE")
    scheduled = False
    optimizers: tuple[str, ...] = ()
    unit = "step"  # of `clock`
    training = False  # whether steps are being made
    cfg: Any
    dm: Any
    epoch: int
    evaluator: Any
    max_epoch: int
    pictures: Pictures  # where training pictures are kept
    augmentation: Augmentation  # which decides the draws of the train loaders
    best_result: float
    images_digest: str | None
    epoch_rng: dict[str, Any] | None
    head: nn.Module | None = None
    learner: nn.Module
    optim: Any = None
    sched: Any = None
    loaded_counts: dict | None = None
    loaded_seed: int | None = None

    # ------------------------------------------------------------------ building

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.evaluator = metrics.Kept(self.evaluator)

    def check_cfg(self, cfg: Any) -> None:
        check_cfg(cfg)

    def build_data_loader(self) -> None:
        """Hold the folder, open the model, and load the data as it wants them.

        Dassl's constructor calls this first.
        """
        cfg = self.cfg
        self.lock: FolderLock | None = None
        if cfg.OUTPUT_DIR:
            self.lock = FolderLock(cfg.OUTPUT_DIR)
            sweep(cfg.OUTPUT_DIR)
            sweep(self.folder(cfg.OUTPUT_DIR))
        self.stop, self.images_digest = StopRequest(), None
        self.steps_done, self.batches_done, self.epoch_rng = 0, 0, None
        self.open_model()
        self.cfg = match_input(cfg, self.description)
        print("\n".join(f"INPUT.{key}: {self.cfg.INPUT[key]}" for key in OF_THE_MODEL))
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)  # whatever the model's construction drew
        dm, self.pictures, self.augmentation = build_data(self.cfg, self.train_transform())
        self.dm, self.num_source_domains = dm, dm.num_source_domains
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname

    def train_transform(self) -> Any:
        """Of the training images; None is the one that INPUT.TRANSFORMS names."""
        return None

    def steps_total(self) -> int:
        """Steps that the whole run has, if none is lost."""
        return self.max_epoch * len(self.train_loader_x)

    def clock(self) -> int:
        """What the bar and the curves are drawn over, in `unit`."""
        return self.steps_done

    def position(self) -> str:
        """The same as words."""
        return f"{self.steps_done:,} steps"

    def parts(self) -> dict[str, Any]:
        """What a run that goes on needs beside the learner: parts that have a state, by name."""
        return {"optimizer": self.optim, "scheduler": self.sched}

    def counts(self) -> dict | None:
        """What a checkpoint keeps of the bill."""
        return None

    def take_over(self, counts: dict | None, directory: str) -> None:
        """Raise the bill to that of a checkpoint and of the run in `directory`."""

    # ------------------------------------------------------------------ training

    def check_training(self) -> None:
        """Raise where training would look at test images, or at pictures that cannot be decoded."""
        cfg, dataset, name = self.cfg, self.dm.dataset, self.cfg.DATASET.NAME
        if cfg.TEST.FINAL_MODEL == "best_val" or cfg.ORACLE.VAL_EVERY:
            need_val(dataset, name)
        need_apart(dataset, name)
        # workers live for an epoch: those that are forked find the pictures, others would each
        # keep their own
        if cfg.DATALOADER.NUM_WORKERS and multiprocessing.get_start_method() != "fork":
            self.pictures.room = 0
        self.pictures.load(f"{name}, train")

    def train(self) -> None:
        with self.stop, naming_workers(self.cfg.DATALOADER.NUM_WORKERS):
            try:
                self.train_to_the_end()
            finally:
                if hasattr(self, "bar"):
                    self.bar.close()  # an error's sentence begins on a line of its own

    def train_to_the_end(self) -> None:
        super().train()

    def before_train(self) -> None:
        if not self.output_dir:
            raise BlackBoxError(
                "OUTPUT_DIR is empty: name the folder of the run with --output-dir."
            )
        self.check_training()
        self.run_settings()  # with the pictures as they are now, not at the first checkpoint
        try:
            super().before_train()
        except OSError as e:
            raise BlackBoxError(
                f"The output folder {self.output_dir} cannot be written to ({e}). Choose another "
                f"--output-dir, or make room."
            ) from e
        metrics.forget(self.output_dir)
        self.batches = self.train_loader_x
        self.saved_at = self.steps_done, self.clock()
        self.time_meter, self.losses = AverageMeter(), MetricMeter()
        self.training = True

    def before_epoch(self) -> None:
        self.augmentation.epoch = self.epoch
        super().before_epoch()

    def open_bar(self, total: int) -> None:
        name = self.cfg.TRAINER.NAME
        self.bar = tqdm(total=total, initial=self.clock(), unit=self.unit, desc=name)

    def run_epoch(self) -> None:
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

    def before_step(self) -> None:
        """Raise where no further step can be paid for."""

    def after_step(self) -> None:
        """Look at what the step has led to."""

    def save_if_due(self) -> None:
        """Save where enough has happened since the last time, and before a signal ends the run."""
        unsaved = self.steps_done > self.saved_at[0]
        if unsaved and (self.stop.signum or self.due()):
            self.write_checkpoint(RESUME)
        self.stop.leave(f"{self.position()} are saved. The same command goes on from here.")

    def due(self) -> bool:
        return self.steps_done - self.saved_at[0] >= max(1, self.steps_total() // PORTIONS)

    def report(self, summary: dict[str, float]) -> None:
        if not isfinite(summary["loss"]):
            rate = ", or lower OPTIM.LR" if self.scheduled else ""
            raise BlackBoxError(
                f"The loss of step {self.steps_done:,} is {summary['loss']}. Check the model's "
                f"weights{rate}."
            )
        self.losses.update(summary)
        self.bar.update(self.clock() - self.bar.n)
        step = self.epoch * self.num_batches + self.batch_idx
        if (step + 1) % self.cfg.TRAIN.PRINT_FREQ == 0:
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                f"batch [{self.batch_idx + 1}/{self.num_batches}] {self.progress_note()}"
                f"time {self.time_meter.val:.3f} ({self.time_meter.avg:.3f}) {self.losses} "
                f"lr {self.get_current_lr() if self.optim else 0:.4e}"
            )
        for name, meter in self.losses.meters.items():
            self.write_scalar("train/" + name, meter.avg, self.clock())

    def progress_note(self) -> str:
        """What a line of the log says between batch and time."""
        return ""

    def parse_batch_train(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def select_best(self) -> None:
        """With `TEST.FINAL_MODEL best_val`, keep the model if it is the best so far on `val`."""
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.write_checkpoint(BEST, is_newest=False, val_result=result)

    def after_epoch(self) -> None:
        self.select_best()
        every, done = self.cfg.TRAIN.CHECKPOINT_FREQ, self.epoch + 1
        if done == self.max_epoch or (every > 0 and done % every == 0):
            self.save_model(self.epoch, self.output_dir)
        self.save_if_due()

    def after_train(self) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
        self.training = False
        super().after_train()

    # ------------------------------------------------------------------ checkpoints

    def folder(self, directory: str) -> str:
        return f"{directory}/{self.model_name}"

    def run_settings(self) -> dict[str, str]:
        """What must agree for a run to go on: its resolved settings, and its training images."""
        if self.images_digest is None:
            self.images_digest = training_images(self.dm.dataset.train_x)
        return with_contents(settings(self.cfg), self.images_digest)

    def write_checkpoint(self, name: str, is_newest: bool = True, val_result: Any = None) -> Path:
        """Everything that evaluation and resumption need; tensors and plain values only."""
        inside = self.epoch_rng is not None  # in the middle of an epoch, or after its last batch
        if is_newest:
            self.saved_at = self.steps_done, self.clock()
        state = {
            "state_dict": self.learner.state_dict(),
            "epoch": self.epoch if inside else self.epoch + 1,
            **{name: part and part.state_dict() for name, part in self.parts().items()},
            "val_result": val_result,
            "blackbox": {
                "format": FORMAT,
                "identity": identity(self),
                "settings": self.run_settings(),
                "batches_done": self.batches_done,
                "steps_done": self.steps_done,
                "rng": self.epoch_rng if inside else rng_state(),
                "augmentation_seed": self.augmentation.seed,
                "best_result": float(self.best_result),
                "counts": self.counts(),
            },
        }
        return save(state, self.folder(self.output_dir), name, is_newest)

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: Any = None,
        model_name: str = "",
    ) -> None:
        """The file is named after `epoch`; the true epoch and the counts are inside."""
        name = model_name or f"model.pth.tar-{epoch + 1}"
        path = self.write_checkpoint(name, val_result=val_result)
        print(f"Checkpoint saved to {path} ({self.position()})")

    def resume_model_if_exist(self, directory: str) -> int:
        """Returns the epoch to start at."""
        # a run that was resumed from elsewhere goes on from its own folder once it has saved there
        path = newest(self.folder(self.output_dir)) or newest(self.folder(directory))
        if path is None:
            if self.cfg.RESUME:
                gone = "" if Path(directory).is_dir() else ": no such folder"
                raise BlackBoxError(
                    f"No checkpoint to resume from in {self.folder(directory)}{gone}. --resume "
                    f"takes the output folder of an earlier run; without it, a run goes on from "
                    f"its own output folder.{meant(directory)}"
                )
            return 0
        state = load(path, self)
        extra = state["blackbox"]
        check_settings(path, extra, self.run_settings(), scheduled=self.sched is not None)
        for name, part in self.parts().items():
            if part is not None:
                part.load_state_dict(state[name])
        self.take_over(extra["counts"], directory)
        self.best_result, self.steps_done = extra["best_result"], extra["steps_done"]
        self.batches_done, self.epoch_rng = extra["batches_done"], extra["rng"]
        self.augmentation.seed = extra["augmentation_seed"]
        print(
            f"Resume from {path}: epoch {state['epoch']}, batch {self.batches_done}, "
            f"{self.position()}"
        )
        return state["epoch"]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a model for evaluation: that of `epoch`, with `best_val` the best, or the last.

        Raises:
            BlackBoxError: no folder, or none with such a model.
        """
        if not directory:
            raise BlackBoxError(
                f"There is no model of {self.cfg.TRAINER.NAME} to evaluate: name the folder of its "
                f"training run with --model-dir. Without training, take --trainer ZeroshotOracle."
            )
        folder, best = self.folder(directory), self.cfg.TEST.FINAL_MODEL == "best_val"
        for needed in (directory, folder):
            if not Path(needed).is_dir():
                raise BlackBoxError(
                    f"{needed}: no such folder. --model-dir takes the output folder of a training "
                    f"run.{meant(directory)}"
                )
        path = choose(folder, epoch, best)
        state = load(path, self)
        check_inference(path, state, self)
        self.loaded_counts = counts = state["blackbox"]["counts"]
        # version 0.1.0 told no settings
        self.loaded_seed = int(state["blackbox"].get("settings", {}).get("SEED", -1))
        queries = f", {counts['training']['queries']:,} queries" if counts else ""
        print(f"Load {path} (epoch {state['epoch']}{queries})")

    # ------------------------------------------------------------------ evaluation

    def evaluating(self) -> AbstractContextManager:
        """Within this context, what is asked of the model is asked for evaluation."""
        return nullcontext()

    def test(self, split: str | None = None) -> float:
        """Dassl's evaluation, without a trace in the random sources that training draws from.

        That of TEST.SPLIT, whose name is not given, is the run's result.
        """
        random_sources, trained, before = rng_state(), self.stop.active, metrics.bill(self)
        try:
            workers = naming_workers(self.cfg.DATALOADER.NUM_WORKERS)
            with self.evaluating(), workers, nullcontext() if trained else self.stop:
                accuracy = super().test(split)
        finally:
            set_rng_state(random_sources)
        if split is None:
            metrics.write(self, trained, before)
        return accuracy

    def parse_batch_test(self, batch: dict) -> Any:
        if not self.training:  # what is watched between steps belongs to a step
            self.stop.leave("the evaluation is not finished. The same command begins it again.")
        return super().parse_batch_test(batch)

    # ------------------------------------------------------------------ TensorBoard

    def init_writer(self, log_dir: str) -> None:
        former = threading.excepthook
        threading.excepthook = quiet_in_tensorboard(former)  # its files are written by a thread
        self.curves(super().init_writer, log_dir)

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        self.curves(super().write_scalar, tag, scalar_value, global_step)

    def close_writer(self) -> None:
        self.curves(super().close_writer)

    def curves(self, call: Callable[..., None], *args: Any) -> None:
        """A full disk ends TensorBoard's curves, and not the run."""
        try:
            call(*args)
        except OSError as e:
            self._writer = None
            print(f"Note: TensorBoard's curves end here ({e}); the run goes on")


def quiet_in_tensorboard(former: Callable[[Any], Any]) -> Callable[[Any], None]:
    """`threading.excepthook` without the traceback of a full disk in TensorBoard's thread."""

    def hook(args: Any) -> None:
        module = type(args.thread).__module__
        if not (isinstance(args.exc_value, OSError) and module.startswith("tensorboard")):
            former(args)

    return hook
