"""A value that the training images choose: most of those that were held out are right with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from ..collector import Gathered

Value = TypeVar("Value")


def held_out_rows(
    gathered: Gathered, folds: torch.Tensor, class_bound: bool = True
) -> list[torch.Tensor]:
    """Which rows are held out in turn: sets of problems `[K, N]`, true where a row is held out.

    All views of an image together. Where most images are the only one of their class, so that a
    class is held out with its image, each view of all images besides: the first says what learning
    costs other classes, the second, too kindly, what it gains its own.

    Args:
        folds: of the training images.
        class_bound: whether what is fitted has numbers of every class; one that has none is judged
            fairly by images of classes that it never saw.
    """
    fold, views = folds.to(gathered.index.device)[gathered.index], gathered.views
    sets = [fold == fold.unique()[:, None]]
    labels = gathered.labels[views == 0]
    single = labels.bincount()[labels] == 1
    if class_bound and views.any() and 2 * int(single.sum()) > len(labels):
        sets.append(views == views.unique()[:, None])
    return sets


def held_out(
    gathered: Gathered, folds: torch.Tensor, class_bound: bool = True
) -> Iterator[tuple[Gathered, Gathered, float]]:
    """What is fitted to, what is judged, and the weight of that, of `held_out_rows` in turn.

    Of a fold the un-augmented images are judged, of a view all. Every image weighs 1 in each set of
    problems. Nothing where all rows are of one fold.

    Args:
        folds, class_bound: of `held_out_rows`.
    """
    first = gathered.views == 0
    for number, problems in enumerate(held_out_rows(gathered, folds, class_bound)):
        for rows in problems:
            if not rows.all():
                judged, weight = (rows, 1 / len(problems)) if number else (rows & first, 1.0)
                yield gathered.part(~rows), gathered.part(judged), weight


def choose(
    gathered: Gathered,
    folds: torch.Tensor,
    values: Sequence[Value],
    logits_of: Callable[[Gathered, Gathered], Iterable[torch.Tensor]],
    class_bound: bool = True,
) -> Value:
    """The value with most held-out images right; of equal ones the first.

    Args:
        folds, class_bound: of `held_out_rows`.
        values: to choose from, those nearest to zero-shot first.
        logits_of: fits to its first argument and gives the logits `[M, C]` of the rows of its
            second, for every value in turn.
    """
    right = [0.0] * len(values)
    for fitted, judged, weight in held_out(gathered, folds, class_bound):
        for number, logits in enumerate(logits_of(fitted, judged)):
            right[number] += weight * int((logits.argmax(-1) == judged.labels).sum())
    return values[right.index(max(right))]
