"""ZIP's re-parametrisation (ICLR 2025, section 4.1): low rank with a shared row, by Fastfood."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import BlackBoxError
from ..oracle.prompt import Prompt
from .base import Space


def walsh_hadamard(x: torch.Tensor) -> torch.Tensor:
    """Unnormalised Walsh-Hadamard transform of the last dimension, in natural order.

    It is `x @ H` with H of entries 1 and -1; the length is a power of two.
    """
    shape, half = x.shape, 1
    while half < shape[-1]:
        a, b = x.reshape(*shape[:-1], -1, 2, half).unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).reshape(shape)
        half *= 2
    return x


class Fastfood(nn.Module):
    """n fixed projections from `R^m` to `R^D`, one a context token (Le et al., ICML 2013).

    Each is `x -> H G Pi H B x`, cut to D and scaled to keep lengths. B are random signs, Pi a
    permutation, G a Gaussian diagonal; L is the next power of two from D on. It costs L log L and
    stores 3 L numbers instead of m D. The input is padded with zeros from m to L. The output is
    divided by `sqrt(L * sum(G^2)) * sqrt(D / L)`, as ZIP's projections are.

    Raises:
        BlackBoxError: m is 0 or larger than L.
    """

    signs: torch.Tensor
    permutation: torch.Tensor
    gaussian: torch.Tensor

    def __init__(self, n: int, m: int, D: int, generator: torch.Generator) -> None:
        super().__init__()
        L = 1 << max(0, D - 1).bit_length()
        if not 1 <= m <= L:
            raise BlackBoxError(
                f"Each context token would get m = ID // n = {m} numbers, but Fastfood's length at "
                f"width {D} is {L}: choose an ID between {n} and {n * L + n - 1}."
            )
        self.D, self.L = D, L
        signs = torch.randint(0, 2, (n, L), generator=generator).float() * 2 - 1
        self.register_buffer("signs", signs)
        permutation = torch.stack([torch.randperm(L, generator=generator) for _ in range(n)])
        self.register_buffer("permutation", permutation)
        self.register_buffer("gaussian", torch.randn(n, L, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[P, n, m]` -> `[P, n, D]`; row i goes through projection i."""
        x = F.pad(x, (0, self.L - x.shape[-1]))
        x = walsh_hadamard(self.signs * x)
        x = x.gather(-1, self.permutation.expand_as(x))
        x = walsh_hadamard(self.gaussian * x)[..., : self.D]
        # sqrt(L * sum(G^2)) * sqrt(D / L)
        return x / (self.D * self.gaussian.square().sum(-1, keepdim=True)).sqrt()


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
        self.n, self.m, self.r = n, intrinsic_dimension // n, rank
        self.register_buffer("start", start)
        self.projection = Fastfood(n, self.m, D, generator)
        self.sizes = (n * rank, rank, self.m * rank, self.m)
        self.d = sum(self.sizes)
        V = torch.randn(self.m * rank, generator=generator)
        origin = torch.cat([torch.zeros(n * rank), torch.ones(rank), V, torch.zeros(self.m)])
        self.register_buffer("origin", origin)

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d]` -> Prompt with contexts `[P, n, D]`."""
        U, s, V, v = theta.split(self.sizes, dim=-1)
        U, V = U.reshape(-1, self.n, self.r), V.reshape(-1, self.m, self.r)
        W = (U * s[:, None]) @ V.transpose(1, 2) + v[:, None]
        return Prompt(self.start + self.projection(W))
