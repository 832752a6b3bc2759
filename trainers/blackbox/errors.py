"""Errors that a user can mend: a sentence or a few of what was wrong, and what to do."""

import re
from collections.abc import Collection
from difflib import get_close_matches
from unicodedata import category
from urllib.parse import unquote

# names in a URL that stand before a secret
SECRET = re.compile(
    r"(?i)key|token|secret|passw|signature|auth|credential|jwt|bearer|subscription|^(sig|sas|code|pass|pwd?)$"
)
# in a URL, or what a path makes of it: user and password, which may have a slash; name and value
USER = re.compile(r"(?<=[:/])/([^/\s]*|[^/\s:]+:(?!\d+/)[^\s@]*)(@|%40)")
ASKED = re.compile(r"(?<=[?&#;])([^=&#;\s]+)=['\"]?[^&#;\s'\"]+")


class BlackBoxError(Exception):
    """Base of them all: `train.py` prints the text and exits with status 1, without a traceback."""


class BudgetSpent(BlackBoxError):
    """The next request does not fit into the query budget, and was not made; training ends."""


def printable(text: str) -> str:
    r"""The text with escapes such as `\x1b` for what a terminal would obey or not show."""
    kept = (c if c.isprintable() or category(c) == "Zs" else ascii(c)[1:-1] for c in text)
    return "".join(kept)


def masked(text: str) -> str:
    """A text without the passwords and keys of the URLs in it."""
    return ASKED.sub(
        lambda found: f"{found[1]}=…" if SECRET.search(unquote(found[1])) else found[0],
        USER.sub("/…@", text),
    )


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
