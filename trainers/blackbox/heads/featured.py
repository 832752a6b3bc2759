"""What heads on image features `[B, E]` and text features `[C, E]` share; all begin as zero-shot.

What each one adds lies in buffers whose shapes are known when it is built, so that a checkpoint is
loaded into a fresh one.
"""

from __future__ import annotations

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
