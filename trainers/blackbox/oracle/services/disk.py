"""Bytes by name in a folder, for as long as the folder works."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ...run.errors import first_line

SIZE = 2**32  # bytes of the folder; what was stored first goes first
FILE_BYTES = 2**30  # entries below it are rows of the one database file
WAIT = 20  # seconds for another process that writes
MARK = 16  # bytes of the digest ahead of a value
Found = TypeVar("Found")


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
    return library.Cache(
        str(folder),
        disk=Plain,
        size_limit=limit,
        eviction_policy="least-recently-stored",
        **settings,
    )


class Disk:
    """A database of `diskcache` that holds bytes alone; nothing that is pickled is read or written.

    A folder that cannot be used, or that fails later, is passed over with a line about it: answers
    are asked for again then. A value that is damaged is as one that is missing.

    Args:
        folder: `~` is the home folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.cache = folder, None
        self.cache = self.tried(self.opened, None)

    def opened(self) -> Any:
        path = Path(os.path.expanduser(self.folder))
        if path.parts[:1] == ("~",):
            raise OSError("there is no home folder")
        return open_cache(
            path.absolute() / "answers", SIZE, timeout=WAIT, disk_min_file_size=FILE_BYTES
        )

    def tried(self, act: Callable[[], Found], otherwise: Found) -> Found:
        """What `act` returns; where it fails, the folder is not used any more."""
        try:
            return act()
        except (
            Exception
        ) as e:  # the system's, sqlite3's, diskcache's own, or what a damaged file led to
            self.cache = None
            print(
                f"Note: answers are not kept in ORACLE.CACHE, {self.folder} ({first_line(e)}); "
                f"what is not known in this process is asked for"
            )
            return otherwise

    def get(self, key: str) -> bytes | None:
        """The value of a name, if it is there and whole."""
        cache = self.cache
        if cache is None:
            return None
        kept = self.tried(lambda: cache.get(key), None)
        return kept[MARK:] if kept and kept[:MARK] == mark(kept[MARK:]) else None

    def put(self, values: Mapping[str, bytes]) -> None:
        """Keep values, all in one transaction."""
        cache = self.cache
        if cache is None:
            return

        def write() -> None:
            with cache.transact():
                for key, value in values.items():
                    cache.set(key, mark(value) + value)

        self.tried(write, None)


def mark(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()[:MARK]
