"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar
from weakref import WeakMethod, WeakValueDictionary

from ..errors import BlackBoxError

try:
    import fcntl
    from os import O_NOFOLLOW, O_NONBLOCK, register_at_fork
except ImportError as e:
    raise ImportError(
        "Windows is not served: an output folder is locked as Unix does it. Use Linux, macOS, or "
        "the Windows Subsystem for Linux."
    ) from e

NAME = ".lock"


class FolderLock:
    """Holds an output folder, which is made if need be, until it is released or the process ends.

    The lock is the kernel's (`flock`), so it cannot outlive its process, whatever ended that; the
    file `.lock` names the holder to others and is removed at the end. Worker processes that are
    forked from the holder do not keep it. Where this process holds the folder already, for an
    earlier trainer, the new one takes over, and `check` of the former raises from then on.

    Raises:
        BlackBoxError: another process holds the folder, or it cannot be made or written to.
    """

    held: ClassVar[WeakValueDictionary[Path, FolderLock]] = WeakValueDictionary()

    def __init__(self, folder: str | Path) -> None:
        self.file, self.folder = -1, Path(os.path.realpath(folder))
        self.made: list[Path] = []
        former = self.held.get(self.folder)
        if former is not None and former.file >= 0:
            self.file, self.made = former.file, former.made
            former.forget()
        else:
            self.open()
        self.held[self.folder] = self
        register_at_fork(after_in_child=in_child(WeakMethod(self.leave)))

    def open(self) -> None:
        try:
            missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self.made = missing
            while self.file < 0:
                self.file = self.try_open()
        except OSError as e:
            self.release()
            raise BlackBoxError(
                f"The output folder {self.folder} cannot be written to ({e.strerror or e}). Choose "
                f"another --output-dir, or make room."
            ) from e

    def try_open(self) -> int:
        """A descriptor of the locked file; -1 where the file was removed before it was locked."""
        path = self.folder / NAME
        file = os.open(path, os.O_RDWR | os.O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o644)
        try:
            if not locked(file):
                raise BlackBoxError(
                    f"{self.folder} is in use by {holder(file)}. Wait until that run has ended, or "
                    f"choose another --output-dir."
                )
            if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
                os.truncate(file, 0)
                os.write(file, json.dumps([os.getpid(), socket.gethostname()]).encode())
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return -1

    def check(self) -> None:
        """Raise unless this object still holds the folder."""
        if self.file < 0:
            raise BlackBoxError(
                f"{self.folder} belongs to another trainer of this process by now, which has its "
                f"bill. Go on with that one, or build a new trainer."
            )

    def release(self) -> None:
        """Give the folder back; one that was made for this run and is still empty is removed."""
        with contextlib.suppress(OSError):
            if self.file >= 0:
                (self.folder / NAME).unlink()
        with contextlib.suppress(OSError):
            for path in self.made:
                path.rmdir()
        self.leave()

    def leave(self) -> None:
        """Close this process's descriptor and touch nothing else."""
        if self.file >= 0:
            os.close(self.file)
        self.forget()

    def forget(self) -> None:
        self.file, self.made = -1, []

    __del__ = release


def in_child(leave: WeakMethod) -> Callable[[], None]:
    """What a forked process does with its copy of a lock, while there is one."""

    def forked() -> None:
        method = leave()
        if method is not None:
            method()

    return forked


def locked(file: int) -> bool:
    """Lock a file without waiting; False where another process holds it.

    Some network file systems have no locks: there, a line says that nothing guards the folder.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        print(f"Note: the output folder cannot be locked ({e}); start one run at a time in it")
    return True


def holder(file: int) -> str:
    """Who wrote a lock file, as words."""
    try:
        pid, host = json.loads(os.pread(file, 1000, 0))
        return f"process {int(pid)} on {host}"
    except (OSError, ValueError, TypeError):
        return "another process"
