"""Simultaneous perturbation stochastic approximation (Spall, 1992).

With the update rules that ZIP compares.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..run.errors import BlackBoxError, one_of
from .contract import Optimizer

RULES = ("spsa-clip", "spsa-gc", "spsa")


class SPSA(Optimizer):
    """Two-sided SPSA, averaged over several draws of z.

    `g = (l(theta + c_k z) - l(theta - c_k z)) / (2 c_k z)` elementwise. The entries of z have
    magnitude `U[0.5, 1]` and a random sign ("segmented uniform"). Step and perturbation shrink as
    `a_k = a / (k + o)^alpha` and `c_k = c / k^gamma`, k from 1.

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
        one_of("update rule (TRAINER.ZIP.RULE)", rule, RULES)
        if average < 1:
            raise BlackBoxError(
                f"TRAINER.ZIP.SP_AVG is {average}; at least one perturbation a step is needed."
            )
        if not (a > 0 and c > 0 and 1 + o > 0):
            raise BlackBoxError(
                f"SPSA needs A > 0, C > 0 and O > -1; A is {a}, C is {c}, O is {o}."
            )
        self.rule, self.average = rule, average
        self.o, self.c, self.a = o, c, a
        self.alpha, self.gamma, self.beta = alpha, gamma, beta
        self.theta = start.clone()
        self.momentum = torch.zeros_like(start)
        self.k = 1
        # on the CPU, so that a run perturbs alike on every device
        self.generator = torch.Generator().manual_seed(seed)
        self.asked: Any = None  # the draws of z `[average, d]`, until their losses are told
        self.param_groups = [{"params": [], "lr": self.step_size()}]

    @property
    def population(self) -> int:
        return 2 * self.average

    @property
    def solution(self) -> torch.Tensor:
        return self.theta

    def step_size(self) -> float:
        """a_k"""
        return self.a / (self.k + self.o) ** self.alpha

    def perturbation_size(self) -> float:
        """c_k"""
        return self.c / self.k**self.gamma

    def ask(self) -> torch.Tensor:
        """Candidates `[2 average, d]`: all `theta + c_k z`, then all `theta - c_k z`."""
        shape = (self.average, len(self.theta))
        magnitude = 0.5 + 0.5 * torch.rand(shape, generator=self.generator)
        sign = torch.randint(0, 2, shape, generator=self.generator) * 2 - 1
        self.asked = (magnitude * sign).to(self.theta)
        shift = self.perturbation_size() * self.asked
        return torch.cat([self.theta + shift, self.theta - shift])

    def estimate(self, losses: torch.Tensor) -> torch.Tensor:
        """The gradient estimate `[d]`.

        From the losses of the candidates that were asked for last.
        """
        plus, minus = losses.to(self.theta).split(self.average)
        return ((plus - minus)[:, None] / (2 * self.perturbation_size() * self.asked)).mean(0)

    def tell(self, losses: torch.Tensor) -> None:
        """Take one step. Losses `[2 average]`."""
        g = self.estimate(losses)
        if self.rule == "spsa-clip":
            limit = math.sqrt(len(g))
            norm = g.norm()
            if norm >= limit:
                g = g * (limit / norm)
        elif self.rule == "spsa-gc":
            self.momentum = self.beta * self.momentum + g
            g = g + self.beta * self.momentum
        self.theta = self.theta - self.step_size() * g
        self.k += 1
        self.asked = None
        self.param_groups[0]["lr"] = self.step_size()

    def state_dict(self) -> dict[str, Any]:
        return {
            "theta": self.theta,
            "momentum": self.momentum,
            "k": self.k,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.theta, self.momentum = state["theta"].to(self.theta), state["momentum"].to(self.theta)
        self.k = state["k"]
        self.generator.set_state(state["generator"].cpu())
        self.param_groups[0]["lr"] = self.step_size()
