"""Optimisers that ask and are told; `contract.py` says what each of them has."""

from .cmaes import CMAES
from .directions import DecayingDirections, RandomDirections
from .gaussnewton import SubspaceGaussNewton
from .spsa import RULES, SPSA
