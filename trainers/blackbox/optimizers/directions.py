"""One-sided finite differences along random directions, and Adam on what they give: CBBT's optimiser (EMNLP Findings 2023, section 3.2)."""

import torch

from ..run.errors import BlackBoxError
from .contract import Optimizer


class RandomDirections(Optimizer):
    """`g = (1 / eps) (1 / q) sum_j u_j (l(theta + eps u_j) - l(theta)) / eps`, clipped by norm, then one step of Adam.

    The u_j are Gaussian, scaled to unit length. The factor `1 / eps` stands where a textbook has d; with `eps = max(1 / d, 0.001)` the two
    are equal for d up to 1,000.

    Args:
        start: theta `[d]`.
        q: directions; a step has q + 1 candidates.
        clip: largest norm of g.
        lr, weight_decay: of Adam.
        seed: of the directions.

    Raises:
        BlackBoxError: no direction.
    """

    def __init__(self, start, q=256, clip=5.0, lr=0.002, weight_decay=5e-4, seed=0):
        if q < 1:
            raise BlackBoxError(
                f"TRAINER.CBBT.Q is {q}; at least one direction is needed for a gradient estimate."
            )
        self.q, self.clip = q, clip
        self.theta = start.clone()
        self.eps = max(1 / len(start), 0.001)
        self.generator = torch.Generator().manual_seed(seed)
        self.adam = torch.optim.Adam([self.theta], lr=lr, weight_decay=weight_decay)
        self.asked = None

    @property
    def population(self):
        return self.q + 1

    @property
    def solution(self):
        return self.theta

    @property
    def param_groups(self):
        return self.adam.param_groups

    def ask(self):
        """Candidates `[q + 1, d]`: theta, then theta + eps u_j."""
        u = torch.randn(self.q, len(self.theta), generator=self.generator)
        self.asked = (u / u.norm(dim=1, keepdim=True)).to(self.theta)
        return torch.cat([self.theta[None], self.theta + self.eps * self.asked])

    def estimate(self, losses):
        """The gradient estimate `[d]` from the losses of the candidates that were asked for last, before clipping."""
        losses = losses.to(self.theta)
        slopes = (losses[1:] - losses[0]) / self.eps
        return slopes @ self.asked / (self.q * self.eps)

    def tell(self, losses):
        """Take one step. Losses `[q + 1]`."""
        g = self.estimate(losses)
        norm = g.norm()
        self.theta.grad = g * (self.clip / norm) if norm > self.clip else g
        self.adam.step()
        self.asked = None

    def state_dict(self):
        return {
            "theta": self.theta,
            "adam": self.adam.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.theta.copy_(state["theta"])
        self.adam.load_state_dict(state["adam"])
        self.generator.set_state(state["generator"].cpu())
