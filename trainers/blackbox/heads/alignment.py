"""LFA's maths: orthogonal Procrustes, the adaptive re-ranking loss, disturbed features."""

from __future__ import annotations

from math import exp

import torch

NOISE, DROPOUT = 0.035, 0.05
TIE = 1e-8  # of the norm of X^T T: above the rounding of an SVD, below what its data decide


def procrustes(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The orthogonal W `[E, E]` with the least `|X W - T|`, for rows and targets `[M, E]`; float64.

    With fewer classes than E many have it, and which of them an SVD returns differs between
    LAPACK's drivers and devices. This is the one nearest to the identity, of which `X^T T` gets a
    little.
    """
    cross = rows.double().mT @ targets.double()
    cross.diagonal().add_(TIE * cross.norm())
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def between(matrix: torch.Tensor, beta: float) -> torch.Tensor:
    """`(1 - beta) W + beta I`."""
    return (1 - beta) * matrix + beta * torch.eye(len(matrix)).to(matrix)


def reranking(
    mapped: torch.Tensor, text: torch.Tensor, labels: torch.Tensor, k: int = 3, scale: float = 4.0
) -> torch.Tensor:
    """Adaptive re-ranking loss: mean of `max(0, d_y + (1 - t_j t_y) / scale - d_j)`.

    It is taken over images and over their k nearest class texts j; d are distances, y the label.

    Args:
        mapped: normalised `[M, E]`.
        text: `[C, E]`.
        labels: `[M]`.
    """
    distances = torch.cdist(mapped, text)
    near, which = distances.topk(min(k, len(text)), largest=False)
    margins = (1 - text @ text.mT)[labels].gather(1, which) / scale
    return (distances.gather(1, labels[:, None]) + margins - near).relu().mean()


def disturbed(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise on every number, in half of the calls, and a twentieth left out, in half of them."""
    noisy, thinned = torch.rand(2, generator=generator).lt(0.5).tolist()
    if noisy:
        rows = rows + NOISE * torch.randn(rows.shape, generator=generator).to(rows)
    if thinned:
        rows = rows * torch.rand(rows.shape, generator=generator).ge(DROPOUT).to(rows)
    return rows


def inertia(step: int, steps: int) -> float:
    """Share of the average that stays in a step: from 0.9 to almost 1 in the first half."""
    return 0.9 + 0.1 * (1 - exp(-5 * min(1.0, 2 * step / steps)))
