"""Prompt spaces: vectors `[P, d]` to the `Prompt` that an oracle is asked about."""

from ..oracle.prompt import Prompt
from .base import ClassTexts, Space
from .context import initial_context
from .fastfood import Fastfood, walsh_hadamard
from .lowrank import LowRankSpace
from .projection import RandomProjection, TwoProjections
from .space import build_space
from .tokens import TokenSpace

__all__ = [
    "ClassTexts",
    "Fastfood",
    "LowRankSpace",
    "Prompt",
    "RandomProjection",
    "Space",
    "TokenSpace",
    "TwoProjections",
    "build_space",
    "initial_context",
    "walsh_hadamard",
]
