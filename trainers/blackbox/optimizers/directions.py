"""One-sided finite differences along random directions: the optimisers of BAR and CBBT."""

from typing import Any

import torch
from torch import Tensor

from .contract import Optimizer


class OneSided(Optimizer):
    """The estimate `g = (scale / q) sum_j u_j (l(theta + eps u_j) - l(theta)) / eps`.

    The u_j are uniform on the unit sphere. With `scale = d` its mean on a linear function is the
    gradient, since `E[u u^T] = I / d`.
    """

    in_use = 0  # theta before the step: to ask about that after it would cost a query

    def __init__(self, start: Tensor, q: int, eps: float, scale: float, seed: int) -> None:
        super().__init__(start, seed)
        self.q, self.eps, self.scale, self.population = q, eps, scale, q + 1

    def ask(self) -> Tensor:
        """Candidates `[q + 1, d]`: theta, then all `theta + eps u_j`."""
        u = torch.randn(self.q, len(self.theta), generator=self.generator)
        self.u = (u / u.norm(dim=1, keepdim=True)).to(self.theta)
        return torch.cat([self.theta[None], self.theta + self.eps * self.u])

    def estimate(self, losses: Tensor) -> Tensor:
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
        self, start: Tensor, q: int, eps: float, first: float, last: float, steps: float, seed: int
    ) -> None:
        super().__init__(start, q, eps, len(start), seed)
        self.first, self.last, self.steps, self.k = first, last, steps, 1

    def rate(self) -> float:
        left = 1 - min(self.k, self.steps) / self.steps
        return (self.first - self.last) * left**0.9 + self.last

    def tell(self, losses: Tensor) -> None:
        self.theta = self.theta - self.rate() * self.estimate(losses)
        self.k += 1


class RandomDirections(OneSided):
    """CBBT's (EMNLP Findings 2023, section 3.2): g clipped to the norm `clip`, then a step of Adam.

    The scale is `1 / eps` where a textbook has d; with `eps = max(1 / d, 0.001)` the two are equal
    for d up to 1,000. `adam` is torch's, for a schedule of its learning rate.
    """

    def __init__(
        self, start: Tensor, q: int, clip: float, lr: float, weight_decay: float, seed: int
    ) -> None:
        eps = max(1 / len(start), 0.001)
        super().__init__(start, q, eps, 1 / eps, seed)
        self.clip = clip
        self.adam = torch.optim.Adam([self.theta], lr=lr, weight_decay=weight_decay)

    def rate(self) -> float:
        return self.adam.param_groups[0]["lr"]

    def tell(self, losses: Tensor) -> None:
        g = self.estimate(losses)
        self.theta.grad = g * (self.clip / g.norm()).clamp(max=1)
        self.adam.step()  # in place

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.adam.load_state_dict(state["adam"])
