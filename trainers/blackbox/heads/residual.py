"""Residual MLPs on logits or features (CraFT, CBBT, JOLT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..run.errors import BlackBoxError
from .featured import FeatureHead


def mlp(outer: int, inner: int) -> nn.Sequential:
    if inner < 1:
        raise BlackBoxError(f"A head of width {inner} was asked for; 1 or more is needed.")
    return nn.Sequential(nn.Linear(outer, inner), nn.ReLU(), nn.Linear(inner, outer))


class PredictionRefinement(nn.Module):
    """CraFT's head (ICML 2024, section 3.3), on logits `[..., C]`.

    `refined = raw + MLP(raw)`, `C -> width -> C`.
    """

    class_bound = True  # a class is a number of its own to it

    def __init__(self, classes: int, width: int = 256) -> None:
        super().__init__()
        self.mlp = mlp(classes, width)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.mlp(logits)


class FeatureAdapter(FeatureHead):
    """CBBT's adapter in CLIP-Adapter's form, on image features `[..., E]`.

    `f <- ratio MLP(f) + (1 - ratio) f`, normalised anew; then logits `scale f T^T`.

    Features pass unchanged until `active` is set; a checkpoint remembers it.

    Args:
        dim: E.
        width: of the hidden layer.
        scale: temperature of the logits.
        ratio: share of the MLP's output.
    """

    active: torch.Tensor

    def __init__(self, dim: int, width: int, scale: float, ratio: float = 0.2) -> None:
        super().__init__(scale)
        self.mlp, self.ratio = mlp(dim, width), ratio
        self.register_buffer("active", torch.tensor(False))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Logits `[..., B, C]` of image features `[B, E]` and text features `[..., C, E]`."""
        return super().forward(self.adapted(image), text)

    def adapted(self, image: torch.Tensor) -> torch.Tensor:
        if not self.active:
            return image
        return F.normalize(self.ratio * self.mlp(image) + (1 - self.ratio) * image, dim=-1)
