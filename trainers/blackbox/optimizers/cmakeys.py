"""The keys of a method that searches by CMA-ES."""

from __future__ import annotations

from typing import Any

from ..keys import SIZE, Key, Rule, make, number, one, whole
from .cmaes import COVARIANCES, import_cma

OURS = ("popsize", "seed", "randn")  # options that the trainers set


def cma_options() -> Rule:
    """Pairs of pycma's options, as one list."""

    def fits(value: Any) -> bool:
        pairs = isinstance(value, (list, tuple)) and len(value) % 2 == 0
        if not pairs or not all(isinstance(key, str) for key in value[::2]):
            return False
        if not value:
            return True
        known = set(import_cma().CMAOptions.defaults()) - set(OURS)
        return known.issuperset(value[::2])

    return make(
        "a list of pairs [key, value, ...] of pycma's options (cma.CMAOptions() lists them; "
        f"{', '.join(OURS)} have keys of their own here)",
        fits,
        ([], ["CMA_active", True], ("tolx", 1e-9, "CMA_mirrors", 0)),
        (["CMA_active"], ["CMA_actve", 1], ["popsize", 4], [1, 2], "CMA_active"),
    )


def cma_keys(population: int) -> dict[str, Key]:
    """The keys of the search itself, with this default of `POPULATION`."""
    return {
        "SIGMA": Key(1.0, number(above=0), "step size that CMA-ES starts with"),
        "POPULATION": Key(population, whole(2, SIZE), "candidates of a generation"),
        "COVARIANCE": Key("full", one(*COVARIANCES), "model of the covariance"),
        "CMA_OPTIONS": Key([], cma_options(), "further options of pycma, [key, value, ...]"),
    }
