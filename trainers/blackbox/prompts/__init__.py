"""Prompt spaces: flat vectors `[P, d]` to the contexts `[P, n, D]` (and image tokens) that an oracle is asked about."""

from .context import Prompt, initial_context
from .fastfood import Fastfood, walsh_hadamard
from .lowrank import LowRankSpace

__all__ = ["Fastfood", "LowRankSpace", "Prompt", "initial_context", "walsh_hadamard"]
