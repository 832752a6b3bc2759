"""Checkpoints of a run: atomic and complete; `matching.py` refuses those that do not fit.

Layout and names are Dassl's: `<output>/<model name>/model.pth.tar-<epoch>`, `model-best.pth.tar`,
and the pointer file `checkpoint` that names the newest. `model-resume.pth.tar` is overwritten
during training and removed when a model of an epoch follows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..data.loaders import training_images
from ..data.reader import Augmentation
from ..merge import did_you_mean
from .errors import BlackBoxError
from .files import load_state, read_text, save_state, write_atomically
from .matching import check_inference, check_settings, identity, load
from .rng import rng_state
from .settings import settings, with_contents

BEST, RESUME, POINTER = "model-best.pth.tar", "model-resume.pth.tar", "checkpoint"
NONE_YET = "(none yet)"  # what the pointer file says before the first checkpoint is whole
FORMAT = 2  # 0.1.0 wrote no number and no digest


def save(state: dict[str, Any], folder: str | Path, name: str, newest: bool = True) -> Path:
    """Write a checkpoint, then the pointer file, which never names the best one."""
    folder = Path(folder)
    path = folder / name
    if not (folder / POINTER).exists():
        # models without a pointer are a damaged folder, and a kill during the first save is none
        write_atomically(folder / POINTER, f"{NONE_YET}\n".encode())
    save_state(path, state)
    if newest:
        write_atomically(folder / POINTER, f"{name}\n".encode())
        if name != RESUME:
            (folder / RESUME).unlink(missing_ok=True)
    return path


def newest(folder: str | Path) -> Path | None:
    """Path of the checkpoint that the pointer file names; None where there is none yet.

    Raises:
        BlackBoxError: a pointer file that names no model in the folder, or models without one.
    """
    pointer = Path(folder) / POINTER
    models = sorted(path.name for path in Path(folder).glob("model*.pth.tar*"))
    cure = (
        f"Write the name of the newest model into it ({', '.join(models) or 'there is none'}), or "
        f"choose another --output-dir."
    )
    if not pointer.exists():
        if models:
            raise BlackBoxError(f"{folder} holds models, but {pointer} is missing. {cure}")
        return None
    name = read_text(pointer, cure).split("\n")[0].strip()
    if name == NONE_YET:
        return None
    if name not in models:
        raise BlackBoxError(f"{pointer} names {name[:80]!r}, which is no model here. {cure}")
    return Path(folder) / name


def choose(folder: str | Path, epoch: int | None = None, best: bool = False) -> Path:
    """Path of the checkpoint to evaluate: of an epoch, or the best on `val`, or the last."""
    folder = Path(folder)
    if epoch is not None:
        return folder / f"model.pth.tar-{epoch}"
    if best and (folder / BEST).is_file():
        return folder / BEST
    return newest(folder) or folder / "model.pth.tar"


def meant(directory: str) -> str:
    """Which output folder was meant, perhaps: that of a folder of checkpoints, or some below."""
    folder = Path(directory)
    pointers = [folder / POINTER, folder.parent / POINTER, *sorted(folder.glob(f"*/*/{POINTER}"))]
    found = [str(path.parent.parent) for path in pointers if path.is_file()]
    return did_you_mean(found[:3])


def settings_of(folder: str | Path) -> dict[str, str] | None:
    """The settings, and what lies behind them, that the newest checkpoint in a folder tells.

    None where there is none, or one of version 0.1.0, which knew no contents.

    Raises:
        BlackBoxError: it is damaged.
    """
    path = newest(folder)
    extra = load_state(path).get("blackbox", {}) if path else {}
    return extra["settings"] if "format" in extra else None


class Checkpointed:
    """The part of a trainer that saves, resumes and loads.

    `save_model`, `resume_model_if_exist` and `load_model` are called by Dassl.
    """

    model_name = "prompt_learner"
    # set by Dassl's trainer, by `ResumableTrainer` and by its subclasses
    cfg: Any
    dm: Any
    output_dir: str
    epoch: int
    best_result: float
    learner: nn.Module
    head: nn.Module | None
    optim: Any
    sched: Any
    head_optim: Any
    augmentation: Augmentation
    images_digest: str | None
    steps_done: int
    batches_done: int
    epoch_rng: dict[str, Any] | None
    saved_at: tuple[int, int]
    # of the training whose model is evaluated
    loaded_counts: dict | None = None
    loaded_seed: int | None = None

    def clock(self) -> int:
        """What the bar and the curves are drawn over, in `unit`."""
        return self.steps_done

    def position(self) -> str:
        """The same as words."""
        return f"{self.steps_done:,} steps"

    def counts(self) -> dict | None:
        """What a checkpoint keeps of the bill."""
        return None

    def take_over(self, counts: dict | None, directory: str) -> None:
        """Raise the bill to that of a checkpoint and of the run in `directory`."""

    def folder(self, directory: str) -> str:
        return f"{directory}/{self.model_name}"

    def run_settings(self) -> dict[str, str]:
        """What must agree for a run to go on: its resolved settings, and its training images."""
        if self.images_digest is None:
            self.images_digest = training_images(self.dm.dataset.train_x)
        return with_contents(settings(self.cfg.dump()), self.images_digest)

    def write_checkpoint(self, name: str, is_newest: bool = True, val_result: Any = None) -> Path:
        """Everything that evaluation and resumption need; tensors and plain values only."""
        inside = self.epoch_rng is not None  # in the middle of an epoch, or after its last batch
        if is_newest:
            self.saved_at = self.steps_done, self.clock()
        state = {
            "state_dict": self.learner.state_dict(),
            "epoch": self.epoch if inside else self.epoch + 1,
            "optimizer": self.optim.state_dict(),
            "scheduler": self.sched.state_dict() if self.sched else None,
            "val_result": val_result,
            "blackbox": {
                "format": FORMAT,
                "head_optimizer": self.head_optim.state_dict() if self.head_optim else None,
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
        self.learner.load_state_dict(state["state_dict"])
        self.optim.load_state_dict(state["optimizer"])
        for part, saved in (
            (self.sched, state["scheduler"]),
            (self.head_optim, extra["head_optimizer"]),
        ):
            if part is not None:
                part.load_state_dict(saved)
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
        self.learner.load_state_dict(state["state_dict"])
        self.loaded_counts = counts = state["blackbox"]["counts"]
        # version 0.1.0 told no settings
        self.loaded_seed = int(state["blackbox"].get("settings", {}).get("SEED", -1))
        queries = f", {counts['training']['queries']:,} queries" if counts else ""
        print(f"Load {path} (epoch {state['epoch']}{queries})")
