"""Training images in parts that are held out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def folds_of(items: Sequence[Any], folds: int) -> torch.Tensor:
    """A fold for every training image `[N]`, spread evenly over those of a class.

    A picture that is listed twice has one fold.

    Args:
        items: Dassl's, with `label` and `impath`.
        folds: their number.
    """
    latest: dict[int, int] = {}
    numbers: dict[str, int] = {}
    for item in items:
        if item.impath not in numbers:
            # classes take turns at which fold gets their first image; else, with few images a
            # class, the first fold would be the largest
            latest[item.label] = latest.get(item.label, item.label - 1) + 1
            numbers[item.impath] = latest[item.label] % folds
    return torch.tensor([numbers[item.impath] for item in items])
