"""Prompt spaces: vectors `[P, d]` to the `Prompt` that an oracle is asked about."""

from ..oracle.prompt import Prompt
from .base import Space
from .contexts import TokenSpace, build_space, context_keys, initial_context, space_keys
from .lowrank import Fastfood, LowRankSpace, walsh_hadamard
from .projection import RandomProjection, TwoProjections

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
