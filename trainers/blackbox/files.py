"""Files that are whole or not there, a run's checkpoints, and the lock of its folder.

Checkpoints lie where Dassl's do, `<output>/<model name>/model.pth.tar-<epoch>`, and the file
`checkpoint` names the newest; `model-resume.pth.tar` goes when a model of an epoch follows it.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import ENOLCK, EOPNOTSUPP
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from weakref import WeakValueDictionary

import torch
from filelock import FileLock, Timeout

from .errors import BlackBoxError, first_line

MODEL = "prompt_learner"  # the folder of a run's models
BEST, RESUME, POINTER = "model-best.pth.tar", "model-resume.pth.tar", "checkpoint"


def write_atomically(path: str | Path, content: bytes | Callable[[BinaryIO], Any]) -> None:
    """Write bytes, or whatever `content(file)` writes, beside `path`, then rename.

    Where that fails, a BlackBoxError says so, the old file is whole, and nothing of the new stays.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)  # that of a writer that was killed
        with open(draft, "xb") as f:  # never through a link that somebody put there
            content(f) if callable(content) else f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(draft, path)
    except (OSError, RuntimeError) as e:  # the latter is torch.save's of a full disk
        raise BlackBoxError(
            f"Could not write {path} ({first_line(e)}). What was there before is whole; make room "
            "or choose another --output-dir, then run the same command again to resume."
        ) from e
    finally:
        with suppress(OSError):
            draft.unlink()


def read_text(path: str | Path, cure: str) -> str:
    """The text of a file without a byte order mark; an error ends with `cure`, what to do."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("not a regular file")  # a pipe would be waited for
        return Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise BlackBoxError(f"{path} cannot be read ({first_line(e)}). {cure}") from e


def digest(value: Any, sha: Any = None) -> str:
    """SHA-256 of tensors and plain values in dictionaries and sequences."""
    sha = sha or hashlib.sha256()
    if isinstance(value, torch.Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        sha.update(f"mapping {len(value)} ".encode())
        for key, item in value.items():
            digest(key, sha)
            digest(item, sha)
    elif isinstance(value, (list, tuple)):
        sha.update(f"sequence {len(value)} ".encode())
        for item in value:
            digest(item, sha)
    else:
        text = f"{type(value).__name__} {value!r}"
        sha.update(f"{len(text)} {text} ".encode(errors="surrogatepass"))
    return sha.hexdigest()


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Save tensors and plain Python values, and their digest."""
    content = {key: value for key, value in state.items() if key != "digest"}
    content["digest"] = digest(content)
    write_atomically(path, lambda f: torch.save(content, f))


def load_state(path: str | Path) -> dict[str, Any]:
    """Load tensors and plain values, onto the CPU, and check the digest that is among them.

    Nothing in the file is executed. That of version 0.1.0, or of something else, has no digest.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        content = {key: value for key, value in state.items() if key != "digest"}
        if "digest" in state and state["digest"] != digest(content):
            raise ValueError("its content does not match its digest")
    except Exception as e:  # torch's own text advises to run what is there
        raise BlackBoxError(
            f"{path} is not a checkpoint that can be read: it is damaged, or holds something else "
            f"than tensors and plain values. Put a sound copy in its place, or choose another "
            f"--output-dir and train anew."
        ) from e
    return state


def save(state: dict[str, Any], folder: str | Path, name: str) -> Path:
    """Write a checkpoint, then the pointer file, which does not name the best one."""
    path, pointer = Path(folder, name), Path(folder, POINTER)
    if not pointer.exists():  # models without it are damage, which a kill here is not
        write_atomically(pointer, name.encode())
    save_state(path, state)
    if name != BEST:
        write_atomically(pointer, f"{name}\n".encode())
    if name not in (BEST, RESUME):
        for left in path.parent.glob(f"*{RESUME}*"):  # and what a kill left of its draft
            left.unlink()
    return path


def newest(folder: str | Path) -> Path | None:
    """The checkpoint that the pointer file names; None where there is none."""
    pointer = Path(folder, POINTER)
    models = sorted(path.name for path in pointer.parent.glob("model*.pth.tar*"))
    if not models:
        return None
    name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    if name not in models:
        raise BlackBoxError(
            f"{pointer} does not name the newest model. Write its name into it "
            f"({', '.join(models)}), or choose another --output-dir."
        )
    return Path(folder, name)


def missing(path: Path, run: Path) -> BlackBoxError:
    """That a file of a run is not there, and which output folders near it may have been meant."""
    models = sorted(model.name for model in path.parent.glob("model*.pth.tar*"))
    gone = "" if run.is_dir() else f" {run}: no such folder."
    there = f" In that folder: {', '.join(models)}." if models else gone
    pointers = [run / POINTER, run.parent / POINTER, *sorted(run.glob(f"*/*/{POINTER}"))]
    found = [str(pointer.parent.parent) for pointer in pointers if pointer.is_file()]
    hint = f" Did you mean {' or '.join(found[:3])}?" if found else ""
    return BlackBoxError(
        f"There is no {path}.{there} Give the output folder of a training run, with --model-dir "
        f"in evaluation.{hint}"
    )


class FolderLock:
    """Holds an output folder, which is made if need be, until it is released or the process ends.

    The lock is the kernel's, so it cannot outlive its process; the file `.lock` names the holder to
    others and is removed at the end. Where this process holds the folder already, for an earlier
    trainer, the new one takes over, and `check` of the former raises from then on.
    """

    held: ClassVar[WeakValueDictionary[Path, FolderLock]] = WeakValueDictionary()
    file: FileLock | None = None
    made: list[Path]

    def __init__(self, folder: str | Path) -> None:
        if not folder:
            raise BlackBoxError("OUTPUT_DIR is empty: name the run's folder with --output-dir.")
        self.folder = Path(os.path.realpath(folder))
        former = self.held.get(self.folder)
        if former and former.file and former.file.is_locked:
            self.made, self.file, former.file = former.made, former.file, None
        else:
            self.acquire(self.folder / ".lock")
        self.held[self.folder] = self

    def acquire(self, path: Path) -> None:
        self.made = [folder for folder in path.parents if not folder.exists()]
        self.file = FileLock(path, blocking=False, thread_local=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file.acquire()
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        except OSError as e:
            if e.errno in (ENOLCK, EOPNOTSUPP):  # of some network file systems
                print(f"Note: {self.folder} cannot be locked ({e}); start one run at a time in it")
                return
            if isinstance(e, Timeout):
                why = f"is in use by {path.read_text()}. Wait until that run has ended"
            else:
                why = f"cannot be written to ({e.strerror or e}). Make room"
            self.release()
            raise BlackBoxError(
                f"The output folder {self.folder} {why}, or choose another --output-dir."
            ) from e

    def check(self) -> None:
        """Raise unless this object still holds the folder."""
        if self.file is None:
            raise BlackBoxError(
                f"{self.folder} belongs to another trainer of this process by now. Go on with that."
            )

    def release(self) -> None:
        """Give the folder back; one that was made for this run and is still empty is removed."""
        if self.file is None:
            return
        with suppress(OSError):
            if self.file.is_locked:  # not in a process that was forked from the holder
                Path(self.file.lock_file).unlink(missing_ok=True)
            self.file.release()
            for path in self.made:
                path.rmdir()
        self.file = None

    __del__ = release
