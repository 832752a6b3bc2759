"""The keys of a method that searches by SPSA."""

from __future__ import annotations

from typing import Any

from ..keys import SIZE, Key, number, whole


def spsa_keys() -> dict[str, Key]:
    """Those of the estimator and its gains; the momentum, `BETA`, stands with the method."""
    return {
        "SP_AVG": Key(5, whole(1, SIZE), "perturbations averaged in a step, two queries each"),
        "O": Key(1.0, number(above=-1), "step size a_k = A / (k + O) ** ALPHA"),
        "C": Key(0.01, number(above=0), "perturbation scale c_k = C / k ** GAMMA"),
        "A": Key(0.01, number(above=0), "numerator of the step size"),
        "ALPHA": Key(0.4, number(0, 10), "its exponent"),
        "GAMMA": Key(0.1, number(0, 10), "exponent of the perturbation scale"),
    }


def spsa_settings(node: Any) -> dict[str, Any]:
    """Arguments of `SPSA`, from the method's node of the configuration."""
    settings = {name: node[name.upper()] for name in ("o", "c", "a", "alpha", "gamma", "beta")}
    return {"average": node.SP_AVG, **settings}
