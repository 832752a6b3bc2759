"""Heads on image features `[B, E]` and text features `[C, E]`; all begin as zero-shot.

Zero-shot is `scale x T^T`. What each one adds lies in buffers whose shapes are known when it is
built, so that a checkpoint is loaded into a fresh one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


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


class AddedLinear(FeatureHead):
    """`scale x T^T + x W^T + b`: W `[C, E]` and b `[C]` are 0 at first (GDA)."""

    class_bound = True
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, classes: int, dim: int, scale: float) -> None:
        super().__init__(scale)
        self.register_buffer("weight", torch.zeros(classes, dim))
        self.register_buffer("bias", torch.zeros(classes))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().forward(image, text) + image @ self.weight.mT + self.bias


class Prototypes(FeatureHead):
    """`scale x norm(T + D)^T`: D `[C, E]` is 0 at first (CLAP)."""

    class_bound = True
    shift: torch.Tensor

    def __init__(self, classes: int, dim: int, scale: float) -> None:
        super().__init__(scale)
        self.register_buffer("shift", torch.zeros(classes, dim))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().forward(image, F.normalize(text + self.shift, dim=-1))


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


def cache_scores(
    image: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, beta: float | torch.Tensor
) -> torch.Tensor:
    """`exp(-beta (1 - x K^T)) V`: `[B, C]` of images `[B, E]`, keys `[N, E]`, values `[N, C]`."""
    return (beta * (image @ keys.mT - 1)).exp() @ values


class Cache(FeatureHead):
    """`scale x T^T + alpha exp(-beta (1 - x K^T)) V`: alpha is 0 at first (Tip-Adapter).

    Args:
        images: N, of the training set: the checkpoint holds a key `[E]` and a value `[C]` for each.
    """

    class_bound = True
    keys: torch.Tensor
    values: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor

    def __init__(self, images: int, classes: int, dim: int, scale: float) -> None:
        super().__init__(scale)
        self.register_buffer("keys", torch.zeros(images, dim))
        self.register_buffer("values", torch.zeros(images, classes))
        self.register_buffer("alpha", torch.tensor(0.0))
        self.register_buffer("beta", torch.tensor(1.0))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        added = cache_scores(image, self.keys, self.values, self.beta)
        return super().forward(image, text) + self.alpha * added
