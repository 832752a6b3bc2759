"""Files that are either whole or not there."""

import os
from pathlib import Path

import torch

from .errors import BlackBoxError


def write_atomically(path, content):
    """Write bytes, or whatever `content(file)` writes, beside `path`, then rename: a crash or a full disk leaves the old file whole.

    Raises:
        BlackBoxError: the file cannot be written; nothing half-written stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            content(f) if callable(content) else f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as e:
        if temporary.is_file():
            temporary.unlink()
        if not isinstance(
            e, (OSError, RuntimeError)
        ):  # torch.save reports a full disk as a RuntimeError
            raise
        raise BlackBoxError(
            f"Could not write {path} ({e}). What was there before is whole; make room or choose another OUTPUT_DIR, "
            f"then run the same command again to resume."
        ) from e


def save_state(path, state):
    """Save tensors and plain Python values."""
    write_atomically(path, lambda f: torch.save(state, f))


def load_state(path):
    """Load what `save_state` wrote, onto the CPU; nothing in the file is executed.

    Raises:
        BlackBoxError: no such file, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        there = (
            sorted(p.name for p in path.parent.glob("model*.pth.tar*"))
            if path.parent.is_dir()
            else []
        )
        raise BlackBoxError(
            f"No checkpoint at {path}. "
            + (
                f"In that folder: {', '.join(there)}."
                if there
                else "Check --model-dir: it is the output folder of a training run."
            )
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise BlackBoxError(
            f"{path} is not a checkpoint that can be read ({str(e).splitlines()[0]})."
        ) from e
