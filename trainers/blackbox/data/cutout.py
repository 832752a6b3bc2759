"""A train transform that hides a part of the image in place of cropping it."""

from __future__ import annotations

import random
from typing import Any

import torchvision.transforms as T
from dassl.data.transforms import build_transform
from PIL import Image, ImageDraw


class Cutout:
    """A rectangle of one random colour on a picture, around a random point; a border may cut it.

    https://arxiv.org/abs/1708.04552, with a colour in place of black. Its height and width are
    `share` of the picture's.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, picture: Image.Image) -> Image.Image:
        picture = picture.copy()
        centre = [random.randrange(side) for side in picture.size]
        half = [round(self.share * side) // 2 for side in picture.size]
        low = [max(c - h, 0) for c, h in zip(centre, half, strict=True)]
        high = [min(c + h, side - 1) for c, h, side in zip(centre, half, picture.size, strict=True)]
        colour = tuple(random.randrange(256) for _ in range(3))
        ImageDraw.Draw(picture).rectangle([*low, *high], fill=colour)
        return picture


def crop_or_cutout(cfg: Any, share: float) -> T.Compose:
    """Dassl's train transform, in which half of the images are resized whole and cut out.

    The other half is cropped as `INPUT.TRANSFORMS` says. Without a `random_resized_crop` in it,
    Dassl's transform as it is.
    """
    built = build_transform(cfg, is_train=True)
    for n, step in enumerate(built.transforms):
        if isinstance(step, T.RandomResizedCrop):
            whole = T.Compose([T.Resize(step.size), Cutout(share)])
            built.transforms[n] = T.RandomChoice([step, whole])
            print(
                f"+ in half of the images resize and cutout ({share}) for the random resized crop"
            )
    return built
