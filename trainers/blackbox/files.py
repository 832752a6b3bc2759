"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import BlackBoxError, first_line

DRAFT = re.compile(r"\..*\.\d+\.tmp")


def write_atomically(path: str | Path, content: bytes | Callable[[BinaryIO], Any]) -> None:
    """Write bytes, or whatever `content(file)` writes, beside `path`, then rename.

    A crash or a full disk leaves the old file whole.

    Raises:
        BlackBoxError: the file cannot be written; nothing half-written stays.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        with open(draft, "xb") as f:  # never through a link that somebody put there
            content(f) if callable(content) else f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(draft, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            draft.unlink()
        # torch.save reports a full disk as a RuntimeError
        if not isinstance(e, (OSError, RuntimeError)):
            raise
        raise BlackBoxError(
            f"Could not write {path} ({first_line(e)}). What was there before is whole; make room "
            "or choose another --output-dir, then run the same command again to resume."
        ) from e


def append(path: str | Path, line: str) -> None:
    """Add a line to a text file.

    Raises:
        BlackBoxError: it cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as f:
            f.write(line)
    except OSError as e:
        raise BlackBoxError(
            f"Could not write {path} ({first_line(e)}). Make room, then go on."
        ) from e


def sweep(folder: str | Path) -> None:
    """Remove what processes that were killed while writing left in a folder."""
    with contextlib.suppress(OSError):
        for path in Path(folder).iterdir():
            if DRAFT.fullmatch(path.name) and path.is_file():
                path.unlink()


def read_text(path: str | Path, cure: str) -> str:
    """The text of a file, without the byte order mark that some editors put in front.

    Raises:
        BlackBoxError: it cannot be read, or is not text; ends with `cure`, what to do.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("not a regular file")
        return Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise BlackBoxError(f"{path} cannot be read ({first_line(e)}). {cure}") from e


def digest(value: Any) -> str:
    """SHA-256 of tensors and plain values in dictionaries and sequences."""
    sha = hashlib.sha256()
    update(sha, value)
    return sha.hexdigest()


def update(sha: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        sha.update(f"mapping {len(value)} ".encode())
        for key, item in value.items():
            update(sha, key)
            update(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"sequence {len(value)} ".encode())
        for item in value:
            update(sha, item)
    else:
        text = f"{type(value).__name__} {value!r}"
        sha.update(f"{len(text)} {text} ".encode(errors="surrogatepass"))


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Save tensors and plain Python values, and their digest."""
    content = {key: value for key, value in state.items() if key != "digest"}
    write_atomically(path, lambda f: dump({**content, "digest": digest(content)}, f))


def dump(state: dict[str, Any], f: BinaryIO) -> None:
    torch.save(state, f)


def load_state(path: str | Path) -> dict[str, Any]:
    """Load what `save_state` wrote, onto the CPU; nothing in the file is executed.

    A file without a "digest" was written by something else, or by version 0.1.0: whether it may
    be used is for the caller to say.

    Raises:
        BlackBoxError: no such file, not a checkpoint, or one that is damaged.
    """
    path = Path(path)
    if not path.is_file():
        beside = path.parent.glob("model*.pth.tar*") if path.parent.is_dir() else []
        there = sorted(p.name for p in beside)
        raise BlackBoxError(
            f"No checkpoint at {path}. "
            + (
                f"In that folder: {', '.join(there)}."
                if there
                else "Check --model-dir: it is the output folder of a training run."
            )
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as e:  # whose text advises to run what is there
        raise BlackBoxError(
            f"{path} is not a checkpoint that can be read: it is damaged, or holds something else "
            f"than tensors and plain values."
        ) from e
    except Exception as e:
        raise BlackBoxError(
            f"{path} is not a checkpoint that can be read ({first_line(e)})."
        ) from e
    if not isinstance(state, dict):
        raise BlackBoxError(f"{path} is not a checkpoint: it holds a {type(state).__name__}.")
    content = {key: value for key, value in state.items() if key != "digest"}
    if state.get("digest", digest(content)) != digest(content):
        raise BlackBoxError(
            f"{path} is damaged: its content does not match the digest that was written with it. "
            f"Put a sound copy in its place, or choose another --output-dir and train anew."
        )
    return state
