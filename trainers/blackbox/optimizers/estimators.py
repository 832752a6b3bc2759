"""Gradient estimates from losses alone.

An estimator is given theta and the number of the step, and gives candidates; from their losses it
makes the gradient estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..run.errors import BlackBoxError


def segmented_uniform(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Entries of magnitude `U[0.5, 1]` and a random sign, so that none is near zero."""
    magnitude = 0.5 + 0.5 * torch.rand(shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return magnitude * sign


def unit_sphere(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Rows that are uniform on the unit sphere: Gaussian, scaled to length 1."""
    u = torch.randn(shape, generator=generator)
    return u / u.norm(dim=1, keepdim=True)


class Estimator:
    """What `Descent` asks for candidates and tells their losses.

    Args:
        seed: of the random draws.

    Attributes:
        population: number of candidates.
        in_use: number of the candidate that is theta itself; None where there is none.
        drawn: the directions of the last candidates `[n, d]`; None before the first.
    """

    population: int
    in_use: int | None = None

    def __init__(self, seed: int) -> None:
        # on the CPU, so that a run draws alike on every device
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn: Any = None

    def ask(self, theta: torch.Tensor, k: int) -> torch.Tensor:
        """Candidates `[population, d]` around theta `[d]`, on its device; k counts from 1."""
        raise NotImplementedError

    def estimate(self, losses: torch.Tensor) -> torch.Tensor:
        """The gradient estimate `[d]`, from the losses `[population]` of the last candidates."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())


class TwoSided(Estimator):
    """Simultaneous perturbation (SPSA; Spall, 1992), averaged over several draws of z.

    `g = (l(theta + c_k z) - l(theta - c_k z)) / (2 c_k z)` elementwise, z segmented uniform.

    Args:
        average: draws of z in a step, two candidates each.
        gain: c_k, the size of the perturbation, as a function of k.
        seed: of the perturbations.

    Raises:
        BlackBoxError: fewer than one draw.
    """

    def __init__(self, average: int, gain: Callable[[int], float], seed: int = 0) -> None:
        if average < 1:
            raise BlackBoxError(f"SP_AVG is {average}; at least one perturbation a step is needed.")
        super().__init__(seed)
        self.average, self.gain, self.population = average, gain, 2 * average
        self.c = gain(1)  # c_k of the last candidates

    def ask(self, theta: torch.Tensor, k: int) -> torch.Tensor:
        """Candidates `[2 average, d]`: all `theta + c_k z`, then all `theta - c_k z`."""
        self.c = self.gain(k)
        self.drawn = segmented_uniform((self.average, len(theta)), self.generator).to(theta)
        shift = self.c * self.drawn
        return torch.cat([theta + shift, theta - shift])

    def estimate(self, losses: torch.Tensor) -> torch.Tensor:
        plus, minus = losses.to(self.drawn).split(self.average)
        return ((plus - minus)[:, None] / (2 * self.c * self.drawn)).mean(0)


class OneSided(Estimator):
    """Forward differences along random directions.

    `g = (scale / q) sum_j u_j (l(theta + eps u_j) - l(theta)) / eps`, the u_j uniform on the unit
    sphere. With `scale = d` the mean estimate on a linear function is its gradient, since
    `E[u u^T] = I / d`.

    Args:
        directions: q; a step has q + 1 candidates.
        eps: length of the shift.
        scale: the factor above.
        seed: of the directions.

    Raises:
        BlackBoxError: no direction.
    """

    in_use = 0

    def __init__(self, directions: int, eps: float, scale: float, seed: int = 0) -> None:
        if directions < 1:
            raise BlackBoxError(
                f"Q is {directions}; at least one direction is needed for a gradient estimate."
            )
        super().__init__(seed)
        self.directions, self.eps, self.scale = directions, eps, scale
        self.population = directions + 1

    def ask(self, theta: torch.Tensor, k: int) -> torch.Tensor:
        """Candidates `[q + 1, d]`: theta, then all `theta + eps u_j`."""
        self.drawn = unit_sphere((self.directions, len(theta)), self.generator).to(theta)
        return torch.cat([theta[None], theta + self.eps * self.drawn])

    def estimate(self, losses: torch.Tensor) -> torch.Tensor:
        losses = losses.to(self.drawn)
        slopes = (losses[1:] - losses[0]) / self.eps
        return slopes @ self.drawn / (self.directions / self.scale)
