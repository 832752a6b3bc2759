"""One-sided finite differences along random directions: the optimisers of BAR and CBBT."""

from __future__ import annotations

from typing import Any

import torch

from .contract import Drawing, clipped


class OneSided(Drawing):
    """What both share: the estimate.

    `g = (scale / q) sum_j u_j (l(theta + eps u_j) - l(theta)) / eps`, the u_j uniform on the unit
    sphere. With `scale = d` the mean estimate on a linear function is its gradient, since
    `E[u u^T] = I / d`.

    Args:
        start: theta `[d]`.
        q: directions; a step has q + 1 candidates.
        eps: length of the shift.
        scale: the factor above.
        seed: of the directions.
    """

    in_use = 0  # theta before the step: to ask about that after it would cost a query

    def __init__(
        self, start: torch.Tensor, q: int, eps: float, scale: float, seed: int = 0
    ) -> None:
        super().__init__(start, seed)
        self.q, self.eps, self.scale, self.population = q, eps, scale, q + 1
        self.u: Any = None  # of the last candidates `[q, d]`

    def ask(self) -> torch.Tensor:
        """Candidates `[q + 1, d]`: theta, then all `theta + eps u_j`."""
        u = torch.randn(self.q, len(self.theta), generator=self.generator)
        self.u = (u / u.norm(dim=1, keepdim=True)).to(self.theta)
        return torch.cat([self.theta[None], self.theta + self.eps * self.u])

    def estimate(self, losses: torch.Tensor) -> torch.Tensor:
        """g `[d]`, before clipping, from the losses `[q + 1]` of the last candidates."""
        losses = losses.to(self.u)
        slopes = (losses[1:] - losses[0]) / self.eps
        return slopes @ self.u / (self.q / self.scale)


class DecayingDirections(OneSided):
    """BAR's (ICML 2020): `theta -= a_k g`, with d as the scale.

    `a_k = (first - last) (1 - k / steps)^0.9 + last`, k from 1; from step `steps` on, `last`.
    """

    saved = ("theta", "k")

    def __init__(
        self,
        start: torch.Tensor,
        q: int,
        eps: float,
        first: float,
        last: float,
        steps: float,
        seed: int = 0,
    ) -> None:
        super().__init__(start, q, eps, scale=len(start), seed=seed)
        self.first, self.last, self.steps, self.k = first, last, steps, 1

    def size(self, k: int) -> float:
        """a_k."""
        left = 1 - min(k, self.steps) / self.steps
        return (self.first - self.last) * left**0.9 + self.last

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # read only
        return [{"params": [], "lr": self.size(self.k)}]

    def tell(self, losses: torch.Tensor) -> None:
        """Take one step. Losses `[q + 1]`."""
        self.theta = self.theta - self.size(self.k) * self.estimate(losses)
        self.k += 1


class RandomDirections(OneSided):
    """CBBT's (EMNLP Findings 2023, section 3.2): g clipped by norm, then one step of Adam.

    The scale is `1 / eps` where a textbook has d; with `eps = max(1 / d, 0.001)` the two are equal
    for d up to 1,000.

    Args:
        clip: largest norm of g.
        lr, weight_decay: of Adam.

    Attributes:
        adam: the optimiser of torch's, for a schedule of its learning rate.
    """

    def __init__(
        self,
        start: torch.Tensor,
        q: int = 256,
        clip: float = 5.0,
        lr: float = 0.002,
        weight_decay: float = 5e-4,
        seed: int = 0,
    ) -> None:
        eps = max(1 / len(start), 0.001)
        super().__init__(start, q, eps, scale=1 / eps, seed=seed)
        self.clip = clip
        self.adam = torch.optim.Adam([self.theta], lr=lr, weight_decay=weight_decay)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # Adam's
        return self.adam.param_groups

    def tell(self, losses: torch.Tensor) -> None:
        """Take one step, which changes theta in place. Losses `[q + 1]`."""
        self.theta.grad = clipped(self.estimate(losses), self.clip)
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.adam.load_state_dict(state["adam"])
