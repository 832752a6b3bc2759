"""Penalised logistic regression beside given logits, its penalty chosen by cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(2, -19, -1))  # 10 … 1e-9
WORSE = 1.1  # times the least cross-entropy so far: the path ends
STEPS, PATH_STEPS = 200, 20  # of L-BFGS, of the last fit and of one on the path


@dataclass(frozen=True)
class Affine:
    """`scale z + x W + bias`, K at a time: scale `[K, 1, 1]`, W `[K, r, C]`, bias `[K, 1, C]`."""

    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, prior: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Logits `[K, N, C]` of given ones `[N, C]` and inputs `[N, r]`."""
        return self.scale * prior + x @ self.weight + self.bias


def prior_alone(prior: torch.Tensor, x: torch.Tensor, count: int = 1) -> Affine:
    """The start: the given logits, `count` times."""
    classes = prior.shape[1]
    weight, bias = x.new_zeros(count, x.shape[1], classes), x.new_zeros(count, 1, classes)
    return Affine(x.new_ones(count, 1, 1), weight, bias)


def errors(
    found: Affine, prior: torch.Tensor, x: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropies `[K, N]`."""
    logits = found(prior, x)
    return F.cross_entropy(logits.mT, labels.expand(len(logits), -1), reduction="none")


def fit(
    prior: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    penalty: float,
    seen: torch.Tensor | None = None,
    start: Affine | None = None,
    steps: int = STEPS,
) -> Affine:
    """Minimise the mean cross-entropy of `scale prior + x W + bias`, plus `penalty / 2 |W|^2`.

    Convex problems, K at once by L-BFGS, which are the same but for the rows that they see. W is
    searched in units in which the curvature along every component of x is about the same.

    Args:
        prior: logits `[N, C]`.
        x: `[N, r]`.
        labels: `[N]`.
        seen: whether a problem sees a row `[K, N]`; by default one problem that sees all.
        start: of the search; by default the prior.
        steps: at most.
    """
    share = x.new_ones(1, len(x)) if seen is None else seen.to(x)
    share = share / share.sum(1, keepdim=True)
    start = start or prior_alone(prior, x, len(share))
    unit = (x.square().mean(0) / prior.shape[1] + penalty).rsqrt()[:, None]  # [r, 1]
    parts = [start.scale.clone(), start.weight / unit, start.bias.clone()]
    for part in parts:
        part.requires_grad_()
    lbfgs = torch.optim.LBFGS(
        parts,
        max_iter=steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-8,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def now() -> Affine:
        scale, weight, bias = parts
        return Affine(scale, weight * unit, bias)

    def loss() -> torch.Tensor:
        lbfgs.zero_grad()
        found = now()
        error = (errors(found, prior, x, labels) * share).sum()
        value = error + penalty / 2 * found.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        lbfgs.step(loss)
    with torch.no_grad():
        found = now()
    return Affine(found.scale.detach(), found.weight, found.bias.detach())


def held_out_path(
    prior: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    held_out: torch.Tensor,
    worse: float = WORSE,
) -> dict[float, float]:
    """{penalty: mean cross-entropy of the rows that were held out}, from the largest penalty down.

    Args:
        held_out: whether a row is held out from a problem `[K, N]`; all views of an image are.
        worse: the path ends where the cross-entropy is above the least by this factor.
    """
    found: Affine | None = None
    path: dict[float, float] = {}
    for penalty in PENALTIES:
        found = fit(prior, x, labels, penalty, ~held_out, found, PATH_STEPS)
        path[penalty] = errors(found, prior, x, labels)[held_out].mean().item()
        if path[penalty] > worse * min(path.values()):
            break
    return path
