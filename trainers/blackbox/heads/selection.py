"""Heads on features, and how far few images are believed: by held-out ones, beside a prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 256  # rows of a step of gradient descent
RATIOS = tuple(10 ** (quarter / 4) for quarter in range(-8, 9))  # of spreads, to choose from
SHARPEST = 100.0  # factor of logits that never err: more would be the chance of a few images


@dataclass(frozen=True)
class Gathered:
    """What came back about all views that the budget paid for, view by view."""

    rows: Tensor  # scores `[N, A]`, or image features `[N, E]`
    labels: Tensor  # `[N]`
    index: Tensor  # `[N]`: every view of a training image has its number
    # features of the class texts `[C, E]`, where features are read
    texts: Tensor = field(default_factory=lambda: torch.empty(0))

    @cached_property
    def views(self) -> Tensor:
        """Which view of its image a row is of, from 0, the un-augmented one: `[N]`."""
        order = self.index.argsort(stable=True)
        sorted_index = self.index[order]
        rank = torch.arange(len(order)).to(order) - torch.searchsorted(sorted_index, sorted_index)
        return torch.empty_like(order).scatter(0, order, rank)

    def part(self, rows: Tensor) -> Gathered:
        """Some of the rows: numbers, or true and false `[N]`."""
        return replace(self, rows=self.rows[rows], labels=self.labels[rows], index=self.index[rows])

    def by_view(self) -> list[Tensor]:
        """Numbers of the rows of each view; one that the budget cut short is left out."""
        views = [(self.views == number).nonzero()[:, 0] for number in self.views.unique()]
        return [view for view in views if len(view) == len(views[0])]


Fit = Callable[[Gathered], list[dict[str, Tensor]]]  # the numbers by name, perhaps several times
LogitsOf = Callable[[Gathered, Gathered], Iterable[Tensor]]


class FeatureHead(nn.Module):
    """A method's equation, `logits(scale, image [B, E], text [C, E], **numbers)`: `[B, C]`.

    At first the numbers, which are fitted, give zero-shot. Their shapes are final: a checkpoint is
    loaded into a fresh head. `scale` is the temperature of the model's logits.
    """

    reads = "features"

    def __init__(self, logits: Callable[..., Tensor], scale: float, **numbers: Tensor) -> None:
        super().__init__()
        self.logits, self.scale = logits, scale
        self.class_bound = logits is not mapped  # a map serves other classes too
        for name, number in numbers.items():
            self.register_buffer(name, number)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.logits(self.scale, image, text, **dict(self.named_buffers()))


def mapped(scale: float, image: Tensor, text: Tensor, matrix: Tensor) -> Tensor:
    """`scale norm(x W) T^T` of a map W `[E, E]` (LFA, RLA)."""
    return scale * F.normalize(image @ matrix, dim=-1) @ text.mT


def discriminant(rows: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """`W = mu P` `[C, E]` and `b = -mu P mu^T / 2 - log C` `[C]` of rows `[M, E]`, in float64.

    `P = E pinv((M - 1) S + tr(S) I)` is a ridge inverse of the covariance S of the rows about the
    mean mu of their class. A class without rows has the mean of all.
    """
    x, member = rows.double(), F.one_hot(labels, classes).double()
    count = member.sum(0)[:, None]
    means = torch.where(count > 0, member.mT @ x / count.clamp_min(1), x.mean(0))
    residuals = x - means[labels]
    scatter = residuals.mT @ residuals  # (M - 1) S
    ridge = scatter.trace() / max(1, len(x) - 1) * torch.eye(x.shape[1]).to(x)
    weight = means @ (x.shape[1] * torch.linalg.pinv(scatter + ridge, hermitian=True))
    return weight, -(weight * means).sum(-1) / 2 - math.log(classes)


def minibatches(parts: list[Tensor], most: int, seed: int) -> Iterator[Tensor]:
    """Batches of rows without end: part after part, shuffled, and at most so many of each."""
    generator = torch.Generator().manual_seed(seed)
    for rows in cycle(parts):
        yield from rows[torch.randperm(len(rows), generator=generator)].split(BATCH)[:most]


def sharpness(logits: Tensor, labels: Tensor, prior: float = 0.0) -> float:
    """The factor a, at most `SHARPEST`, at which `softmax(a logits)` has the least cross-entropy.

    That of logits `[N, C]` summed, plus `prior log(a)^2 / 2`, is convex: its slope is bisected.
    """
    logits = logits.double()
    own = logits.gather(1, labels[:, None])[:, 0].sum().item()
    low, high = math.log(1 / SHARPEST), math.log(SHARPEST)
    for _ in range(24):
        middle = (low + high) / 2
        a = math.exp(middle)
        expected = ((a * logits).softmax(1) * logits).sum().item()
        rises = a * (expected - own) + prior * middle > 0
        low, high = (low, middle) if rises else (middle, high)
    return math.exp((low + high) / 2)


def surprise(logits: Tensor, labels: Tensor) -> float:
    """The sum of cross-entropies of logits `[N, C]` at their best scale."""
    a = sharpness(logits, labels)
    return F.cross_entropy(a * logits.double(), labels, reduction="sum").item()


def affinity(image: Tensor, keys: Tensor, beta: Tensor | float) -> Tensor:
    """`exp(-beta (1 - x K^T))` of images x `[..., E]` and keys K `[N, E]`: `[..., N]`."""
    return (beta * (image @ keys.mT - 1)).exp()


def agreement(logits: Tensor, rows: Tensor) -> float:
    """From 0 to 1: whether images that are alike are alike to the class texts too.

    The correlation, over pairs of images, of the cosines of their zero-shot logits `[N, C]` and of
    what else is known of them `[N, A]`: 0 below 0.6, 1 above 0.9.
    """
    if len(logits) < 3:
        return 0.0
    every, cosines = -(-len(logits) // 2000), []  # of very many images, a part all over
    for part in (logits[::every], rows[::every]):
        unit = F.normalize(part - part.mean(0), dim=1)
        first, second = torch.triu_indices(len(unit), len(unit), 1, device=part.device)
        cosines.append((unit @ unit.mT)[first, second].double())
    rho = torch.corrcoef(torch.stack(cosines))[0, 1].item()
    return min(1.0, max(0.0, (rho - 0.6) / 0.3)) if math.isfinite(rho) else 0.0


def spread(logits: Tensor) -> float:
    """Standard deviation of logits `[N, C]` about the mean of their row."""
    return (logits - logits.mean(1, keepdim=True)).square().mean().sqrt().item()


def away(value: float, centre: float, width: float) -> float:
    """Minus the logarithm of a prior: normal in `log10(value)`, of this width."""
    return (math.log10(value / centre) / width) ** 2 / 2


def folds_of(items: Sequence[Any], folds: int) -> Tensor:
    """A fold for each of Dassl's items `[N]`, evenly within a class; a picture has one."""
    latest: dict[int, int] = {}
    numbers: dict[str, int] = {}
    for item in items:
        if item.impath not in numbers:
            # classes take turns at which fold is first: with few images, it is the largest
            latest[item.label] = latest.get(item.label, item.label - 1) + 1
            numbers[item.impath] = latest[item.label] % folds
    return torch.tensor([numbers[item.impath] for item in items])


