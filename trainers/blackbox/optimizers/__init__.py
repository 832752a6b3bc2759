"""Optimisers that ask and are told; `contract.py` says what each of them has."""

from .cmaes import CMAES
from .directions import RandomDirections
from .fixed import Fixed
from .gaussnewton import SubspaceGaussNewton
from .spsa import SPSA

__all__ = ["CMAES", "SPSA", "Fixed", "RandomDirections", "SubspaceGaussNewton"]
