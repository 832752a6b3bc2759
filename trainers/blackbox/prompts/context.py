"""Where a context starts."""

from __future__ import annotations

from typing import Any

import torch

from ..keys import Key, text, where, whole
from ..oracle.interface import AccessDenied, Description
from ..run.errors import BlackBoxError


def context_keys(tokens: int, words: str) -> dict[str, Key]:
    """The keys that `initial_context` is given, with these defaults."""
    count = "context tokens n (ignored where CTX_INIT gives words)"
    return {
        "N_CTX": Key(tokens, whole(1, 1000), count, where("CTX_INIT", "")),
        "CTX_INIT": Key(words, text(), "words to start from; empty: random, N(0, 0.02^2)"),
    }


def need_contexts(description: Description) -> None:
    """Raise AccessDenied where nothing can be put in front of a class's text."""
    if not description.width:
        raise AccessDenied(
            f"{description.name} is behind a service that takes words and pictures and no contexts "
            f"(embeddings in front of a class name), which this method tunes. SONAR needs none."
        )


def initial_context(oracle: Any, words: str, n: int, generator: torch.Generator) -> torch.Tensor:
    """The context to start from, `[n, D]`.

    It is the embedding of the words, which then set n, or else `N(0, 0.02^2)` as CoOp has it.
    `oracle` is anything with `embed` and `description`.

    Raises:
        BlackBoxError: no token at all, or more than the text tower has positions for.
    """
    need_contexts(oracle.description)
    words = words.replace("_", " ").strip()
    context = (
        oracle.embed(words).cpu()
        if words
        else 0.02 * torch.randn(max(n, 0), oracle.description.width, generator=generator)
    )
    room = oracle.description.context_length - 3  # SOS, EOT and at least one token of a class name
    if not 1 <= len(context) <= room:
        raise BlackBoxError(
            f"A context of {len(context) if words else n} tokens was asked for (N_CTX, or the "
            f"words of CTX_INIT); {oracle.description.name} takes 1 to {room}."
        )
    print(f'Initial context: "{words or " ".join(["X"] * len(context))}" ({len(context)} tokens)')
    return context
