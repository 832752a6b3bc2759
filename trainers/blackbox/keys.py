"""What a key of the configuration may hold: a type with a range, or a list of names.

The `keys` of a trainer, `config.py` and `hostkeys.py` are tables of these rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, NamedTuple

MOST, LARGE = 10**12, 1e9  # of whole numbers, and of numbers, without a bound of their own
SIZE = 100_000  # of a dimension, a width, a population: a typing error, not memory, ends the run
# what is wrong for most keys: examples for those who try a key out
ODD = (None, "", "zebra", True, -7, 7, 0.5, math.nan, math.inf, (), ["zebra"], [None], (0.5, "x"))
# names in a query that stand before a secret
SECRET = re.compile(
    r"key|token|secret|passw|signature|auth|credential|jwt|bearer|subscription|^(sig|sas|code|pass|pwd?)$",
    re.IGNORECASE,
)
# in a URL, or what a path makes of it: a user with a password, which may have a slash; a name and
# its value
USER = re.compile(r"(?<=[:/])/([^/\s]*|[^/\s:]+:(?!\d+/)[^\s@]*)(@|%40)")
ASKED = re.compile(r"(?<=[?&#;])([^=&#;\s]+)=[^&#;\s'\"]+")
brief = Repr()
brief.maxstring = brief.maxother = 80


@dataclass(frozen=True)
class Rule:
    """What a key may hold.

    Attributes:
        expects: the same as words, which complete "… is expected".
        fits: whether a value is valid.
        good: values that are, those at the limits among them.
        bad: values that are not.
        names: valid names, where there is a list; the nearest is offered.
        most: the bound that `expects` leaves out.
        hides: whether an error leaves out the value, which may hold a secret.
    """

    expects: str
    fits: Callable[[Any], bool]
    good: tuple[Any, ...]
    bad: tuple[Any, ...]
    names: tuple[str, ...] = ()
    most: float | None = None
    hides: bool = False

    def sentence(self, name: str, value: Any) -> str:
        """Why the key `name` cannot hold this value."""
        expects = self.expects
        if self.most is not None and is_number(value) and value > self.most:
            expects += f" and at most {self.most:,.0f}"
        given = value if isinstance(value, (list, tuple)) else (value,)
        close = [
            near
            for item in given
            if isinstance(item, str) and item not in self.names
            for near in get_close_matches(item, self.names, n=1, cutoff=0.4)
        ]
        hint = f" Did you mean {close[0]}?" if close else ""
        hidden = self.hides and value is not None
        told = "not shown here, as it may hold a secret" if hidden else shown(value)
        return f"{name} is {told}; {expects} is expected.{hint}"


def always(node: Any) -> bool:
    return True


class Key(NamedTuple):
    """An entry of a table.

    Attributes:
        default: its value where none is given.
        rule: what it may hold.
        about: what it is.
        when: whether it is read, by the values of the node that it is in.
        inferred_with: whether evaluation reads it too, and no checkpoint carries it.
        names_file: whether it may be the path of a file, whose content counts; the rule's names
            are none.
    """

    default: Any
    rule: Rule
    about: str
    when: Callable[[Any], bool] = always
    inferred_with: bool = False
    names_file: bool = False


def where(name: str, value: Any) -> Callable[[Any], bool]:
    """The condition that another key of the same node has this value."""
    return lambda node: node[name] == value


def masked(text: str) -> str:
    """A text without the passwords and keys of the URLs in it."""
    return ASKED.sub(
        lambda found: f"{found[1]}=…" if SECRET.search(found[1]) else found[0],
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


def is_whole(value: Any) -> bool:
    return type(value) is int


def is_number(value: Any) -> bool:
    """A finite number; no bool."""
    return is_whole(value) or (type(value) is float and math.isfinite(value))


def make(
    expects: str,
    fits: Callable[[Any], bool],
    good: Sequence[Any],
    bad: Sequence[Any] = (),
    names: tuple[str, ...] = (),
    most: float | None = None,
) -> Rule:
    """A rule; whatever else of `ODD` does not fit joins its bad examples."""
    also = tuple(value for value in ODD if not fits(value))
    return Rule(expects, fits, tuple(good), (*bad, *also), names, most)


def whole(low: int, high: int = MOST) -> Rule:
    """Whole numbers from `low` to `high`."""
    expects = (
        f"a whole number of {low:,} or more"
        if high == MOST
        else f"a whole number from {low:,} to {high:,}"
    )
    return make(
        expects,
        lambda value: is_whole(value) and low <= value <= high,
        (low, low + 1, high),
        (low - 1, high + 1, low + 0.5, str(low)),
        most=MOST if high == MOST else None,
    )


def number(
    low: float | None = None,
    high: float = LARGE,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> Rule:
    """Finite numbers from `low` to `high`, or strictly `above` and `below`."""
    first = f"above {above:g}" if low is None else f"of {low:g} or more"
    bounded = below < math.inf or high < LARGE
    last = f" and below {below:g}" if below < math.inf else f" and at most {high:g}"
    least, most = above if low is None else low, min(high, below)

    def fits(value: Any) -> bool:
        return is_number(value) and least <= value <= most and above < value < below

    limits = (least, most, least + min(1.0, (most - least) / 2))
    return make(
        f"a number {first}{last if bounded else ''}",
        fits,
        [value for value in limits if fits(value)],
        [*(value for value in limits if not fits(value)), least - 1.0, most + 1.0, 1e300, "1.0"],
        most=None if bounded else LARGE,
    )


def one(*names: str) -> Rule:
    """One of some names."""
    expects = f"one of {', '.join(names)}" if len(names) > 1 else f"{names[0]}, and nothing else,"
    return make(
        expects,
        lambda value: isinstance(value, str) and value in names,
        names,
        (names[0].upper() + "_",),
        names,
    )


def only(value: Any, why: str) -> Rule:
    """One value, since no other has an effect here."""
    words = "nothing" if value == "" else str(value)
    return make(
        f"{words} ({why})",
        lambda given: type(given) is type(value) and given == value,
        (value,),
        (not value if isinstance(value, bool) else f"{value}x" if value == "" else 2,),
    )


def flag() -> Rule:
    return make("True or False", lambda value: type(value) is bool, (True, False), (0, 1, "True"))


def is_text(value: Any) -> bool:
    """Text that a log and a file's name can hold."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def text(least: int = 0) -> Rule:
    """Text of so many characters or more."""
    return make(
        "text that UTF-8 can hold" if least == 0 else "text that is not empty",
        lambda value: is_text(value) and len(value.strip()) >= least,
        ("x", "ä b", *([""] if least == 0 else [])),
        ("\0", "\udcff", *([""] if least else [])),
    )


def several(
    item: Rule,
    words: str,
    counts: range,
    good: Sequence[Any],
    bad: Sequence[Any] = (),
    fits: Callable[[Sequence[Any]], bool] = lambda items: True,
) -> Rule:
    """A list or a tuple of so many valid items, which together fit too."""
    return make(
        words,
        lambda value: (
            isinstance(value, (list, tuple))
            and len(value) in counts
            and all(map(item.fits, value))
            and fits(value)
        ),
        good,
        bad,
        item.names,
    )


def distinct(*names: str) -> Rule:
    """Some of these names, each of them once."""
    return several(
        one(*names),
        f"a tuple of names out of {', '.join(names)}, each named once,",
        range(len(names) + 1),
        [(), (names[0],), list(names)],
        [names[0], (names[0], names[0]), (names[0].upper() + "_",)],
        lambda items: len(set(items)) == len(items),
    )
