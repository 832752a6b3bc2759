"""The loop of every trainer here: epochs that can be replayed, checkpoints, signals, evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import torch
from dassl.engine import TrainerX
from dassl.utils import AverageMeter, MetricMeter, set_random_seed
from torch import nn
from tqdm import tqdm

from ..config import check_cfg
from ..data.loaders import OF_THE_MODEL, Pictured, build_data, match_input, naming_workers
from ..keys import Key
from . import metrics
from .checkpoints import BEST, RESUME, Checkpointed
from .errors import BlackBoxError
from .files import sweep
from .lock import FolderLock
from .rng import rng_state, set_rng_state
from .scalars import Scalars
from .signals import StopRequest

PORTIONS = 10  # a run is saved after every tenth of its steps, or more often


class ResumableTrainer(Checkpointed, Scalars, Pictured, TrainerX):
    """A Dassl trainer whose runs hold their folder, go on where they stopped, and stop when asked.

    A subclass gives `open_model`, `build_model`, `forward_backward` and `model_inference`; it sets
    `learner` (what evaluation needs), `optim`, and perhaps `sched`, `head` and `head_optim`.

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
    """

    keys: Mapping[str, Key] = {}
    node: str
    reads: tuple[str, ...] = ("OPTIM.MAX_EPOCH", "ORACLE")
    scheduled = False
    optimizers: tuple[str, ...] = ()
    unit = "step"  # of `clock`
    training = False  # whether steps are being made
    evaluator: Any
    max_epoch: int
    head: nn.Module | None = None
    head_optim: Any = None
    sched: Any = None

    # ------------------------------------------------------------------ building

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.evaluator = metrics.Kept(self.evaluator)

    def check_cfg(self, cfg: Any) -> None:
        check_cfg(cfg)

    def build_data_loader(self) -> None:
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
        self.take(build_data(self.cfg, self.train_transform()))

    def train_transform(self) -> Any:
        """Of the training images; None is the one that INPUT.TRANSFORMS names."""
        return None

    def steps_total(self) -> int:
        """Steps that the whole run has, if none is lost."""
        return self.max_epoch * len(self.train_loader_x)

    # ------------------------------------------------------------------ training

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
            raise BlackBoxError(
                f"The loss of step {self.steps_done:,} is {summary['loss']}. Check the model's "
                f"weights, or lower OPTIM.LR."
            )
        self.losses.update(summary)
        self.bar.update(self.clock() - self.bar.n)
        step = self.epoch * self.num_batches + self.batch_idx
        if (step + 1) % self.cfg.TRAIN.PRINT_FREQ == 0:
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                f"batch [{self.batch_idx + 1}/{self.num_batches}] {self.progress_note()}"
                f"time {self.time_meter.val:.3f} ({self.time_meter.avg:.3f}) {self.losses} "
                f"lr {self.get_current_lr():.4e}"
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
