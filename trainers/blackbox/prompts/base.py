"""What every prompt space is to the loop."""

from __future__ import annotations

from collections.abc import Sequence
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

    A checkpoint holds the texts, and the numbers of those that evaluation asks about: `kept`.
    """

    def __init__(self, texts: Texts, kept: Sequence[int]) -> None:
        super().__init__()
        self.texts, self.kept = texts, list(kept)

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        texts = self.texts
        if not self.training:
            texts = Texts.of((texts.names[i] for i in self.kept), texts.template)
        return Prompt(texts=texts or None)

    def get_extra_state(self) -> dict[str, Any]:
        names, template = list(self.texts.names), self.texts.template
        return {"names": names, "template": template, "kept": self.kept}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.texts, self.kept = Texts.of(state["names"], state["template"]), state["kept"]
