"""A value that the training images choose: most of those that were held out are right with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from ..collector import Gathered

Value = TypeVar("Value")


def part(gathered: Gathered, rows: torch.Tensor) -> Gathered:
    """Some of the rows."""
    return replace(
        gathered,
        rows=gathered.rows[rows],
        labels=gathered.labels[rows],
        index=gathered.index[rows],
    )


def held_out(gathered: Gathered, folds: torch.Tensor) -> Iterator[tuple[Gathered, Gathered]]:
    """All views of the images of the other folds, and the un-augmented ones of this fold.

    Nothing where all rows are of one fold.

    Args:
        folds: of the training images.
    """
    fold, first = folds[gathered.index], gathered.view(0)
    numbers = fold.unique().tolist()
    for number in numbers if len(numbers) > 1 else ():
        yield part(gathered, fold != number), part(gathered, (fold == number) & first)


def choose(
    gathered: Gathered,
    folds: torch.Tensor,
    values: Sequence[Value],
    logits_of: Callable[[Gathered, Gathered], Iterable[torch.Tensor]],
) -> Value:
    """The value with most held-out images right; of equal ones the first.

    Args:
        folds: of the training images.
        values: to choose from, those nearest to zero-shot first.
        logits_of: fits to its first argument and gives the logits `[M, C]` of the rows of its
            second, for every value in turn.
    """
    right = [0] * len(values)
    for fitted, judged in held_out(gathered, folds):
        for number, logits in enumerate(logits_of(fitted, judged)):
            right[number] += int((logits.argmax(-1) == judged.labels).sum())
    return values[right.index(max(right))]
