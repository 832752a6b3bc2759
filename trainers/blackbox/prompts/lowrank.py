"""ZIP's re-parametrisation (ICLR 2025, section 4.1).

Low rank with a shared row, projected token by token.
"""

from __future__ import annotations

import torch

from ..oracle.prompt import Prompt
from ..run.errors import BlackBoxError
from .base import Space
from .fastfood import Fastfood


class LowRankSpace(Space):
    """`theta = (U, s, V, v)`, `W = U diag(s) V^T + 1 v^T` in `R^{n x m}`.

    Row i of W, projected to `R^D`, is added to initial token i. U starts at zero, s at one, V
    standard normal and the shared row v at zero, so that the start is exactly the initial context.

    Args:
        start: initial context `[n, D]`.
        intrinsic_dimension: ID; each token gets m = ID // n numbers.
        rank: r.
        generator: source of V and of the fixed projections.

    Attributes:
        d: length of theta, `n r + r + m r + m`.
    """

    start: torch.Tensor

    def __init__(
        self, start: torch.Tensor, intrinsic_dimension: int, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        n, D = start.shape
        if rank < 1:
            raise BlackBoxError(f"RANK is {rank}; a rank of 1 or more is needed.")
        self.n, self.m, self.r = n, intrinsic_dimension // n, rank
        self.register_buffer("start", start)
        self.projection = Fastfood(n, self.m, D, generator)
        self.sizes = (n * rank, rank, self.m * rank, self.m)
        self.d = sum(self.sizes)
        self.register_buffer(
            "origin",
            torch.cat(
                [
                    torch.zeros(n * rank),
                    torch.ones(rank),
                    torch.randn(self.m * rank, generator=generator),
                    torch.zeros(self.m),
                ]
            ),
        )

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d]` -> Prompt with contexts `[P, n, D]`."""
        U, s, V, v = theta.split(self.sizes, dim=-1)
        U, V = U.reshape(-1, self.n, self.r), V.reshape(-1, self.m, self.r)
        W = (U * s[:, None]) @ V.transpose(1, 2) + v[:, None]
        return Prompt(self.start + self.projection(W))
