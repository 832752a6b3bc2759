"""SPSA (Spall, IEEE TAC 1992), with the update rules that ZIP compares."""

import math

import torch
from torch import Tensor

from .contract import Optimizer

RULES = ("spsa-clip", "spsa-gc", "spsa")


class SPSA(Optimizer):
    """Simultaneous perturbation: `theta -= a_k g`, g the mean over `average` draws of z.

    `g = (l(theta + c_k z) - l(theta - c_k z)) / (2 c_k z)` elementwise; z has entries of magnitude
    `U[0.5, 1]` and random sign. `a_k = a / (k + o)^alpha` and `c_k = c / k^gamma`, k from 1.

    The rule `spsa-clip` rescales g to norm sqrt(d) where it is longer (ZIP, ICLR 2025, section
    4.2); `spsa-gc` keeps `m <- beta m + g` and steps along `g + beta m` (BlackVIP, CVPR 2023).
    """

    saved = ("theta", "momentum", "k")

    def __init__(
        self,
        start: Tensor,
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
        assert rule in RULES
        super().__init__(start, seed)
        self.rule, self.average, self.beta = rule, average, beta
        self.o, self.c, self.a, self.alpha, self.gamma = o, c, a, alpha, gamma
        self.population, self.momentum, self.k = 2 * average, torch.zeros_like(start), 1

    def rate(self) -> float:
        return self.a / (self.k + self.o) ** self.alpha

    def ask(self) -> Tensor:
        """Candidates `[2 average, d]`: all `theta + c_k z`, then all `theta - c_k z`."""
        shape = self.average, len(self.theta)
        magnitude = 0.5 + 0.5 * torch.rand(shape, generator=self.generator)
        sign = torch.randint(0, 2, shape, generator=self.generator) * 2 - 1
        self.z, self.c_k = (magnitude * sign).to(self.theta), self.c / self.k**self.gamma
        return torch.cat([self.theta + self.c_k * self.z, self.theta - self.c_k * self.z])

    def estimate(self, losses: Tensor) -> Tensor:
        """g `[d]`, before clipping, from the losses `[2 average]` of the last candidates."""
        plus, minus = losses.to(self.z).split(self.average)
        return ((plus - minus)[:, None] / (2 * self.c_k * self.z)).mean(0)

    def tell(self, losses: Tensor) -> None:
        g = self.estimate(losses)
        if self.rule == "spsa-clip":
            g = g * (math.sqrt(len(g)) / g.norm()).clamp(max=1)
        elif self.rule == "spsa-gc":
            self.momentum = self.beta * self.momentum + g
            g = g + self.beta * self.momentum
        self.theta = self.theta - self.rate() * g
        self.k += 1
