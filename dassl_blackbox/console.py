"""What the command-line tools share: their options, notes, the log of a run, their ends."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Any, TextIO

from .datasets.base import DatasetError
from .trainers.blackbox.errors import BlackBoxError, first_line, masked, printable
from .trainers.blackbox.files import FolderLock
from .trainers.blackbox.trainer import handled


class Help(argparse.HelpFormatter):
    """Prose that fills the width, commands as they are written, and defaults that are something."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if part.startswith((" ", "python ")) else fill(part, width, break_on_hyphens=False)
            for part in text.strip().split("\n\n")
        )

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        none = default in (None, "", [], argparse.SUPPRESS) or isinstance(default, bool)
        return text if none or "default" in text else f"{text} (default: %(default)s)"


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python <name>`."""
    return argparse.ArgumentParser(f"python {name}", description=description, formatter_class=Help)


def note(text: str) -> None:
    """A line on stderr about something that was left out."""
    print(f"note: {printable(text)}", file=sys.stderr)


class Console:
    """Stdout or stderr: once its reader is gone, what is written is dropped."""

    def __init__(self, stream: TextIO, copy: Callable[[str], None] = lambda text: None) -> None:
        self.stream, self.copy = stream, copy

    def write(self, text: str) -> None:
        self.copy(text)
        self.flush(text)

    def flush(self, text: str = "") -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            silence(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def silence(stream: TextIO) -> None:
    """Send what is in its buffer nowhere: the interpreter flushes once more at its end."""
    with suppress(OSError, ValueError):  # it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class RunLog:
    """A run's folder, which is held, and its log, into which stdout is copied from the start on.

    The file is opened late, when the run is known to be sound, so that a bad input leaves nothing
    behind. It is appended to: a resumed run has one log (Dassl's own logger would begin
    `log.txt-<date>`, which `parse_test_res.py` never sees). A full disk ends the log, and a closed
    terminal the copy there; neither ends the run.
    """

    lock: FolderLock | None = None  # of the folder
    path: Path | None = None  # once it is open

    def __enter__(self) -> RunLog:
        self.file: TextIO | None = StringIO()  # in its place, until then
        self.terminal = sys.stdout, sys.stderr
        self.signals = handled(lambda signum, frame: sys.exit(128 + signum))
        self.signals.__enter__()
        sys.stdout, sys.stderr = Console(sys.stdout, self.note), Console(sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self.signals.__exit__(None, None, None)
        sys.stdout.flush()
        sys.stdout, sys.stderr = self.terminal
        with suppress(OSError):
            if self.file:
                self.file.close()
        if self.lock and (lock := FolderLock.held.get(self.lock.folder)):
            lock.release()  # the trainer's, which has taken it over

    def open(self) -> None:
        """Begin to write, in the folder that is held; what was printed before comes first."""
        if self.lock and isinstance(self.file, StringIO):
            path, before = self.lock.folder / "log.txt", self.file.getvalue()
            self.file = open(path, "a", 1, "utf-8", "backslashreplace")  # noqa: SIM115
            self.path = path
            self.note(before)

    def note(self, text: str) -> None:
        """Into the log alone."""
        try:
            if self.file:
                self.file.write(text)
                self.file.flush()
        except OSError:
            self.file = None


def tool(main: Callable[[], int | None], log: RunLog | None = None) -> int:
    """Run a command; returns its exit status.

    An error that the user can mend is a sentence on stderr (1), and so is, with its place, one that
    nobody foresaw (70), whose traceback is in the run's log; DASSL_BLACKBOX_TRACEBACK raises it.
    Where the reader of the output has gone (`| head`) or Ctrl-C was pressed, nothing is said.
    """
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's, which may not be installed, ends the import
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for a terminal that knows ASCII alone
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        status = main()
        sys.stdout.flush()
        return status or 0
    except (KeyboardInterrupt, SystemExit) as e:
        code = getattr(e, "code", 130)
        if not isinstance(code, str):
            return code or 0
        said, status = code, 1
    except (BlackBoxError, DatasetError) as e:
        text = str(e)
        if "Original Traceback" in text:  # of a loader's process, from which it crossed
            text = text.rpartition(f"{type(e).__name__}: ")[2]
        said, status = f"error: {' '.join(text.strip().splitlines())}", 1
    except OSError as e:
        if isinstance(e, BrokenPipeError) and not log:
            silence(sys.stdout)
            return 141
        what = f"{e.filename or 'A file'} cannot be written or read ({e.strerror or e})"
        said, status = f"error: {what}. Make room, or choose another place for it.", 1
    except Exception as e:
        if os.environ.get("DASSL_BLACKBOX_TRACEBACK"):
            raise
        place, seen = traceback.extract_tb(e.__traceback__)[-1], ""
        if log:
            with suppress(OSError):
                log.open()
            log.note(traceback.format_exc())
            seen = f", or of something it uses; the traceback is in {log.path}" if log.path else ""
        what = f"{type(e).__name__} in {Path(place.filename).name}, line {place.lineno}"
        said = f"error: {what}: {first_line(e)}. This is a fault of the program{seen}."
        status = 70
    said = masked(said)
    if log:
        log.note(said + "\n")
    print(*map(printable, said.splitlines()), sep="\n", file=sys.stderr)
    return status
