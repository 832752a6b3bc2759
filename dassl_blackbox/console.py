"""What the command-line tools share: their options, notes, the log of a run, their ends."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
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
    """Streams in one: where a reader is gone, or a disk full, what is written is dropped."""

    def __init__(self, *streams: Any) -> None:
        self.streams = [*streams]

    def write(self, text: str) -> None:
        for stream in self.streams:
            try:
                stream.write(text)
                stream.flush()
            except OSError:
                silence(stream)

    def flush(self) -> None:
        self.write("")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.streams[-1], name)


def silence(stream: TextIO) -> None:
    """Send what is in its buffer nowhere: the interpreter flushes once more at its end."""
    with suppress(OSError, ValueError):  # it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class RunLog(ExitStack):
    """A run's folder, which is held, and its log, into which stdout is copied from the start on.

    The file is opened late, when the run is known to be sound, so that a bad input leaves nothing
    behind. It is appended to: a resumed run has one log (Dassl's own logger would begin
    `log.txt-<date>`, which `parse_test_res.py` never sees).
    """

    lock: FolderLock | None = None  # of the folder
    path: Path | None = None  # once it is open

    def __enter__(self) -> RunLog:
        self.file = Console(StringIO())  # in its place, until then
        self.callback(self.end, sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = Console(self.file, sys.stdout), Console(sys.stderr)
        self.enter_context(handled(lambda signum, frame: sys.exit(128 + signum)))
        return self

    def end(self, stdout: TextIO, stderr: TextIO) -> None:
        sys.stdout, sys.stderr = stdout, stderr
        with suppress(OSError):
            self.file.close()
        if self.lock and (lock := FolderLock.held.get(self.lock.folder)):
            lock.release()  # the trainer's, which has taken it over

    def open(self) -> None:
        """Begin to write, in the folder that is held; what was printed before comes first."""
        if self.lock and not self.path:
            path, before = self.lock.folder / "log.txt", self.file.getvalue()
            self.file.streams = [open(path, "a", 1, "utf-8", "backslashreplace")]  # noqa: SIM115
            self.path = path
            self.file.write(before)


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
        return getattr(e, "code", 130) or 0
    except (BlackBoxError, DatasetError, ModuleNotFoundError) as e:
        text = str(e) + ": install that package" * isinstance(e, ModuleNotFoundError)
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
            log.file.write(traceback.format_exc())
            seen = f", or of something it uses; the traceback is in {log.path}" if log.path else ""
        what = f"{type(e).__name__} in {Path(place.filename).name}, line {place.lineno}"
        said, status = f"error: {what}: {first_line(e)}. This is a fault of the program{seen}.", 70
    said = masked(said)
    if log:
        log.file.write(said + "\n")
    print(*map(printable, said.splitlines()), sep="\n", file=sys.stderr)
    return status
