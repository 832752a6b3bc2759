"""What methods share that tune a context: where it starts, and the space that it is tuned in."""

from __future__ import annotations

from typing import Any

import torch

from ..config import SIZE, Key, number, one, text, where, whole
from ..errors import BlackBoxError
from ..oracle.interface import AccessDenied
from ..oracle.prompt import Prompt
from .base import Space
from .lowrank import LowRankSpace
from .projection import RandomProjection


class TokenSpace(Space):
    """`theta` is the context `[n, D]` itself, flattened (CBBT)."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.shape = tuple(start.shape)
        self.register_buffer("origin", start.flatten())

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, n D]` -> Prompt with contexts `[P, n, D]`."""
        return Prompt(theta.view(-1, *self.shape))


def context_keys(tokens: int, words: str) -> dict[str, Key]:
    """The keys that `initial_context` is given, with these defaults."""
    count = "context tokens n (ignored where CTX_INIT gives words)"
    return {
        "N_CTX": Key(tokens, whole(1, 1000), count, where("CTX_INIT", "")),
        "CTX_INIT": Key(words, text(), "words to start from; empty: random, N(0, 0.02^2)"),
    }


def initial_context(oracle: Any, words: str, n: int, generator: torch.Generator) -> torch.Tensor:
    """The context to start from, `[n, D]`.

    It is the embedding of the words, which then set n, or else `N(0, 0.02^2)` as CoOp has it.
    `oracle` is anything with `embed` and `description`.

    Raises:
        AccessDenied: nothing can be put in front of a class's text.
        BlackBoxError: no token at all, or more than the text tower has positions for.
    """
    model = oracle.description
    if not model.width:
        raise AccessDenied(
            f"{model.name} is behind a service that takes words and pictures and no contexts "
            f"(embeddings in front of a class name), which this method tunes. SONAR needs none."
        )
    words = words.replace("_", " ").strip()
    if words:
        context = oracle.embed(words).cpu()
    else:
        context = 0.02 * torch.randn(n, model.width, generator=generator)
    room = model.context_length - 3  # SOS, EOT and at least one token of a class name
    if not 1 <= len(context) <= room:
        raise BlackBoxError(
            f"A context of {len(context)} tokens was asked for (N_CTX, or the words of CTX_INIT); "
            f"{model.name} takes 1 to {room}."
        )
    print(f'Initial context: "{words or " ".join(["X"] * len(context))}" ({len(context)} tokens)')
    return context


def space_keys(default: str) -> dict[str, Key]:
    """`SPACE` with this default, and the sizes of the spaces: ZIP's lowrank, CraFT's projection."""
    lowrank, projection = where("SPACE", "lowrank"), where("SPACE", "projection")
    dimension = "intrinsic dimension; a token gets m = ID // n numbers"
    return {
        "SPACE": Key(default, one("context", "lowrank", "projection"), "prompt space"),
        "ID": Key(500, whole(1, 10**7), dimension, lowrank),
        "RANK": Key(5, whole(1, SIZE), "rank r of the low-rank part", lowrank),
        "DIM": Key(512, whole(1, SIZE), "length of the vector z that is projected", projection),
        "STD": Key(0.2, number(above=0), "deviation of the projection's entries", projection),
    }


def build_space(node: Any, start: torch.Tensor, generator: torch.Generator) -> Space:
    """The space that a method's `node` of the configuration names, around a context `[n, D]`."""
    if node.SPACE == "lowrank":
        return LowRankSpace(start, node.ID, node.RANK, generator)
    if node.SPACE == "projection":
        return RandomProjection(start, node.DIM, node.STD, generator)
    return TokenSpace(start)
