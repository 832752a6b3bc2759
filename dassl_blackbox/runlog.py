"""The log of a run."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from .runs import is_finished, read_result
from .textlog import LIFE, is_evaluated

__all__ = ["LIFE", "RunLog", "is_evaluated", "is_finished", "read_result"]


class Console:
    """Stdout or stderr: once its reader is gone, what is written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.gone = stream, False

    def write(self, text: str) -> None:
        try:
            if not self.gone:
                self.stream.write(text)
        except OSError:
            self.gone = True

    def flush(self) -> None:
        try:
            if not self.gone:
                self.stream.flush()
        except OSError:
            self.gone = True

    def close(self) -> None:
        """What is left in the buffer of a reader that is gone goes nowhere when Python ends."""
        if self.gone:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class RunLog:
    """Copies stdout into `<output>/log.txt`, from the start of the process on.

    The file is opened late, when the run is known to be sound, so that a bad input leaves nothing
    behind. It is appended to: a resumed run has one log (Dassl's own logger would begin
    `log.txt-<date>`, which `parse_test_res.py` never sees). A full disk ends the log, and a closed
    terminal the copy there; neither ends the run.

    Attributes:
        folder: where `open` may put the log, once that is known.
        path: of the log, once it is open.
    """

    def __init__(self) -> None:
        self.terminal = sys.stdout, sys.stderr
        self.console, self.errors = map(Console, self.terminal)
        self.file: TextIO | None = None
        self.held: list[str] = []
        self.folder: Path | None = None
        self.path: Path | None = None

    def open(self, output: str | Path | None) -> None:
        """Begin to write; what was printed before comes first.

        Raises:
            OSError: the file cannot be written.
        """
        if self.path is not None or output is None:
            return
        path = Path(output) / "log.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(  # noqa: SIM115  closed when the run ends
            path, "a", encoding="utf-8", errors="backslashreplace"
        )
        file.write("".join(self.held))
        file.flush()
        self.file, self.path = file, path
        self.held.clear()

    def write(self, text: str) -> None:
        self.console.write(text)
        self.note(text, end="")

    def note(self, text: str, end: str = "\n") -> None:
        """Into the log alone."""
        if self.path is None:
            self.held.append(text + end)
            return
        try:
            if self.file is not None:
                self.file.write(text + end)
                self.file.flush()
        except OSError:
            self.file = None

    def flush(self) -> None:
        self.console.flush()

    def isatty(self) -> bool:
        return not self.console.gone and self.console.isatty()

    def __enter__(self) -> RunLog:
        sys.stdout = self
        sys.stderr = self.errors
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        sys.stdout, sys.stderr = self.terminal
        self.console.close()
        self.errors.close()
        with contextlib.suppress(OSError):
            if self.file is not None:
                self.file.close()
