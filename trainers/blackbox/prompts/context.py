"""Where a context starts, and what a prompt space returns."""

from typing import NamedTuple

import torch

from ..run.errors import BlackBoxError


class Prompt(NamedTuple):
    """What is asked of the oracle for P candidates."""

    contexts: torch.Tensor  # [P, n, D]
    image_tokens: torch.Tensor | None = None  # [P, n_V, W]


def initial_context(oracle, words, n, generator):
    """The context to start from, `[n, D]`: the embedding of the words, which then set n, or else `N(0, 0.02^2)` as CoOp has it.

    `oracle` is anything with `embed` and `description`.

    Raises:
        BlackBoxError: no token at all, or more than the text tower has positions for.
    """
    words = words.replace("_", " ").strip()
    context = (
        oracle.embed(words).cpu()
        if words
        else 0.02 * torch.randn(max(n, 0), oracle.description.width, generator=generator)
    )
    room = oracle.description.context_length - 3  # SOS, EOT and at least one token of a class name
    if not 1 <= len(context) <= room:
        raise BlackBoxError(
            f"A context of {len(context) if words else n} tokens was asked for (N_CTX, or the words of CTX_INIT); "
            f"{oracle.description.name} takes 1 to {room}."
        )
    print(f'Initial context: "{words or " ".join(["X"] * len(context))}" ({len(context)} tokens)')
    return context
