"""One switch for the prompt space of every method that tunes the context alone."""

from __future__ import annotations

from typing import Any

import torch

from ..keys import SIZE, Key, number, one, where, whole
from ..run.errors import one_of
from .base import Space
from .lowrank import LowRankSpace
from .projection import RandomProjection
from .tokens import TokenSpace

SPACES = ("context", "lowrank", "projection")


def space_keys(default: str) -> dict[str, Key]:
    """`SPACE` with this default, and the sizes of the spaces, as keys of a method.

    Those of `lowrank` are ZIP's, those of `projection` CraFT's.
    """
    lowrank, projection = where("SPACE", "lowrank"), where("SPACE", "projection")
    dimension = "intrinsic dimension; a token gets m = ID // n numbers"
    return {
        "SPACE": Key(default, one(*SPACES), "prompt space"),
        "ID": Key(500, whole(1, 10**7), dimension, lowrank),
        "RANK": Key(5, whole(1, SIZE), "rank r of the low-rank part", lowrank),
        "DIM": Key(512, whole(1, SIZE), "length of the vector z that is projected", projection),
        "STD": Key(0.2, number(above=0), "deviation of the projection's entries", projection),
    }


def build_space(node: Any, start: torch.Tensor, generator: torch.Generator) -> Space:
    """The space that a method's `node` of the configuration names, around a context `[n, D]`.

    `context`: the tokens themselves (CBBT); `lowrank`: ZIP's, with `ID` and `RANK`; `projection`:
    CraFT's, with `DIM` and `STD`.

    Raises:
        BlackBoxError: another name, or a size that the space refuses.
    """
    one_of("prompt space (SPACE)", node.SPACE, SPACES)
    if node.SPACE == "lowrank":
        return LowRankSpace(start, node.ID, node.RANK, generator)
    if node.SPACE == "projection":
        return RandomProjection(start, node.DIM, node.STD, generator)
    return TokenSpace(start)
