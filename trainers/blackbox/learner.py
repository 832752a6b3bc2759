"""What a checkpoint of a black-box run holds, and what evaluation needs."""

from __future__ import annotations

import torch
from torch import nn

from .oracle import Prompt
from .prompts import Space


class PromptLearner(nn.Module):
    """A prompt space, the vector in use and perhaps a head: all that evaluation needs.

    `forward()` gives the prompt, P = 1.
    """

    theta: torch.Tensor

    def __init__(self, space: Space, theta: torch.Tensor, head: nn.Module | None = None):
        super().__init__()
        self.space, self.head = space, head
        self.register_buffer("theta", theta.clone())

    def forward(self, pixels: torch.Tensor | None = None) -> Prompt:
        return self.space(self.theta[None], pixels)
