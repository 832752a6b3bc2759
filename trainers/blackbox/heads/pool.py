"""Labels for many pictures at once: those that are alike get alike answers (transductive)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .scores import ScoreHead

NEIGHBOURS, POWER = 5, 3  # of a picture, and of a cosine, which is the weight of a pair
RIDGE = 0.3  # of the mean eigenvalue, added to all
PULL, SHARPER = 3.0, 2.0  # weight of the neighbours, factor of the head's logits
ROUNDS, CHUNK = 30, 2048


def neighbours(rows: Tensor) -> Tensor:
    """Sparse symmetric weights `[N, N]`: cos^3 of pairs of whitened rows `[N, A]` that are near."""
    centred = rows.double() - rows.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    values = values.clamp_min(0)
    ridge = RIDGE * values[values >= 1e-6 * values[-1]].mean()
    units = (values + ridge).clamp_min(1e-30).rsqrt()  # rows that are all alike have no spread
    z = F.normalize((centred @ vectors * units).float(), dim=1)
    n, pairs, weights = len(z), [], []
    for first in range(0, n, CHUNK):
        cosines = z[first : first + CHUNK] @ z.mT
        own = torch.arange(len(cosines), device=z.device)
        cosines[own, first + own] = -2
        values, others = cosines.topk(min(NEIGHBOURS, n - 1), dim=1)
        mine = (first + own)[:, None].expand_as(others)
        pairs.append((torch.minimum(mine, others) * n + torch.maximum(mine, others)).flatten())
        weights.append(values.clamp_min(0).flatten() ** POWER)
    pair, place = torch.cat(pairs).unique(return_inverse=True)
    weight = z.new_zeros(len(pair)).scatter_(0, place, torch.cat(weights))
    both = torch.stack([pair // n, pair % n])
    indices, values = torch.cat([both, both.flip(0)], 1), torch.cat([weight, weight])
    return torch.sparse_coo_tensor(indices, values, (n, n), check_invariants=True).coalesce()


def pooled(logits: Tensor, rows: Tensor, prototypes: Tensor) -> Tensor:
    """Probabilities `[N, C]` of pictures that were seen together.

    `F <- (Y + 3 W F) / (1 + 3 W 1)`, Y the head's answers from its logits `[N, C]`, and W the
    weights of neighbours in what it read `[N, A]`: a picture without one that is like it keeps its
    own answer. Among them are the classes' mean training images `[C, A]`, 0 where there is none.
    """
    there = prototypes.abs().sum(1) > 0
    own = torch.cat([(SHARPER * logits).softmax(1), torch.eye(logits.shape[1]).to(logits)[there]])
    weights = neighbours(torch.cat([rows, prototypes[there]]))
    pull = PULL * torch.sparse.sum(weights, 1).to_dense()[:, None]
    answer = own
    for _ in range(ROUNDS):
        answer = (own + PULL * (weights @ answer)) / (1 + pull)
    return answer[: len(logits)]


class Pool:
    """An evaluator around Dassl's: told logits and what they were made from, it pools them all."""

    def __init__(self, inner: Any, head: ScoreHead) -> None:
        self.inner, self.head = inner, head

    def reset(self) -> None:
        self.told: list[tuple[Tensor, Tensor]] = []
        self.inner.reset()

    def process(self, answers: Tensor, labels: Tensor) -> None:
        self.told.append((answers, labels))

    def evaluate(self) -> Mapping[str, float]:
        answers, labels = (torch.cat(parts) for parts in zip(*self.told, strict=True))
        logits, rows = answers.tensor_split([len(self.head.classes)], dim=1)
        prototypes = self.head.prototypes
        if not self.head.at_home:  # which are of other classes
            prototypes = rows.new_zeros(logits.shape[1], rows.shape[1])
        self.inner.process(pooled(logits, rows, prototypes), labels)
        return self.inner.evaluate()
