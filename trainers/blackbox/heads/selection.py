"""How far a few images are to be believed: what held-out ones say, beside a prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from ..answers import Gathered

Value = TypeVar("Value")
Added = TypeVar("Added", bound=Callable[[torch.Tensor], torch.Tensor])
RATIOS = tuple(10 ** (quarter / 4) for quarter in range(-8, 9))  # of spreads, to choose from
SHARPEST = 100.0  # factor of logits that never err: more would be the chance of a few images


def sharpness(logits: torch.Tensor, labels: torch.Tensor, prior: float = 0.0) -> float:
    """The factor a at which `softmax(a logits)` has the least cross-entropy, at most `SHARPEST`.

    A convex problem in one number, whose slope is halved.

    Args:
        logits: `[N, C]`.
        labels: `[N]`.
        prior: weight of `log(a)^2 / 2` beside the sum of cross-entropies.
    """
    logits = logits.double()
    own = logits.gather(1, labels[:, None])[:, 0].sum().item()
    low, high = math.log(1 / SHARPEST), math.log(SHARPEST)
    for _ in range(24):
        middle = (low + high) / 2
        a = math.exp(middle)
        expected = ((a * logits).softmax(1) * logits).sum().item()
        if a * (expected - own) + prior * middle > 0:
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


def surprise(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The sum of cross-entropies at the best scale: 0 where all are right and far from wrong.

    Logits `[N, C]` of different scales, and of heads that are too sure of themselves or not sure
    enough, are so compared by the answers that they lead to.
    """
    a = sharpness(logits, labels)
    return F.cross_entropy(a * logits.double(), labels, reduction="sum").item()


def agreement(logits: torch.Tensor, rows: torch.Tensor) -> float:
    """From 0 to 1: whether images that are alike are alike to the class texts too.

    The correlation, over pairs of training images, of the cosines of their zero-shot logits and of
    what else is known of them (each less its mean over the images), 0 below 0.6 and 1 above 0.9. It
    reads no labels, and so tells something where each image is the only one of its class: a low one
    says that the classes differ in little of what the model sees most of, and that an image's
    likeness to others is no reason to doubt its class text.

    Args:
        logits: `[N, C]`, centred.
        rows: `[N, A]`.
    """
    n = len(logits)
    if n < 3:
        return 0.0
    # of very many images, a part that is spread over all
    some = torch.arange(0, n, -(-n // 2000), device=logits.device)
    pairs = torch.triu_indices(len(some), len(some), 1, device=logits.device)
    first, second = (
        (unit @ unit.mT)[pairs[0], pairs[1]]
        for unit in (F.normalize(part - part.mean(0), dim=1) for part in (logits[some], rows[some]))
    )
    rho = torch.corrcoef(torch.stack([first.double(), second.double()]))[0, 1].item()
    return min(1.0, max(0.0, (rho - 0.6) / 0.3)) if math.isfinite(rho) else 0.0


def spread(logits: torch.Tensor) -> float:
    """Standard deviation of logits `[N, C]` about the mean of their row."""
    return (logits - logits.mean(1, keepdim=True)).square().mean().sqrt().item()


def away(value: float, centre: float, width: float) -> float:
    """Minus the logarithm of a prior: normal in `log10(value)`, of this width."""
    return (math.log10(value / centre) / width) ** 2 / 2


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


def judged(labels: torch.Tensor) -> torch.Tensor:
    """Whether an image of these labels `[N]` can be held out: its class has another one."""
    return labels.bincount()[labels] > 1


def held_out(
    gathered: Gathered, folds: torch.Tensor, class_bound: bool = True
) -> Iterator[tuple[Gathered, Gathered]]:
    """What is fitted to and what is judged, fold by fold.

    All views of an image are held out together, and it is judged un-augmented.

    Args:
        folds: of the training images.
        class_bound: whether what is fitted has numbers of every class; an image that is the only
            one of its class says nothing then, and stays.
    """
    fold, first = folds.to(gathered.index.device)[gathered.index], gathered.views == 0
    out = torch.ones_like(first)
    if class_bound:
        single = gathered.index[first][~judged(gathered.labels[first])]
        out = ~torch.isin(gathered.index, single)
    for number in fold.unique():
        rows = out & (fold == number)
        if rows.any() and not rows.all():
            yield gathered.part(~rows), gathered.part(rows & first)


def choose(
    gathered: Gathered,
    folds: torch.Tensor,
    values: Sequence[Value],
    logits_of: Callable[[Gathered, Gathered], Iterable[torch.Tensor]],
    prior: Callable[[Value], float] = lambda value: 0.0,
    class_bound: bool = True,
) -> Value:
    """The value at which held-out images surprise least; of equal ones the first.

    Where no image can be held out the prior alone decides.

    Args:
        folds, class_bound: of `held_out`.
        logits_of: fits to its first argument and gives the logits `[M, C]` of the rows of its
            second, for every value in turn.
        prior: minus the logarithm of a value's.
    """
    answers: list[list[torch.Tensor]] = [[] for _ in values]
    labels = []
    for fitted, others in held_out(gathered, folds, class_bound):
        labels.append(others.labels)
        for kept, logits in zip(answers, logits_of(fitted, others), strict=True):
            kept.append(logits)
    costs = [prior(value) for value in values]
    if labels:
        told = torch.cat(labels)
        costs = [
            cost + surprise(torch.cat(kept), told)
            for cost, kept in zip(costs, answers, strict=True)
        ]
    return values[costs.index(min(costs))]


def blended(
    gathered: Gathered,
    folds: torch.Tensor,
    zero_shot: Callable[[Gathered], torch.Tensor],
    fit: Callable[[Gathered], Sequence[Added]],
    priors: Sequence[float] = (0.0,),
) -> tuple[int, float, Added]:
    """Which of several fits is added to zero-shot, its weight alpha, and it, fitted to all.

    What is chosen is how far the added logits spread, in units of zero-shot's own spread: any fit,
    to few or to many images, is so measured alike. The prior of that ratio is normal in its
    logarithm (half a power of ten) about `U^-1.5`, at most 10: U is the spread of zero-shot where
    it is scaled as its right answers on the training images deserve. So zero-shot is left early
    where it knows little, and late where it knows much.

    Args:
        zero_shot: logits `[N, C]` of rows.
        fit: to what is given; functions of rows `[N, E]` to logits `[N, C]`.
        priors: minus the logarithm of one for each of the fits.
    """
    first = gathered.part(gathered.views == 0)
    prior = zero_shot(first).float()
    prior = prior - prior.mean(1, keepdim=True)
    known = max(sharpness(prior, first.labels) * spread(prior), 1e-3)
    centre = min(10.0, known**-1.5)

    def factor(first: Gathered, added: Added) -> float:
        return spread(zero_shot(first)) / max(spread(added(first.rows)), 1e-12)

    def logits_of(fitted: Gathered, others: Gathered) -> Iterator[torch.Tensor]:
        seen, prior = fitted.part(fitted.views == 0), zero_shot(others)
        for added in fit(fitted):
            logits = factor(seen, added) * added(others.rows)
            yield from (prior + ratio * logits for ratio in RATIOS)

    values = [(number, ratio) for number in range(len(priors)) for ratio in RATIOS]
    number, ratio = choose(
        gathered,
        folds,
        values,
        logits_of,
        lambda value: priors[value[0]] + away(value[1], centre, 0.5),
    )
    added = fit(gathered)[number]
    return number, ratio * factor(first, added), added
