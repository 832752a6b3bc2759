"""Keys of the configuration, and the validators that say what a key may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

SIZE = 100_000  # of a dimension, a width, a population: a typing error, not memory, ends the run
TEXT = re.compile("[^\0\ud800-\udfff]*")  # what a log and a file's name can hold
# names in a query that stand before a secret
SECRET = re.compile(
    r"key|token|secret|passw|signature|auth|credential|jwt|bearer|subscription|^(sig|sas|code|pass|pwd?)$",
    re.IGNORECASE,
)
TOKEN = re.compile(r"\b(sk-|hf_|eyJ)\w")  # how keys of services begin, wherever they stand
# in a URL, or what a path makes of it: a user with a password, which may have a slash; a name and
# its value
USER = re.compile(r"(?<=[:/])/([^/\s]*|[^/\s:]+:(?!\d+/)[^\s@]*)(@|%40)")
NAME = re.compile(r"[?&#;]([^=&#;]*)")
ASKED = re.compile(r"(?<=[?&#;])([^=&#;\s]+)=['\"]?[^&#;\s'\"]+")
brief = Repr()
brief.maxstring = brief.maxother = 80


@dataclass(frozen=True)
class Validator:
    """What a key may hold.

    Attributes:
        expects: the same as words, which complete "… is expected".
        fits: whether a value is valid.
        names: valid names, where there is a list; the nearest is offered.
        secret: whether an error leaves the value out, which may hold a password.
    """

    expects: str
    fits: Callable[[Any], bool]
    names: tuple[str, ...] = ()
    secret: bool = False

    def sentence(self, name: str, value: Any) -> str:
        """Why the key `name` cannot hold this value."""
        given = value if isinstance(value, (list, tuple)) else (value,)
        odd = (item for item in given if isinstance(item, str) and item not in self.names)
        hint = next(filter(None, (did_you_mean(item, self.names, 0.4) for item in odd)), "")
        hidden = self.secret and value is not None
        told = "not shown here, as it may hold a secret" if hidden else shown(value)
        return f"{name} is {told}; {self.expects} is expected.{hint}"


def always(node: Any) -> bool:
    return True


class Key(NamedTuple):
    """An entry of a table.

    Attributes:
        default: its value where none is given.
        valid: what it may hold.
        about: what it is.
        when: whether it is read, by the values of the node that it is in.
        inferred_with: whether evaluation reads it too, and no checkpoint carries it.
        names_file: whether it may be the path of a file, whose content counts; the validator's
            names are none.
    """

    default: Any
    valid: Validator
    about: str
    when: Callable[[Any], bool] = always
    inferred_with: bool = False
    names_file: bool = False


def where(name: str, value: Any) -> Callable[[Any], bool]:
    """The condition that another key of the same node has this value."""
    return lambda node: node[name] == value


def did_you_mean(name: str, names: Collection[str], cutoff: float = 0.75, most: int = 1) -> str:
    """The nearest of some names, as a sentence for the end of an error."""
    close = get_close_matches(name, names, n=most, cutoff=cutoff)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def masked(text: str) -> str:
    """A text without the passwords and keys of the URLs in it."""
    return ASKED.sub(
        lambda found: f"{found[1]}=…" if SECRET.search(unquote(found[1])) else found[0],
        USER.sub("/…@", text),
    )


def shown(value: Any) -> str:
    """A value in an error, cut short where it is long."""
    if value is None:
        return "blank"
    try:
        # before it is cut too, which can take away what a password is known by
        return masked(brief.repr(masked(value) if isinstance(value, str) else value))
    except ValueError:  # Python writes out no number of thousands of digits
        return "a number of thousands of digits"


# ---------------------------------------------------------------------- validators


def whole(low: int, high: int = 10**12) -> Validator:
    """Whole numbers from `low` to `high`."""
    return Validator(
        f"a whole number from {low:,} to {high:,}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(
    low: float = -math.inf,
    high: float = 1e9,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> Validator:
    """Numbers from `low` to `high`, or strictly `above` and `below`; none is infinite."""
    least = f"above {above:g}" if above > -math.inf else f"of {low:g} or more"
    most = f"below {below:g}" if below < math.inf else f"at most {high:g}"
    return Validator(
        f"a number {least} and {most}",
        lambda value: (
            type(value) in (int, float) and low <= value <= high and above < value < below
        ),
    )


def one(*names: str) -> Validator:
    """One of some names."""
    expects = f"one of {', '.join(names)}" if len(names) > 1 else f"{names[0]}, and nothing else,"
    return Validator(expects, lambda value: isinstance(value, str) and value in names, names)


def only(value: Any, why: str) -> Validator:
    """One value, since no other has an effect here."""
    return Validator(
        f"{value!r} ({why})", lambda given: type(given) is type(value) and given == value
    )


def flag() -> Validator:
    return Validator("True or False", lambda value: type(value) is bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(TEXT.fullmatch(value))


def text() -> Validator:
    return Validator("text that UTF-8 can hold", is_text)


def several(
    item: Validator, words: str, fits: Callable[[Sequence[Any]], bool] = always
) -> Validator:
    """A list or a tuple of valid items, which together fit too."""
    return Validator(
        words,
        lambda value: (
            isinstance(value, (list, tuple)) and all(map(item.fits, value)) and fits(value)
        ),
        item.names,
    )


def url() -> Validator:
    """Nothing, or the URL of a service with no secret in it: it is written into logs."""

    def fits(value: Any) -> bool:
        try:
            parts = urlsplit(value) if is_text(value) else None
            return value == "" or bool(
                parts
                and parts.scheme in ("http", "https")
                and parts.hostname
                and parts.port != 0  # whose look at it raises for one that is no number
                and not {"@", "%"} & set(parts.netloc)
                and not TOKEN.search(value)
                and not any(map(SECRET.search, NAME.findall(unquote(value))))
            )
        except ValueError:
            return False

    expects = "a URL without user, password or key (which BLACKBOX_KEY holds), http(s)://…,"
    return Validator(expects, fits, secret=True)
