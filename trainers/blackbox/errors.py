"""Errors that a user can mend.

Their text is one sentence or a few: what was wrong, what was expected, what to do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from difflib import get_close_matches
from signal import Signals


class BlackBoxError(Exception):
    """Base of them all: `train.py` prints the text and exits with status 1, without a traceback."""


class BudgetSpent(BlackBoxError):
    """The next request does not fit into the query budget.

    Raised before the call is made; it ends training, it is not a failure.
    """


class Interrupted(SystemExit):
    """A signal ended the run after what it had done was saved.

    Exits with 128 + signal, as shells do.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.name = Signals(signum).name


def printable(text: str) -> str:
    r"""The text with escapes such as `\x1b` for characters that a terminal would obey or not show:
    control characters, line ends, marks that turn the direction of writing.
    """
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text
    )


def first_line(error: BaseException) -> str:
    """What an exception says, in one printable line; its kind where it says nothing."""
    lines = (printable(line.strip()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def nearest(name: object, valid: Collection[str]) -> str:
    """The valid names, the nearest ones first, as a phrase for an error."""
    lowered = {v.lower(): v for v in valid}
    alike = {str(name).lower()} & lowered.keys()
    close = [lowered[c] for c in get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.4)]
    close = [lowered[c] for c in alike] or close
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Valid names: {', '.join(sorted(valid))}."


def one_of(what: str, name: object, valid: Collection[str]) -> None:
    """Raise a BlackBoxError unless `name` is among the valid names."""
    if name not in valid:
        raise BlackBoxError(f"Unknown {what} '{name}': {nearest(name, valid)}")
