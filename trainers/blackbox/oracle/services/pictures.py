"""Pixels as a service takes them: PNG files of 8-bit pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cached_property

import torch
from PIL import Image

from ...run.errors import BlackBoxError
from ..interface import Description, Images
from ..wire import content_ids, levels, rounded


class Pictures(Images):
    """A batch of 8-bit pictures `[B, 3, H, W]`, each named by its content."""

    def __init__(self, content: torch.Tensor) -> None:
        super().__init__(len(content))
        self.content = content

    @cached_property
    def ids(self) -> list[str]:
        """SHA-256 of every picture and of its size, in hexadecimal digits."""
        return content_ids(self.content)


def first_of_each(names: Iterable[str]) -> dict[str, int]:
    """The different names, and the number of the first place that each has."""
    found: dict[str, int] = {}
    for i, name in enumerate(names):
        found.setdefault(name, i)
    return found


def to_8bit(pixels: torch.Tensor, description: Description) -> torch.Tensor:
    """Normalised pixels `[..., 3, H, W]` as 8-bit values, on the CPU.

    Pictures that came out of files were 8-bit values, and are so again, without a loss. Pictures
    that a method changed are rounded to the nearest of 256 levels, and clamped where they are
    darker than 0 or brighter than 1: no file that a service takes holds more. BlackVIP's changes
    of c = 0.01 in a decoder's weight survive that. BAR's shift, of length 0.01 along a unit vector
    of all the numbers of its frame, does not: of 37,620 border values of a picture of 224 x 224, 37
    jump by a level and the others stay, so that its estimate becomes one of rounding. A larger
    `TRAINER.BAR.EPS` reaches further.

    Raises:
        BlackBoxError: a pixel is not finite.
    """
    values = levels(pixels.detach().cpu(), description)
    if not values.isfinite().all():
        raise BlackBoxError(
            "A changed picture has pixels that are not finite, which no service can be sent. Lower "
            "the step size of the method."
        )
    return rounded(values).contiguous()


def png(picture: torch.Tensor, **options: int) -> bytes:
    """A PNG file of 8-bit values `[3, H, W]`; the format loses nothing, with any options."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", **options)
    return file.getvalue()
