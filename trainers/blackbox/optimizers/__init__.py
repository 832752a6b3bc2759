"""Optimisers that ask and are told; `contract.py` says what each of them has."""

from .cmaes import CMAES
from .directions import RandomDirections
from .gaussnewton import SubspaceGaussNewton
from .memory import RememberedJacobian
from .spsa import SPSA

__all__ = ["CMAES", "RandomDirections", "RememberedJacobian", "SPSA", "SubspaceGaussNewton"]
