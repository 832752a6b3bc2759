"""An optimiser of two parts: a gradient estimator and an update rule."""

from __future__ import annotations

from typing import Any

import torch

from .contract import Optimizer
from .estimators import Estimator
from .updates import UpdateRule


class Descent(Optimizer):
    """Asks for the estimator's candidates, and steps by its estimate as the update rule says.

    BAR's optimiser, for example, is

        Descent(
            OneSided(directions=5, eps=0.01, scale=len(start), seed=seed),
            GradientStep(start, PolynomialDecay(first=10.0, last=0.1, steps=0.9 * steps)),
        )

    Attributes:
        k: number of the next step, from 1.
    """

    def __init__(self, estimator: Estimator, update: UpdateRule) -> None:
        self.estimator, self.update, self.k = estimator, update, 1

    @property
    def population(self) -> int:
        return self.estimator.population

    @property
    def in_use(self) -> int | None:
        """theta before the step: to ask about it after the step would cost a query."""
        return self.estimator.in_use

    @property
    def solution(self) -> torch.Tensor:
        return self.update.theta

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # read only
        return self.update.param_groups(self.k)

    def ask(self) -> torch.Tensor:
        """The estimator's candidates `[population, d]`."""
        return self.estimator.ask(self.solution, self.k)

    def estimate(self, losses: torch.Tensor) -> torch.Tensor:
        """The gradient estimate `[d]`, before clipping.

        From the losses `[population]` of the candidates that were asked for last.
        """
        return self.estimator.estimate(losses)

    def tell(self, losses: torch.Tensor) -> None:
        """Take one step. Losses `[population]`."""
        self.update.step(self.estimate(losses), self.k)
        self.k += 1

    def state_dict(self) -> dict[str, Any]:
        return {**self.update.state_dict(), **self.estimator.state_dict(), "k": self.k}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.update.load_state_dict(state)
        self.estimator.load_state_dict(state)
        # a state of CBBT's from before 0.2.0 has none, and nothing there depends on it
        self.k = state.get("k", 1)
