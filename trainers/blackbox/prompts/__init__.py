"""Prompt spaces: flat vectors `[P, d]` to the contexts `[P, n, D]` (and image tokens) that an oracle is asked about."""

from .context import Prompt, initial_context
from .fastfood import Fastfood, walsh_hadamard
from .lowrank import LowRankSpace
from .projection import RandomProjection, TwoProjections
from .tokens import TokenSpace

__all__ = ["Fastfood", "LowRankSpace", "Prompt", "RandomProjection", "TokenSpace", "TwoProjections", "initial_context", "walsh_hadamard"]
