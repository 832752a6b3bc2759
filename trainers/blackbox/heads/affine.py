"""An affine head on the scores of class texts and further texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def centred(scores: torch.Tensor, parts: Sequence[int]) -> torch.Tensor:
    """Scores `[..., A]`, every part of an image's row less its own mean.

    So that log-probabilities serve as logits do: they differ by one number an image and list.

    Args:
        parts: lengths of the lists that were answered together; their sum is A.
    """
    pieces = scores.split(list(parts), dim=-1)
    return torch.cat([piece - piece.mean(-1, keepdim=True) for piece in pieces], dim=-1)


class AffineScores(nn.Module):
    """`scale z + c M + bias` of scores `[..., A]`, z those of the C classes, c all of them centred.

    It begins as the model's own answer about the classes: scale 1, M and bias 0.

    Args:
        parts: lengths of the lists of texts; the first is C.
    """

    class_bound = True  # a class is a number of its own to it
    scale: torch.Tensor
    matrix: torch.Tensor
    bias: torch.Tensor

    def __init__(self, parts: Sequence[int]) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("matrix", torch.zeros(sum(parts), parts[0]))
        self.register_buffer("bias", torch.zeros(parts[0]))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        prior = scores[..., : self.parts[0]]
        return self.scale * prior + centred(scores, self.parts) @ self.matrix + self.bias
