"""What a service has answered: in this process, and in a folder for the next one."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import first_line

SIZE = 2**32  # bytes of the folder; what was stored first goes first
FILE_BYTES = 2**30  # entries below it are rows of the one database file
WAIT = 20  # seconds for another process that writes
MARK = 16  # bytes of the digest ahead of a row
KEPT = 100_000  # rows of this process
ALIKE = 0.99  # cosine of two answers of one model to one question


def open_cache(folder: Path, limit: int, **settings: Any) -> Any:
    """A cache of `diskcache` that gives bytes alone: a pickle in the folder is never loaded.

    Args:
        folder: is made where it is missing, for its owner alone.
        limit: bytes.
        settings: others of `diskcache.Cache`.
    """
    library: Any = importlib.import_module("diskcache")

    class Plain(library.Disk):
        def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> bytes:
            raw = mode in (library.core.MODE_RAW, library.core.MODE_BINARY)
            found = super().fetch(mode, filename, value, read) if raw else b""
            return found if isinstance(found, bytes) else b""

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    policy = {"size_limit": limit, "eviction_policy": "least-recently-stored"}
    return library.Cache(str(folder), disk=Plain, **policy, **settings)


class AnswerCache:
    """Rows of numbers, float32, by what was asked; threads may share them.

    A folder that cannot be used, or that fails later, is passed over with a line about it: answers
    are asked for again then. A row that is damaged is as one that is missing.

    Args:
        folder: for other processes (`~` is the home folder); empty: there is none.
        owner: what says which model it is that answers; another owner has other answers.
    """

    def __init__(self, folder: str, *owner: str) -> None:
        self.folder, self.owner = folder, hashed(*owner)
        self.rows: dict[str, torch.Tensor] = {}
        self.disk: Any = None
        if folder:
            self.disk = self.tried(self.opened)

    def opened(self) -> Any:
        path = Path(self.folder).expanduser().absolute() / "answers"
        return open_cache(path, SIZE, timeout=WAIT, disk_min_file_size=FILE_BYTES)

    def tried(self, act: Callable[[], Any]) -> Any:
        """What `act` returns; where it fails, None, and the folder is not used any more."""
        try:
            return act()
        # the system's, sqlite3's, diskcache's own, or what a damaged file led to
        except Exception as e:
            self.disk = None
            print(
                f"Note: answers are not kept in ORACLE.CACHE, {self.folder} ({first_line(e)}); "
                f"what is not known in this process is asked for"
            )

    def get(self, *question: str) -> torch.Tensor | None:
        """The row of a question, if it is there and whole."""
        key, disk = hashed(self.owner, *question), self.disk
        if key not in self.rows and disk is not None:
            kept = self.tried(lambda: disk.get(key)) or b""
            if kept and kept[:MARK] == mark(kept[MARK:]):
                row = np.frombuffer(kept[MARK:], "<f4").astype(np.float32)
                self.remember(key, torch.from_numpy(row))
        return self.rows.get(key)

    def put(self, row: torch.Tensor, *question: str) -> None:
        key, disk, row = hashed(self.owner, *question), self.disk, row.cpu()
        self.remember(key, row.clone())  # not a view that keeps its whole batch alive
        if disk is not None:
            kept = bytes_of(row)
            self.tried(lambda: disk.set(key, mark(kept) + kept))

    def remember(self, key: str, row: torch.Tensor) -> None:
        if len(self.rows) >= KEPT:
            del self.rows[next(iter(self.rows))]
        self.rows[key] = row

    def belong(self, sample: torch.Tensor) -> bool:
        """Begin anew where the model has changed behind its name.

        Args:
            sample: its answer `[E]` to a question that is asked in every process.

        Returns:
            Whether what is on disk is of another model, and is passed over.
        """
        kept = self.get("sample")
        changed = kept is not None and not alike(kept, sample)
        if kept is None or changed:
            self.put(kept := sample, "sample")
        self.owner = hashed(self.owner, bytes_of(kept).hex())
        return changed


def hashed(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def bytes_of(row: torch.Tensor) -> bytes:
    return row.numpy().astype("<f4").tobytes()


def mark(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()[:MARK]


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and F.cosine_similarity(a, b, dim=0).item() > ALIKE
