"""What the command-line tools share: notes, output that any terminal takes, quiet endings."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from textwrap import fill

from .datasets.base import DatasetError
from .trainers.blackbox.errors import BlackBoxError, first_line, printable

PLAIN = {"±": "+-", "–": "-", "…": "..."}  # where a terminal knows ASCII alone


class Help(argparse.HelpFormatter):
    """A description whose prose fills the width and whose commands stay as they are written, and
    the defaults that are something.
    """

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


def plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler for encoding: what stands for characters that the terminal lacks."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    words = [PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing]
    return "".join(words), error.end


def tool(main: Callable[[], int | None]) -> int:
    """Run a command-line tool; returns the exit status.

    An error that the user can mend is a sentence on stderr, and so is, with its place, one that
    nobody foresaw (70). Where the reader of the output has gone (`| head`) or Ctrl-C was pressed,
    nothing is said.
    """
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's, which may not be installed, ends the import
    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain", line_buffering=True)
    try:
        try:
            return main() or 0
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (BlackBoxError, DatasetError) as e:
        print(f"error: {printable(' '.join(str(e).splitlines()))}", file=sys.stderr)
        return 1
    except SystemExit as e:
        if not isinstance(e.code, str):
            raise
        print(*map(printable, e.code.splitlines()), sep="\n", file=sys.stderr)
        return 1
    except Exception as e:
        place = traceback.extract_tb(e.__traceback__)[-1]
        print(
            f"error: {type(e).__name__} in {Path(place.filename).name}, line {place.lineno}: "
            f"{first_line(e)}. This is a fault of the program.",
            file=sys.stderr,
        )
        return 70
