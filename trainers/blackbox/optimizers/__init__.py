"""Optimisers that ask and are told. Each has

- `ask()` -> candidates `[P, d]`, on the device of the start;
- `tell(losses)` with losses `[P]`, in the order of the candidates;
- `population`, the number of candidates of a step; `solution`, the vector in use `[d]`;
- `param_groups`, `state_dict` and `load_state_dict`, so that Dassl logs, saves and resumes it like any other.
"""

from .cmaes import CMAES
from .directions import RandomDirections
from .spsa import SPSA

__all__ = ["CMAES", "RandomDirections", "SPSA"]
