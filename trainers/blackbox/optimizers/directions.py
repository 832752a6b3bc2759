"""CBBT's optimiser (EMNLP Findings 2023, section 3.2).

One-sided finite differences along random directions, and Adam on what they give.
"""

from __future__ import annotations

from typing import Any

import torch

from ..run.errors import BlackBoxError
from .contract import Optimizer


class RandomDirections(Optimizer):
    """Finite differences along random directions, clipped by norm, then one step of Adam.

    `g = (1 / eps) (1 / q) sum_j u_j (l(theta + eps u_j) - l(theta)) / eps`. The u_j are Gaussian,
    scaled to unit length. The factor `1 / eps` stands where a textbook has d; with
    `eps = max(1 / d, 0.001)` the two are equal for d up to 1,000.

    Args:
        start: theta `[d]`.
        q: directions; a step has q + 1 candidates.
        clip: largest norm of g.
        lr, weight_decay: of Adam.
        seed: of the directions.

    Raises:
        BlackBoxError: no direction.
    """

    in_use = 0  # theta before the step: to ask about it after the step would cost a query

    def __init__(
        self,
        start: torch.Tensor,
        q: int = 256,
        clip: float = 5.0,
        lr: float = 0.002,
        weight_decay: float = 5e-4,
        seed: int = 0,
    ) -> None:
        if q < 1:
            raise BlackBoxError(
                f"TRAINER.CBBT.Q is {q}; at least one direction is needed for a gradient estimate."
            )
        self.q, self.clip = q, clip
        self.theta = start.clone()
        self.eps = max(1 / len(start), 0.001)
        self.generator = torch.Generator().manual_seed(seed)
        self.adam = torch.optim.Adam([self.theta], lr=lr, weight_decay=weight_decay)
        self.asked: Any = None  # the u_j `[q, d]`, until their losses are told

    @property
    def population(self) -> int:
        return self.q + 1

    @property
    def solution(self) -> torch.Tensor:
        return self.theta

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # Adam's: read only
        return self.adam.param_groups

    def ask(self) -> torch.Tensor:
        """Candidates `[q + 1, d]`: theta, then theta + eps u_j."""
        u = torch.randn(self.q, len(self.theta), generator=self.generator)
        self.asked = (u / u.norm(dim=1, keepdim=True)).to(self.theta)
        return torch.cat([self.theta[None], self.theta + self.eps * self.asked])

    def estimate(self, losses: torch.Tensor) -> torch.Tensor:
        """The gradient estimate `[d]`, before clipping.

        From the losses of the candidates that were asked for last.
        """
        losses = losses.to(self.theta)
        slopes = (losses[1:] - losses[0]) / self.eps
        return slopes @ self.asked / (self.q * self.eps)

    def tell(self, losses: torch.Tensor) -> None:
        """Take one step. Losses `[q + 1]`."""
        g = self.estimate(losses)
        norm = g.norm()
        self.theta.grad = g * (self.clip / norm) if norm > self.clip else g
        self.adam.step()
        self.asked = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "theta": self.theta,
            "adam": self.adam.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.theta.copy_(state["theta"])
        self.adam.load_state_dict(state["adam"])
        self.generator.set_state(state["generator"].cpu())
