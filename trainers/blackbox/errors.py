"""Errors that a user can mend: a sentence or a few of what was wrong, and what to do."""

from collections.abc import Collection
from difflib import get_close_matches
from unicodedata import category


class BlackBoxError(Exception):
    """Base of them all: `train.py` prints the text and exits with status 1, without a traceback."""


class BudgetSpent(BlackBoxError):
    """The next request does not fit into the query budget, and was not made; training ends."""


def printable(text: str) -> str:
    r"""The text with escapes such as `\x1b` for what a terminal would obey or not show."""
    kept = (c if c.isprintable() or category(c) == "Zs" else ascii(c)[1:-1] for c in text)
    return "".join(kept)


def first_line(error: BaseException) -> str:
    """What an exception says, in one printable line; its kind where it says nothing."""
    lines = (printable(line.strip()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def nearest(name: object, valid: Collection[str]) -> str:
    """The valid names, the nearest ones first, as a phrase for an error."""
    lowered = {v.lower(): v for v in valid}
    close = [lowered[c] for c in get_close_matches(str(name).lower(), lowered, cutoff=0.4)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Valid names: {', '.join(sorted(valid))}."


def one_of(what: str, name: object, valid: Collection[str]) -> None:
    """Raise a BlackBoxError unless `name` is among the valid names."""
    if name not in valid:
        raise BlackBoxError(f"Unknown {what} '{name}': {nearest(name, valid)}")
