"""The context itself as the vector that is tuned (CBBT)."""

from __future__ import annotations

import torch

from ..oracle.prompt import Prompt
from .base import Space


class TokenSpace(Space):
    """`theta` is the context, flattened: `[P, n D]` -> contexts `[P, n, D]`.

    Args:
        start: initial context `[n, D]`.
    """

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.shape = tuple(start.shape)
        self.register_buffer("origin", start.flatten())

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        return Prompt(theta.view(-1, *self.shape))
