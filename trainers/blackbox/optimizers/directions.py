"""CBBT's optimiser (EMNLP Findings 2023, section 3.2).

One-sided finite differences along random directions, and Adam on what they give.
"""

from __future__ import annotations

import torch

from .descent import Descent
from .estimators import OneSided
from .updates import TorchStep


class RandomDirections(Descent):
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

    Attributes:
        adam: the optimiser of torch's, for a schedule of its learning rate.

    Raises:
        BlackBoxError: no direction.
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
        self.q, self.eps = q, eps
        self.adam = torch.optim.Adam([start.clone()], lr=lr, weight_decay=weight_decay)
        super().__init__(OneSided(q, eps, scale=1 / eps, seed=seed), TorchStep(self.adam, clip))
