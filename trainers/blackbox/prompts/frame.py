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

    def clipped(self, pictures: torch.Tensor) -> torch.Tensor:
        """Normalised pixels `[..., 3, H, W]`, none darker than 0 or brighter than 1."""
        low, high = -self.mean / self.std, (1 - self.mean) / self.std
        return torch.minimum(torch.maximum(pictures, low), high)


class PaddingSpace(PictureSpace):
    """VP's prompt (arXiv:2203.17274): numbers that are added to the border of the picture.

    All channels of it: d = 3 (H W - h w) for an inside h x w. They start from N(0, 1).

    Args:
        description: of the model.
        generator: of the start.
    """

    share = 30 / 224  # width of the border, of the picture's side; at least a pixel
    outside: torch.Tensor

    def __init__(self, description: Description, generator: torch.Generator) -> None:
        super().__init__(description)
        borders = [max(1, round(self.share * side)) for side in self.size]
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

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d]` -> Prompt with pictures `[P, B, 3, H, W]`."""
        assert pixels is not None  # it changes pictures
        return Prompt(pictures=self.clipped(pixels + self.spread(theta)[:, None]))


class FrameSpace(PaddingSpace):
    """BAR's program (ICML 2020): the picture, made smaller, in a frame of `sigmoid(W)`.

    W are the numbers of the frame alone. The published W has some under the picture too, which have
    no effect.
    """

    share = 15 / 224

    def __init__(self, description: Description, generator: torch.Generator) -> None:
        super().__init__(description, generator)
        self.mode = description.interpolation

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d]` -> Prompt with pictures `[P, B, 3, H, W]`."""
        assert pixels is not None  # it changes pictures
        frames = (self.spread(theta).sigmoid() - self.mean) / self.std
        pictures = frames[:, None].repeat(1, len(pixels), 1, 1, 1)
        size = [part.stop - part.start for part in (self.rows, self.columns)]
        smaller = F.interpolate(pixels, size, mode=self.mode, antialias=True)
        pictures[..., self.rows, self.columns] = self.clipped(smaller)  # bicubic overshoots
        return Prompt(pictures=pictures)
