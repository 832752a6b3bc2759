"""Checkpoints of a black-box run: atomic, complete, refused where they do not fit.

Layout and names are Dassl's: `<output>/<model name>/model.pth.tar-<epoch>`, `model-best.pth.tar`, and the pointer file `checkpoint` that
names the newest. `model-resume.pth.tar` is overwritten during training.
"""

import hashlib
import json
from pathlib import Path

from .errors import BlackBoxError
from .files import load_state, save_state, write_atomically
from .rng import rng_state
from .settings import BUDGETS, NOT_TRAINING, as_text, differences, settings

BEST, RESUME, POINTER = "model-best.pth.tar", "model-resume.pth.tar", "checkpoint"


def save(state, folder, name, newest=True):
    """Write a checkpoint; the pointer file follows only when the file is whole, and never points to the best model."""
    path = Path(folder) / name
    save_state(path, state)
    if newest:
        write_atomically(Path(folder) / POINTER, f"{name}\n".encode())
    return path


def newest(folder):
    """Path of the checkpoint that the pointer file names; None where there is none yet."""
    pointer = Path(folder) / POINTER
    return (
        Path(folder) / pointer.read_text(encoding="utf-8").split("\n")[0]
        if pointer.is_file()
        else None
    )


def choose(folder, epoch=None, best=False):
    """Path of the checkpoint to evaluate: of an epoch, or the best on `val`, or the last."""
    folder = Path(folder)
    if epoch is not None:
        return folder / f"model.pth.tar-{epoch}"
    if best and (folder / BEST).is_file():
        return folder / BEST
    return newest(folder) or folder / POINTER


def load(path, trainer):
    """Read a checkpoint and check that it belongs to this method, backbone and prompt size.

    Raises:
        BlackBoxError: it does not fit; the text tells the two values.
    """
    state = load_state(path)
    if "blackbox" not in state:
        raise BlackBoxError(
            f"{path} was not written by a black-box trainer (a checkpoint of CoOp's, perhaps). Give the folder of a "
            f"{trainer.cfg.TRAINER.NAME} run."
        )
    made, here = state["blackbox"]["identity"], identity(trainer)
    if made["method"] != here["method"]:
        raise BlackBoxError(
            f"{path} is a checkpoint of {made['method']}, this run is {here['method']}. Give the same --trainer as in training."
        )
    if made["weights"] != here["weights"]:
        raise BlackBoxError(
            f"{path} was made with the backbone {made['backbone']}, this run uses {here['backbone']}, and their weights differ. Give the "
            f"same MODEL.BACKBONE.NAME as in training."
        )
    if made.get("classes", here["classes"]) != here["classes"]:
        raise BlackBoxError(
            f"{path} has a head for the classes {few(made['classes'])}; here they are {few(here['classes'])}. A head on logits is tied to the classes that it "
            f"was trained on and cannot move to others: evaluate on the same ones, or train the prompt alone, which moves."
        )
    shapes = {k: tuple(v.shape) for k, v in trainer.learner.state_dict().items()}
    saved = {k: tuple(v.shape) for k, v in state["state_dict"].items()}
    for k in {**shapes, **saved}:
        if shapes.get(k) != saved.get(k):
            part, cure = "a prompt of another size", "N_CTX, CTX_INIT and dimensions as in training"
            if k.startswith("head."):
                part, cure = (
                    "a head of another shape, or of an earlier version",
                    "settings of the head as in training, or train anew",
                )
            raise BlackBoxError(
                f"{path} has {part}: '{k}' is {saved.get(k, 'absent')} there and {shapes.get(k, 'absent')} here. Give the same {cure}."
            )
    return state


def identity(trainer):
    """What must agree between a checkpoint and the run that loads it; class names, in their order, only where a head is tied to them."""
    description, tied = trainer.oracle.description, getattr(trainer.head, "class_bound", False)
    return {
        "method": trainer.cfg.TRAINER.NAME,
        "backbone": description.name,
        "weights": description.fingerprint,
        "classes": list(trainer.dm.dataset.classnames) if tied else None,
    }


def few(names):
    return (
        "of no head"
        if names is None
        else f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''} ({len(names)})"
    )


