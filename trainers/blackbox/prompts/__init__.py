"""Prompt spaces: flat vectors `[P, d]` to the contexts `[P, n, D]` (and image tokens) that an oracle is asked about."""

from .context import Prompt, initial_context
from .fastfood import Fastfood, walsh_hadamard
from .lowrank import LowRankSpace
from .projection import RandomProjection, TwoProjections
from .space import build_space
from .tokens import TokenSpace

__all__ = [
    "Fastfood",
    "LowRankSpace",
    "Prompt",
    "RandomProjection",
    "TokenSpace",
    "TwoProjections",
    "build_space",
    "initial_context",
    "walsh_hadamard",
]
