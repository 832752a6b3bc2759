"""What heads on image features `[B, E]` and text features `[C, E]` share; all begin as zero-shot.

What each one adds lies in buffers whose shapes are known when it is built, so that a checkpoint is
loaded into a fresh one.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import nn


def mlp(outer: int, inner: int) -> nn.Sequential:
    """Two layers, `outer -> inner -> outer`."""
    return nn.Sequential(nn.Linear(outer, inner), nn.ReLU(), nn.Linear(inner, outer))


class FeatureHead(nn.Module):
    """Zero-shot: `forward(image [B, E], text [C, E]) -> logits [B, C]`.

    Args:
        scale: temperature of the logits.
    """

    reads = "features"

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.scale * image @ text.mT


class FeatureMap(FeatureHead):
    """`scale norm(x W) T^T`: W `[E, E]` is the identity at first (LFA, RLA).

    It is not tied to classes.
    """

    matrix: torch.Tensor

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__(scale)
        self.register_buffer("matrix", torch.eye(dim))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().forward(F.normalize(image @ self.matrix, dim=-1), text)


def discriminant(
    rows: torch.Tensor, labels: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
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
    return weight, -(weight * means).sum(-1) / 2 - log(classes)
