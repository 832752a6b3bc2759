"""What every prompt space is to the loop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..oracle.prompt import Prompt


class Space(nn.Module):
    """Turns vectors `theta [P, d]` into a `Prompt` of P candidates; `origin [d]` is the start.

    `grants` are what the prompt needs to be let in. Only a space that `changes_pictures` is given
    the pixels `[B, 3, H, W]` of the batch.
    """

    grants: tuple[str, ...] = ("contexts",)
    changes_pictures = False
    origin: torch.Tensor

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        raise NotImplementedError

    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Learn from the un-augmented training pictures `[B, 3, H, W]`, before the first step."""
