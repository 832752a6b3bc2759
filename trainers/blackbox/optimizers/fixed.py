"""No search: one candidate, again and again."""

from __future__ import annotations

from typing import Any

import torch

from .contract import Optimizer


class Fixed(Optimizer):
    """For methods that learn a head, or nothing, from the answers about one prompt.

    Args:
        theta: its vector `[d]`; by default of no length.
    """

    population, searches, in_use = 1, False, 0
    solution: torch.Tensor

    def __init__(self, theta: torch.Tensor | None = None) -> None:
        self.solution = torch.zeros(0) if theta is None else theta
        self.param_groups = [{"params": [], "lr": 0.0}]

    def ask(self) -> torch.Tensor:
        """`[1, d]`."""
        return self.solution[None]

    def tell(self, *told: torch.Tensor) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to put back."""
