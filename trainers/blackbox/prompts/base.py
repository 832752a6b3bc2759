"""What every prompt space is to the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..oracle.prompt import Prompt
from ..oracle.texts import Texts


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


class ClassTexts(Space):
    """The class texts without a context: nothing to tune, one candidate."""

    grants = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("origin", torch.zeros(0))

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        return Prompt()


class MoreTexts(ClassTexts):
    """The class texts, and M further texts, whose scores follow those of the classes.

    A checkpoint holds the texts.
    """

    def __init__(self, texts: Texts) -> None:
        super().__init__()
        self.texts = texts

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        return Prompt(texts=self.texts)

    def get_extra_state(self) -> dict[str, Any]:
        return {"names": list(self.texts.names), "template": self.texts.template}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.texts = Texts.of(state["names"], state["template"])