def run_settings(trainer):
    """What must agree for a run to go on: its resolved settings, and which pictures it is trained on, wherever they lie."""
    pictures = json.dumps(
        [
            [*Path(item.impath).parts[-2:], item.label, item.classname]
            for item in trainer.dm.dataset.train_x
        ]
    )
    return {
        **settings(trainer.cfg.dump()),
        "training images": hashlib.sha256(pictures.encode()).hexdigest(),
    }


class Checkpointed:
    """The part of `BlackBoxTrainer` that saves, resumes and loads; `save_model`, `resume_model_if_exist` and `load_model` are Dassl's."""

    def folder(self, directory):
        return f"{directory}/{self.model_name}"

    def write_checkpoint(self, name, is_newest=True, val_result=None):
        """Everything that evaluation and resumption need; tensors and plain values only."""
        inside = self.epoch_rng is not None  # in the middle of an epoch, or after its last batch
        epoch = self.epoch if inside else self.epoch + 1
        if is_newest:
            self.saved_at = self.spent()
        return save(
            {
                "state_dict": self.learner.state_dict(),
                "epoch": epoch,
                "optimizer": self.optim.state_dict(),
                "scheduler": self.sched.state_dict() if self.sched else None,
                "val_result": val_result,
                "blackbox": {
                    "head_optimizer": self.head_optim.state_dict() if self.head_optim else None,
                    "identity": identity(self),
                    "settings": run_settings(self),
                    "batches_done": self.batches_done,
                    "rng": self.epoch_rng if inside else rng_state(),
                    "best_result": float(self.best_result),
                    "counts": self.oracle.counts,
                },
            },
            self.folder(self.output_dir),
            name,
            is_newest,
        )

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Dassl's entry point. The file is named after `epoch`; the true epoch and the counts are inside."""
        path = self.write_checkpoint(
            model_name or f"model.pth.tar-{epoch + 1}", val_result=val_result
        )
        print(f"Checkpoint saved to {path} ({self.spent():,} queries)")

    def resume_model_if_exist(self, directory):
        # a run that was resumed from elsewhere goes on from its own folder once it has saved there
        path = newest(self.folder(self.output_dir)) or newest(self.folder(directory))
        if path is None:
            if self.cfg.RESUME:
                raise BlackBoxError(
                    f"No checkpoint to resume from in {self.folder(directory)}. --resume takes the output folder of an earlier run; without it, a "
                    f"run goes on from its own output folder."
                )
            if self.spent():
                print(
                    f"A run that left no checkpoint spent {self.spent():,} queries here; they stay on the bill"
                )
            return 0
        state = load(path, self)
        extra = state["blackbox"]
        if "ORACLE" in extra["settings"]:  # a section was one text
            raise BlackBoxError(
                f"{path} was written by an earlier version, and its settings cannot be compared. Choose another --output-dir."
            )
        differ = {
            name: pair
            for name, pair in differences(extra["settings"], run_settings(self)).items()
            if not name.startswith(BUDGETS + NOT_TRAINING)
        }
        if differ:
            raise BlackBoxError(
                f"{path} was made with other settings ({as_text(differ)}), and a run goes on only as it began. Choose another --output-dir, "
                f"or give the same configuration; budgets may grow."
            )
        self.learner.load_state_dict(state["state_dict"])
        self.optim.load_state_dict(state["optimizer"])
        for part, saved in (
            (self.sched, state["scheduler"]),
            (self.head_optim, extra["head_optimizer"]),
        ):
            if part is not None:
                part.load_state_dict(saved)
        self.oracle.at_least(extra["counts"])
        self.oracle.take_over(
            f"{directory}/queries.json"
        )  # what was spent after the checkpoint, too
        self.best_result = extra["best_result"]
        self.batches_done, self.epoch_rng = extra["batches_done"], extra["rng"]
        print(
            f"Resume from {path}: epoch {state['epoch']}, batch {self.batches_done}, {self.spent():,} queries on the bill"
        )
        return state["epoch"]

    def load_model(self, directory, epoch=None):
        """Load a run's model for evaluation: of `epoch`, or the best on `val` with `best_val`, or the last."""
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        path = choose(self.folder(directory), epoch, best=self.cfg.TEST.FINAL_MODEL == "best_val")
        state = load(path, self)
        self.learner.load_state_dict(state["state_dict"])
        print(
            f"Load {path} (epoch {state['epoch']}, {state['blackbox']['counts']['training']['queries']:,} queries)"
        )
