"""Fastfood (Le et al., ICML 2013), a random projection.

It costs L log L and stores 3 L numbers instead of m D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..run.errors import BlackBoxError


def walsh_hadamard(x: torch.Tensor) -> torch.Tensor:
    """Unnormalised Walsh-Hadamard transform of the last dimension, in natural order.

    It is `x @ H` with H of entries 1 and -1.

    Raises:
        ValueError: the last dimension is not a power of two.
    """
    length = x.shape[-1]
    if length & (length - 1):
        raise ValueError(f"The Walsh-Hadamard transform needs a power of two, not {length}.")
    shape, half = x.shape, 1
    while half < length:
        a, b = x.reshape(*shape[:-1], -1, 2, half).unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).reshape(shape)
        half *= 2
    return x


class Fastfood(nn.Module):
    """n fixed projections from `R^m` to `R^D`, one a context token.

    Each is `x -> H G Pi H B x`, cut to D and scaled to keep lengths. B are random signs, Pi a
    permutation, G a Gaussian diagonal; L is the next power of two from D on. The input is padded
    with zeros from m to L. The output is divided by `sqrt(L * sum(G^2)) * sqrt(D / L)`, as ZIP's
    projections are.

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
        self.register_buffer(
            "signs", torch.randint(0, 2, (n, L), generator=generator).float() * 2 - 1
        )
        self.register_buffer(
            "permutation", torch.stack([torch.randperm(L, generator=generator) for _ in range(n)])
        )
        self.register_buffer("gaussian", torch.randn(n, L, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[P, n, m]` -> `[P, n, D]`; row i goes through projection i."""
        x = F.pad(x, (0, self.L - x.shape[-1]))
        x = walsh_hadamard(self.signs * x)
        x = x.gather(-1, self.permutation.expand_as(x))
        x = walsh_hadamard(self.gaussian * x)[..., : self.D]
        # sqrt(L * sum(G^2)) * sqrt(D / L)
        return x / (self.D * self.gaussian.square().sum(-1, keepdim=True)).sqrt()
