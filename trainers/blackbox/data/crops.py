"""Random resized crops and flips on the device that encodes.

Drawn as torchvision draws them, resampled as Pillow does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import default_collate

from ..run.errors import BlackBoxError
from .pictures import Pictures

TOGETHER = 32  # pictures whose weights are made at a time
UNITS = 2**22  # of Pillow's weights
# by interpolation: reach of the kernel, and the kernel as a function of the distance in pixels
KERNELS: dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "bilinear": (1, lambda x: 1 - x),
    "bicubic": (
        2,
        lambda x: torch.where(
            x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        ),
    ),  # a = -1/2
}


class Cropper:
    """For a loader without worker processes: `draw` is its transform, `collate` makes the pixels.

    With the same state of torch's generator the crops are those of the transform that it stands
    for; so are the pixels, save where Pillow 13 begins with the rows.

    Args:
        transform: Dassl's transform for training: torchvision's random resized crop, perhaps a
            flip, and the normalisation.
        device: where pictures lie (uint8 `[3, H, W]`, of any size) and pixels are made.
        limit: bytes of pictures that are kept.

    Raises:
        BlackBoxError: the transform has other steps, or an interpolation that is not here.
    """

    crop: Any
    flip: Any
    normalize: Any

    def __init__(self, transform: Any, device: torch.device, limit: int) -> None:
        steps: dict[type, Any] = {type(step): step for step in getattr(transform, "transforms", ())}
        known = {T.RandomResizedCrop, T.RandomHorizontalFlip, T.ToTensor, T.Normalize}
        self.crop, self.flip, self.normalize = (
            steps.get(kind) for kind in (T.RandomResizedCrop, T.RandomHorizontalFlip, T.Normalize)
        )
        if set(steps) - known or self.crop is None or self.crop.interpolation.value not in KERNELS:
            raise BlackBoxError(
                "INPUT.CROP_ON_DEVICE makes one view of a picture by random_resized_crop "
                "(bilinear or bicubic), random_flip and normalize; here the steps are "
                f"{', '.join(kind.__name__ for kind in steps) or 'none'}. Set it to False, or "
                "change INPUT.TRANSFORMS."
            )
        self.device, self.pictures = device, Pictures(limit, self.hold)

    def hold(self, image: Image.Image) -> torch.Tensor:
        """What is kept of an RGB picture."""
        return torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)

    def draw(self, picture: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """(the picture's part that was drawn, whether it is flipped)"""
        top, left, height, width = self.crop.get_params(picture, self.crop.scale, self.crop.ratio)
        flipped = self.flip is not None and bool(torch.rand(1) < self.flip.p)
        return picture[:, top : top + height, left : left + width], flipped

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Like torch's own, with pixels `[B, 3, H, W]` of what was drawn."""
        drawn = [item.pop("img") for item in items]
        parts = [
            self.resample(*zip(*drawn[i : i + TOGETHER], strict=True))
            for i in range(0, len(drawn), TOGETHER)
        ]
        return {**default_collate(items), "img": torch.cat(parts)}

    def resample(self, crops: Sequence[torch.Tensor], flipped: Sequence[bool]) -> torch.Tensor:
        """Crops `[3, h, w]` of any sizes -> normalised pixels `[B, 3, H, W]`.

        Pillow's arithmetic to the bit: columns, then rows, each pass with weights in units of 2^-22
        and rounded to grey levels; sums of such numbers are exact in double precision, so that a
        crop does not depend on its company. (Pillow 13 takes the rows first for some sizes, which
        moves some pixels by a few levels.)
        """
        kind = self.crop.interpolation.value
        rows, columns = (
            resampling([crop.shape[side] for crop in crops], target, kind, self.device)
            for side, target in zip((1, 2), self.crop.size, strict=True)
        )
        levels = torch.stack(
            [
                round_off(
                    down[:, : crop.shape[1]]
                    @ round_off(crop.double() @ across[:, : crop.shape[2]].T)
                )
                for crop, down, across in zip(crops, rows, columns, strict=True)
            ]
        )
        levels = torch.where(
            torch.tensor(flipped, device=self.device)[:, None, None, None], levels.flip(-1), levels
        )
        return self.normalize(levels.float().div_(255))


def round_off(sums: torch.Tensor) -> torch.Tensor:
    """Grey levels of sums with weights in units: halves go upwards."""
    return sums.add_(UNITS / 2).div_(UNITS).floor_().clamp_(0, 255)


def resampling(
    lengths: Sequence[int], target: int, interpolation: str, device: torch.device
) -> torch.Tensor:
    """Weights of Pillow's antialiased resampling in units, `[B, target, longest length]`.

    Of every pixel of B rows in each of `target` new ones.
    """
    sizes = torch.tensor(lengths, device=device)[:, None, None]
    reach, kernel = KERNELS[interpolation]
    scale = sizes.double() / target
    # a kernel that is as wide as what one new pixel covers: antialiasing
    stretch = scale.clamp_min(1)
    centre = (torch.arange(target, device=device)[:, None] + 0.5) * scale
    pixel = torch.arange(int(sizes.max()), device=device)
    first, last = ((centre + side * reach * stretch + 0.5).long() for side in (-1, 1))
    inside = (pixel >= first) & (pixel < last) & (pixel < sizes)
    distance = ((pixel + 0.5 - centre) / stretch).abs().clamp_max(reach)  # where every kernel is 0
    weights = torch.where(inside, kernel(distance), 0)
    weights = weights / weights.sum(-1, keepdim=True) * UNITS
    return (weights.abs() + 0.5).floor() * weights.sign()
