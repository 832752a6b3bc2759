"""The bill: what a question costs, and the counts that a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import BlackBoxError
from .interface import QUERY_IMAGES
from .prompt import Prompt

PURPOSES = ("training", "evaluation")
LOST, SERVICE = "lost", "service"
UNITS = ("queries", "image_queries")
Counts = dict[str, int]
Number = TypeVar("Number", int, int | float)


def query_cost(candidates: int, images: int) -> tuple[int, int]:
    """(queries, image queries) of scoring so many candidates on so many images."""
    return candidates * -(-images // QUERY_IMAGES), candidates * images


def price(prompt: Prompt | None, classes: int, images: int | None) -> tuple[int, int]:
    """(queries, image queries) of a question, for a task of so many classes.

    Args:
        prompt: whose candidates are scored; further texts see no image again. None: the features
            of the images are asked for, which cost what one candidate does.
        images: that they are scored on. None: the features of the prompt's texts are asked for, a
            query a candidate.
    """
    if prompt is None:
        return query_cost(1, images or 0)
    if images is None:
        return prompt.candidates(classes), 0
    return query_cost(prompt.candidates(classes), images)[0], len(prompt) * images


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


def usage_in(bill: Mapping[str, Any]) -> dict[str, int | float]:
    """What a service was sent, by a bill that may not say so."""
    section = bill.get(SERVICE, {})
    if not isinstance(section, Mapping) or not all(
        type(value) in (int, float) and 0 <= value < 2**63 for value in section.values()
    ):
        raise BlackBoxError(f"the section '{SERVICE}' holds no numbers of 0 or more")
    return dict(section)


def larger(a: Mapping[str, Number], b: Mapping[str, Number]) -> dict[str, Number]:
    """Each count where it is larger."""
    return {name: max(a.get(name, 0), b.get(name, 0)) for name in {**a, **b}}
