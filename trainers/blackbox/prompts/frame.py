"""Prompt spaces that change the border of pictures: BAR's frame, and VP's padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..oracle.interface import Description
from ..oracle.prompt import Prompt
from .base import Space


class PictureSpace(Space):
    """A space whose candidates are changed pictures: words and pictures go in, nothing else.

    Args:
        description: of the model: the size of its pictures, and their normalisation.
    """

    grants: tuple[str, ...] = ()
    changes_pictures = True
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.size = tuple(description.image_size)
        self.register_buffer("mean", torch.tensor(description.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(description.std).view(3, 1, 1))

    def normalised(self, values: torch.Tensor) -> torch.Tensor:
        """Values 0..1 `[..., 3, H, W]` as the model takes them."""
        return (values - self.mean) / self.std

    def clipped(self, pictures: torch.Tensor) -> torch.Tensor:
        """Normalised pixels `[..., 3, H, W]`, none darker than 0 or brighter than 1."""
        low, high = -self.mean / self.std, (1 - self.mean) / self.std
        return torch.minimum(torch.maximum(pictures, low), high)


class BorderSpace(PictureSpace):
    """theta is a border of the picture, all its channels: d = 3 (H W - h w) for an inside h x w.

    It starts from N(0, 1).

    Args:
        description: of the model.
        share: width of the border, as a share of the picture's side; at least a pixel.
        generator: of the start.
    """

    outside: torch.Tensor

    def __init__(self, description: Description, share: float, generator: torch.Generator) -> None:
        super().__init__(description)
        borders = [max(1, round(share * side)) for side in self.size]
        self.rows, self.columns = (
            slice(border, side - border) for border, side in zip(borders, self.size, strict=True)
        )
        outside = torch.ones(self.size, dtype=torch.bool)
        outside[self.rows, self.columns] = False
        self.register_buffer("outside", outside)
        self.register_buffer("origin", torch.randn(3 * int(outside.sum()), generator=generator))

    def spread(self, theta: torch.Tensor) -> torch.Tensor:
        """`[P, d]` in its place in `[P, 3, H, W]`, with zeros inside."""
        placed = theta.new_zeros(len(theta), 3, *self.size)
        placed[:, :, self.outside] = theta.view(len(theta), 3, -1)
        return placed


class FrameSpace(BorderSpace):
    """BAR's program (ICML 2020): the picture, made smaller, in a frame of `sigmoid(W)`.

    W are the numbers of the frame alone. The published W has some under the picture too, which have
    no effect.

    Args:
        description: of the model.
        generator: of the start.
        share: width of the frame; the published one is 15 of 224 pixels.
    """

    def __init__(
        self, description: Description, generator: torch.Generator, share: float = 15 / 224
    ) -> None:
        super().__init__(description, share, generator)
        self.mode = description.interpolation

    def inside(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures `[B, 3, H, W]` in the size of the inside `[B, 3, h, w]`."""
        size = [part.stop - part.start for part in (self.rows, self.columns)]
        # bicubic overshoots at edges
        return self.clipped(F.interpolate(pixels, size, mode=self.mode, antialias=True))

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d]` -> Prompt with pictures `[P, B, 3, H, W]`."""
        assert pixels is not None  # it changes pictures
        frames = self.normalised(self.spread(theta).sigmoid())
        pictures = frames[:, None].repeat(1, len(pixels), 1, 1, 1)
        pictures[..., self.rows, self.columns] = self.inside(pixels)
        return Prompt(pictures=pictures)


class PaddingSpace(BorderSpace):
    """VP's prompt (arXiv:2203.17274): numbers that are added to the border of the picture.

    Args:
        description: of the model.
        generator: of the start.
        share: width of the border; the published one is 30 of 224 pixels.
    """

    def __init__(
        self, description: Description, generator: torch.Generator, share: float = 30 / 224
    ) -> None:
        super().__init__(description, share, generator)

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d]` -> Prompt with pictures `[P, B, 3, H, W]`."""
        assert pixels is not None  # it changes pictures
        return Prompt(pictures=self.clipped(pixels + self.spread(theta)[:, None]))
