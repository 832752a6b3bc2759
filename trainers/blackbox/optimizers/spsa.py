"""SPSA (Spall, 1992), with the update rules that ZIP compares."""

from __future__ import annotations

import math

import torch

from ..run.errors import BlackBoxError, one_of
from ..schedules import GainSequence
from .descent import Descent
from .estimators import TwoSided
from .updates import GradientStep

RULES = ("spsa-clip", "spsa-gc", "spsa")


class SPSA(Descent):
    """Two-sided estimates, and steps along them.

    Step and perturbation shrink as `a_k = a / (k + o)^alpha` and `c_k = c / k^gamma`, k from 1.

    Args:
        start: theta `[d]`.
        rule: `spsa-clip` rescales g to norm sqrt(d) where it is longer (ZIP's intrinsic-dimensional
            clipping, ICLR 2025, section 4.2), then `theta -= a_k g`; `spsa-gc` (BlackVIP, CVPR
            2023) keeps `m <- beta m + g` and steps along `g + beta m`; `spsa` is plain.
        average: draws of z in a step, two candidates each.
        seed: of the perturbations.

    Raises:
        BlackBoxError: an unknown rule, fewer than one draw, or constants that are not positive.
    """

    def __init__(
        self,
        start: torch.Tensor,
        rule: str = "spsa-clip",
        average: int = 5,
        o: float = 1.0,
        c: float = 0.01,
        a: float = 0.01,
        alpha: float = 0.4,
        gamma: float = 0.1,
        beta: float = 0.8,
        seed: int = 0,
    ) -> None:
        one_of("update rule (RULE)", rule, RULES)
        if not (a > 0 and c > 0 and 1 + o > 0):
            raise BlackBoxError(
                f"SPSA needs A > 0, C > 0 and O > -1; A is {a}, C is {c}, O is {o}."
            )
        super().__init__(
            TwoSided(average, GainSequence(c, gamma), seed),
            GradientStep(
                start,
                GainSequence(a, alpha, o),
                clip=math.sqrt(len(start)) if rule == "spsa-clip" else math.inf,
                momentum=beta if rule == "spsa-gc" else 0.0,
            ),
        )
