"""Contexts (and image tokens) as fixed random projections of a short vector (CraFT, BPT-VLM)."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import BlackBoxError
from ..oracle.prompt import Prompt
from .base import Space

# 3 x 32 x 32, the input size of ViT-B/32's patch embedding, for which BPT-VLM's scale was derived
CONV_INPUT = 3072


class RandomProjection(Space):
    """`context = start + A z`, A drawn once with entries `N(0, std^2)` (ICML 2024, section 3.2).

    Args:
        start: initial context `[n, D]`.
        d: length of z.
        std: deviation of A's entries.
        generator: source of A.
    """

    start: torch.Tensor
    A: torch.Tensor

    def __init__(self, start: torch.Tensor, d: int, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("start", start)
        self.register_buffer("A", std * torch.randn(start.numel(), d, generator=generator))
        self.register_buffer("origin", torch.zeros(d))

    def forward(self, z: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d]` -> Prompt with contexts `[P, n, D]`."""
        return Prompt(self.start + (z @ self.A.T).view(-1, *self.start.shape))


class TwoProjections(Space):
    """BPT-VLM's space (IJCAI 2023).

    `z = (z_L, z_V)`, text tokens `start + A_L z_L` and image tokens `A_V z_V`.

    The published start is zero (no initial words): z = 0 gives tokens of zeros, which is not the
    model without tokens.

    `A_L ~ N(0, (s_tok / (sqrt(d_L) sigma))^2)`;
    `A_V ~ N(mu_conv 3072 / d_V, (s_conv sqrt(3072 / d_V) sigma)^2)`: the moments that the model's
    description gives, so that tokens begin at the size of the model's own.

    Args:
        description: of the oracle.
        start: what the text tokens are added to `[n_L, D]`: zeros, or words.
        n_image: image tokens n_V; 0 is text alone.
        d_text, d_image: lengths of z_L and z_V.
        sigma: step size that CMA-ES starts with.
        generator: source of both matrices.

    Raises:
        BlackBoxError: image tokens for a model that has none.
    """

    start: torch.Tensor
    A_text: torch.Tensor
    A_image: torch.Tensor

    def __init__(
        self,
        description: Any,
        start: torch.Tensor,
        n_image: int,
        d_text: int,
        d_image: int,
        sigma: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        width = description.image_width
        if n_image and width is None:
            raise BlackBoxError(
                f"Image tokens go into the image encoder, and {description.name} has one that is "
                f"convolutional or timm's. Choose a ViT, or set N_IMAGE to 0 for text tokens alone."
            )
        self.image_shape, self.sizes = (n_image, width), (d_text, d_image if n_image else 0)
        self.register_buffer("start", start)
        std = description.token_std / (math.sqrt(d_text) * sigma)
        drawn = torch.randn(start.numel(), d_text, generator=generator)
        self.register_buffer("A_text", std * drawn)
        if n_image:
            self.grants = ("contexts", "image_tokens")
            mean = description.patch_mean * CONV_INPUT / d_image
            std = description.patch_std * math.sqrt(CONV_INPUT / d_image) * sigma
            drawn = torch.randn(n_image * width, d_image, generator=generator)
            self.register_buffer("A_image", mean + std * drawn)
        self.register_buffer("origin", torch.zeros(sum(self.sizes)))

    def forward(self, z: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d_L + d_V]` -> Prompt with contexts `[P, n_L, D]` and image tokens `[P, n_V, W]`."""
        text, image = z.split(self.sizes, dim=-1)
        contexts = self.start + (text @ self.A_text.T).view(-1, *self.start.shape)
        if not self.image_shape[0]:
            return Prompt(contexts)
        return Prompt(contexts, (image @ self.A_image.T).view(-1, *self.image_shape))
