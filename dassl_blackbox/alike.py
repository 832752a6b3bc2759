"""Which pictures are alike, by whitened scores: for what is `unknown`, and what to label next."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .trainers.blackbox.heads.scores import Linear, axes_of, unit_rows
from .trainers.blackbox.heads.selection import Gathered, judged


def nearness(rows: Tensor, gathered: Gathered, classes: int) -> dict[str, Tensor]:
    """What tells whether a picture is of one of the classes: the axes of what is read of all views
    `[N, A]`, the classes' mean `directions` along them `[C, r]`, and the `least` cosine with the
    nearest of them: 95 % of the images reach it that are held out in turn, of classes with two.
    """
    axes, own = axes_of(rows), F.one_hot(gathered.labels, classes).float()
    z, first = unit_rows(rows, axes), gathered.views == 0
    sums, labels, numbers = own.mT @ z, gathered.labels[first], gathered.index[first]
    of_image = z.new_zeros(int(gathered.index.max()) + 1, z.shape[1])
    of_image = of_image.index_add_(0, gathered.index, z)[numbers]
    cosines = z[first] @ F.normalize(sums, dim=1).mT
    others = F.normalize(sums[labels] - of_image, dim=1)
    cosines.scatter_(1, labels[:, None], (z[first] * others).sum(1, keepdim=True))
    least = cosines.amax(1)[judged(labels)].quantile(0.05)
    return {**axes._asdict(), "directions": F.normalize(sums, dim=1), "least": least}


def nearest(rows: Tensor, near: Mapping[str, Tensor]) -> Tensor:
    """Cosines `[N]` of rows `[N, A]` with the nearest class, by what `nearness` told."""
    directions = unit_rows(rows, Linear(near["weight"], near["bias"]))
    return (directions @ near["directions"].mT).amax(1)


def spread_out(worth: Tensor, rows: Tensor, others: Tensor, count: int) -> list[int]:
    """Numbers of so many rows `[N, A]` that are of worth `[N]` and unlike others `[M, A]`, and each
    other: one by one that of the largest `worth (1 - cosine with the nearest)`.
    """
    z = unit_rows(torch.cat([others, rows]), axes_of(rows))
    mine, chosen = z[len(others) :], list[int]()
    nearest = F.pad(mine @ z[: len(others)].mT, (1, 0)).amax(1)  # 0 at least
    while len(chosen) < min(count, len(rows)):
        left = worth * (1 - nearest)
        left[chosen] = -1.0
        chosen.append(int(left.argmax()))
        nearest = torch.maximum(nearest, mine @ mine[chosen[-1]])
    return chosen
