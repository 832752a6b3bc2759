"""The bill: what a request costs, and the counts that a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from ..run.errors import BlackBoxError
from .interface import QUERY_IMAGES
from .prompt import Prompt

PURPOSES = ("training", "evaluation")
LOST, SERVICE = "lost", "service"
UNITS = ("queries", "image_queries")
Counts = dict[str, int]


def query_cost(candidates: int, images: int) -> tuple[int, int]:
    """(queries, image queries) of scoring so many candidates on so many images."""
    return candidates * -(-images // QUERY_IMAGES), candidates * images


def prompt_cost(prompt: Prompt, classes: int, images: int) -> tuple[int, int]:
    """The same of a prompt for a task of so many classes: further texts see no image again."""
    queries, _ = query_cost(prompt.candidates(classes), images)
    return queries, len(prompt) * images


def counts_in(bill: Any, name: str) -> Counts:
    """The counts of one section of a bill.

    Raises:
        BlackBoxError: there is no such section, or a count is no whole number from 0 to 2^63 - 1.
    """
    section = bill.get(name) if isinstance(bill, Mapping) else None
    if not isinstance(section, Mapping):
        raise BlackBoxError(f"the counts have no section '{name}'")
    for unit in UNITS:
        count = section.get(unit)
        if type(count) is not int or not 0 <= count < 2**63:
            raise BlackBoxError(
                f"'{unit}' of '{name}' is {repr(count)[:40]}, not a whole number from 0 to 2^63 - 1"
            )
    return {unit: section[unit] for unit in UNITS}


def larger(a: Counts, b: Counts) -> Counts:
    return {unit: max(a[unit], b[unit]) for unit in UNITS}


def usage_in(bill: Mapping[str, Any]) -> dict[str, int | float]:
    """What a service was sent, by a bill that may not say so."""
    section = bill.get(SERVICE, {})
    sound = isinstance(section, Mapping) and all(
        type(value) in (int, float) and 0 <= value < 2**63 for value in section.values()
    )
    if not sound:
        raise BlackBoxError(f"the section '{SERVICE}' holds no numbers of 0 or more")
    return dict(section)


def refuse(constant: str) -> NoReturn:
    raise BlackBoxError(f"{constant} is not a count")
