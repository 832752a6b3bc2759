"""Checkpoints of a run: atomic and complete; `matching.py` refuses those that do not fit.

Layout and names are Dassl's: `<output>/<model name>/model.pth.tar-<epoch>`, `model-best.pth.tar`,
and the pointer file `checkpoint` that names the newest. `model-resume.pth.tar` is overwritten
during training and removed when a model of an epoch follows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BlackBoxError
from ..files import load_state, read_text, save_state, write_atomically

MODEL = "prompt_learner"  # the folder of a run's models
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
    return f" Did you mean {' or '.join(found[:3])}?" if found else ""


def settings_of(folder: str | Path) -> dict[str, str] | None:
    """The settings, and what lies behind them, that the newest checkpoint in a folder tells.

    None where there is none, or one of version 0.1.0, which knew no contents.

    Raises:
        BlackBoxError: it is damaged.
    """
    path = newest(folder)
    extra = load_state(path).get("blackbox", {}) if path else {}
    return extra["settings"] if "format" in extra else None
