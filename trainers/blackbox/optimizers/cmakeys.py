"""The keys of a method that searches by CMA-ES."""

from __future__ import annotations

from ..keys import SIZE, Key, Validator, number, one, several, whole
from .cmaes import COVARIANCES

SET_HERE = {"popsize", "seed", "randn"}
# pycma refuses unknown ones by itself
OPTIONS = several(
    Validator("", lambda item: True),
    "a list of pairs [key, value, ...] of pycma's options (cma.CMAOptions() lists them; popsize, "
    "seed and randn are set here)",
    lambda items: len(items) % 2 == 0 and SET_HERE.isdisjoint(map(str, items[::2])),
)


def cma_keys(population: int) -> dict[str, Key]:
    """The keys of the search itself, with this default of `POPULATION`."""
    return {
        "SIGMA": Key(1.0, number(above=0), "step size that CMA-ES starts with"),
        "POPULATION": Key(population, whole(2, SIZE), "candidates of a generation"),
        "COVARIANCE": Key("full", one(*COVARIANCES), "model of the covariance"),
        "CMA_OPTIONS": Key([], OPTIONS, "further options of pycma, [key, value, ...]"),
    }
