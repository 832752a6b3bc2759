"""One switch for the prompt space of every method that tunes the context alone."""

from __future__ import annotations

from typing import Any

import torch

from ..run.errors import one_of
from .base import Space
from .lowrank import LowRankSpace
from .projection import RandomProjection
from .tokens import TokenSpace

SPACES = ("context", "lowrank", "projection")


def build_space(name: str, start: torch.Tensor, cfg: Any, generator: torch.Generator) -> Space:
    """The space `TRAINER.<X>.SPACE`, around an initial context `[n, D]`.

    `context`: the tokens themselves (CBBT); `lowrank`: ZIP's, with the `ID` and `RANK` of
    `TRAINER.ZIP`; `projection`: CraFT's, with the `DIM` and `STD` of `TRAINER.CRAFT`.

    Raises:
        BlackBoxError: another name, or a size that the space refuses.
    """
    one_of("prompt space (SPACE)", name, SPACES)
    if name == "lowrank":
        return LowRankSpace(start, cfg.TRAINER.ZIP.ID, cfg.TRAINER.ZIP.RANK, generator)
    if name == "projection":
        return RandomProjection(start, cfg.TRAINER.CRAFT.DIM, cfg.TRAINER.CRAFT.STD, generator)
    return TokenSpace(start)