def judged(labels: Tensor) -> Tensor:
    """Whether an image of these labels `[N]` can be held out: its class has another one."""
    return labels.bincount()[labels] > 1


def choose(
    gathered: Gathered, folds: Tensor, priors: list[float], logits_of: LogitsOf, class_bound: bool
) -> int:
    """The number of the value at which held-out images surprise least; of equal ones the first.

    `logits_of` fits to its first argument and gives the logits `[M, C]` of its second, for every
    value in turn; priors are minus the logarithm of each value's. All views of an image are held
    out together, and it is judged un-augmented. Where what is fitted is bound to classes, an image
    that is the only one of its class stays.
    """
    fold, first = folds.to(gathered.index.device)[gathered.index], gathered.views == 0
    out = gathered.labels[first].bincount()[gathered.labels] > class_bound
    labels, answers = [], []
    for part in fold.unique():
        rows = out & (fold == part)
        if rows.any() and not rows.all():
            others = gathered.part(rows & first)
            labels.append(others.labels)
            answers.append(logits_of(gathered.part(~rows), others))
    costs = priors.copy()
    for number, logits in enumerate(zip(*answers, strict=True)):
        costs[number] += surprise(torch.cat(logits), torch.cat(labels))
    return costs.index(min(costs))


def blended(
    gathered: Gathered, folds: Tensor, head: FeatureHead, fit: Fit, priors: list[float]
) -> tuple[float, dict[str, Tensor]]:
    """alpha and the numbers with which the head is zero-shot plus alpha times what they add.

    They are of one of the fits that `fit` makes, whose priors (minus their logarithms) are given.
    alpha is chosen as a ratio of spreads, so that fits to few and to many images are measured
    alike. Its prior is normal in the logarithm (half a power of ten) about `U^-1.5`, at most 10: U
    is the spread of zero-shot, scaled as its right answers on the training images deserve.
    """

    def zero_shot(part: Gathered) -> Tensor:
        return head.scale * part.rows @ part.texts.mT

    def added(part: Gathered, numbers: dict[str, Tensor]) -> Tensor:
        return head.logits(0.0, part.rows, part.texts, **numbers)

    def unit(part: Gathered, numbers: dict[str, Tensor]) -> float:
        first = part.part(part.views == 0)
        return spread(zero_shot(first)) / max(spread(added(first, numbers)), 1e-12)

    def logits_of(fitted: Gathered, others: Gathered) -> Iterator[Tensor]:
        prior = zero_shot(others)
        for numbers in fit(fitted):
            logits = unit(fitted, numbers) * added(others, numbers)
            yield from (prior + ratio * logits for ratio in RATIOS)

    first = gathered.part(gathered.views == 0)
    logits = zero_shot(first)
    known = max(sharpness(logits, first.labels) * spread(logits), 1e-3)
    centre = min(10.0, known**-1.5)
    costs = [prior + away(ratio, centre, 0.5) for prior in priors for ratio in RATIOS]
    number, place = divmod(choose(gathered, folds, costs, logits_of, True), len(RATIOS))
    numbers = fit(gathered)[number]
    return RATIOS[place] * unit(gathered, numbers), numbers
