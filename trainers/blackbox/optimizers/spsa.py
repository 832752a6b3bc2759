"""SPSA (Spall, 1992), with the update rules that ZIP compares."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import one_of
from .contract import Drawing, clipped

RULES = ("spsa-clip", "spsa-gc", "spsa")


def segmented_uniform(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Entries of magnitude `U[0.5, 1]` and a random sign, so that none is near zero."""
    magnitude = 0.5 + 0.5 * torch.rand(shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return magnitude * sign


class SPSA(Drawing):
    """Simultaneous perturbation, averaged over several draws of z, segmented uniform.

    `g = (l(theta + c_k z) - l(theta - c_k z)) / (2 c_k z)` elementwise. Step and perturbation
    shrink as `a_k = a / (k + o)^alpha` and `c_k = c / k^gamma`, k from 1.

    Args:
        start: theta `[d]`.
        rule: `spsa-clip` rescales g to norm sqrt(d) where it is longer (ZIP's intrinsic-dimensional
            clipping, ICLR 2025, section 4.2), then `theta -= a_k g`; `spsa-gc` (BlackVIP, CVPR
            2023) keeps `m <- beta m + g` and steps along `g + beta m`; `spsa` is plain.
        average: draws of z in a step, two candidates each.
        seed: of the perturbations.

    Raises:
        BlackBoxError: an unknown rule.
    """

    saved = ("theta", "momentum", "k")

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
        super().__init__(start, seed)
        self.rule, self.average, self.beta = rule, average, beta
        self.o, self.c, self.a, self.alpha, self.gamma = o, c, a, alpha, gamma
        self.population, self.momentum, self.k = 2 * average, torch.zeros_like(start), 1
        self.z: Any = None  # of the last candidates `[average, d]`

    @property
    def a_k(self) -> float:
        return self.a / (self.k + self.o) ** self.alpha

    @property
    def c_k(self) -> float:
        return self.c / self.k**self.gamma

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # read only
        return [{"params": [], "lr": self.a_k}]

    def ask(self) -> torch.Tensor:
        """Candidates `[2 average, d]`: all `theta + c_k z`, then all `theta - c_k z`."""
        self.z = segmented_uniform((self.average, len(self.theta)), self.generator).to(self.theta)
        return torch.cat([self.theta + self.c_k * self.z, self.theta - self.c_k * self.z])

    def estimate(self, losses: torch.Tensor) -> torch.Tensor:
        """g `[d]`, before clipping, from the losses `[2 average]` of the last candidates."""
        plus, minus = losses.to(self.z).split(self.average)
        return ((plus - minus)[:, None] / (2 * self.c_k * self.z)).mean(0)

    def tell(self, losses: torch.Tensor) -> None:
        """Take one step. Losses `[2 average]`."""
        g = self.estimate(losses)
        if self.rule == "spsa-clip":
            g = clipped(g, math.sqrt(len(g)))
        elif self.rule == "spsa-gc":
            self.momentum = self.beta * self.momentum + g
            g = g + self.beta * self.momentum
        self.theta = self.theta - self.a_k * g
        self.k += 1
