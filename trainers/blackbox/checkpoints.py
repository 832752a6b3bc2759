"""Checkpoints of a black-box run: atomic, complete, refused where they do not fit.

Layout and names are Dassl's: `<output>/<model name>/model.pth.tar-<epoch>`, `model-best.pth.tar`, and the pointer file `checkpoint` that
names the newest. `model-resume.pth.tar` is overwritten during training.
"""

from pathlib import Path

from .errors import BlackBoxError
from .files import load_state, save_state, write_atomically

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
    return Path(folder) / pointer.read_text(encoding="utf-8").split("\n")[0] if pointer.is_file() else None


def choose(folder, epoch=None, best=False):
    """Path of the checkpoint to evaluate: of an epoch, or the best on `val`, or the last."""
    folder = Path(folder)
    if epoch is not None:
        return folder / f"model.pth.tar-{epoch}"
    if best and (folder / BEST).is_file():
        return folder / BEST
    return newest(folder) or folder / POINTER


def load(path, trainer, device="cpu"):
    """Read a checkpoint and check that it belongs to this method, backbone and prompt size.

    Raises:
        BlackBoxError: it does not fit; the text tells the two values.
    """
    state = load_state(path, device)
    if "blackbox" not in state:
        raise BlackBoxError(f"{path} was not written by a black-box trainer (a checkpoint of CoOp's, perhaps). Give the folder of a "
                            f"{trainer.cfg.TRAINER.NAME} run.")
    made, here = state["blackbox"]["identity"], identity(trainer)
    if made["method"] != here["method"]:
        raise BlackBoxError(f"{path} is a checkpoint of {made['method']}, this run is {here['method']}. Give the same --trainer as in training.")
    if made["weights"] != here["weights"]:
        raise BlackBoxError(f"{path} was made with the backbone {made['backbone']}, this run uses {here['backbone']}, and their weights differ. Give the "
                            f"same MODEL.BACKBONE.NAME as in training.")
    shapes = {k: tuple(v.shape) for k, v in trainer.learner.state_dict().items()}
    for k, v in state["state_dict"].items():
        if shapes.get(k) != tuple(v.shape):
            raise BlackBoxError(f"{path} has a prompt of another size: '{k}' is {tuple(v.shape)} there and {shapes.get(k, 'absent')} here. Give the "
                                f"same N_CTX, CTX_INIT and dimensions as in training.")
    return state


def identity(trainer):
    """What must agree between a checkpoint and the run that loads it."""
    description = trainer.oracle.description
    return {"method": trainer.cfg.TRAINER.NAME, "backbone": description.name, "weights": description.fingerprint}
