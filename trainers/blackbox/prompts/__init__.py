"""Prompt spaces: vectors `[P, d]` to the `Prompt` that an oracle is asked about."""

from ..oracle.prompt import Prompt
from .base import Space
from .context import context_keys, initial_context
from .fastfood import Fastfood, walsh_hadamard
from .lowrank import LowRankSpace
from .projection import RandomProjection, TwoProjections
from .space import build_space, space_keys
from .tokens import TokenSpace

__all__ = [
    "Fastfood",
    "LowRankSpace",
    "Prompt",
    "RandomProjection",
    "Space",
    "TokenSpace",
    "TwoProjections",
    "build_space",
    "context_keys",
    "initial_context",
    "space_keys",
    "walsh_hadamard",
]
