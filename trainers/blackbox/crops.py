"""Random resized crops and flips in batches, on the device that encodes: drawn as torchvision draws them, resampled as Pillow does."""

import numpy as np
import torch
import torchvision.transforms as T
from torch.utils.data import default_collate

from .errors import BlackBoxError
from .pictures import Pictures

TOGETHER = 32   # pictures that are resampled at a time
# by interpolation: reach of the kernel, and the kernel as a function of the distance in pixels
KERNELS = {
    "bilinear": (1, lambda x: 1 - x),
    "bicubic": (2, lambda x: torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)),     # a = -1/2
}


class Cropper:
    """In a loader without worker processes: `draw` is the transform of a picture, and `collate` makes the pixels of a batch.

    With the same state of torch's generator the crops are those of the transform that it stands for, and the pixels too, up to the rounding of a grey level.

    Args:
        transform: Dassl's transform for training, of torchvision's random resized crop, perhaps a flip, and the normalisation.
        device: where pictures lie (uint8 `[3, H, W]`, of any size) and pixels are made.
        limit: bytes of pictures that are kept.

    Raises:
        BlackBoxError: the transform has other steps, or an interpolation that is not here.
    """

    def __init__(self, transform, device, limit):
        steps = {type(step): step for step in transform.transforms}
        known = {T.RandomResizedCrop, T.RandomHorizontalFlip, T.ToTensor, T.Normalize}
        self.crop, self.flip, self.normalize = (steps.get(kind) for kind in (T.RandomResizedCrop, T.RandomHorizontalFlip, T.Normalize))
        if set(steps) - known or self.crop is None or self.crop.interpolation.value not in KERNELS:
            raise BlackBoxError("INPUT.CROP_ON_DEVICE knows random_resized_crop (bilinear or bicubic), random_flip and normalize in INPUT.TRANSFORMS; here they are "
                                f"{', '.join(kind.__name__ for kind in steps)}. Set it to False, or change INPUT.TRANSFORMS.")
        self.device, self.pictures = device, Pictures(limit, self.hold)

    def hold(self, image):
        """What is kept of an RGB picture."""
        return torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)

    def draw(self, picture):
        """(the picture's part that was drawn, whether it is flipped)"""
        top, left, height, width = self.crop.get_params(picture, self.crop.scale, self.crop.ratio)
        flipped = self.flip is not None and bool(torch.rand(1) < self.flip.p)
        return picture[:, top:top + height, left:left + width], flipped

    def collate(self, items):
        """Like torch's own, with pixels `[B, 3, H, W]` of what was drawn."""
        drawn = [item.pop("img") for item in items]
        parts = [self.resample(*zip(*drawn[i:i + TOGETHER])) for i in range(0, len(drawn), TOGETHER)]
        return {**default_collate(items), "img": torch.cat(parts)}

    def resample(self, crops, flipped):
        """Crops `[3, h, w]` of any sizes -> normalised pixels `[B, 3, H, W]`.

        As Pillow does it: columns, then rows, each pass rounded to grey levels. (Pillow 13 takes the rows first for some sizes.)
        """
        (height, width), kind = self.crop.size, self.crop.interpolation.value
        heights, widths = (torch.tensor([crop.shape[side] for crop in crops], device=self.device) for side in (1, 2))
        canvas = torch.zeros(len(crops), 3, int(heights.max()), int(widths.max()), device=self.device)
        for place, crop in zip(canvas, crops):
            place[:, :crop.shape[1], :crop.shape[2]] = crop
        rows, columns = resampling(heights, height, canvas.shape[2], kind), resampling(widths, width, canvas.shape[3], kind)
        columns = torch.where(torch.tensor(flipped, device=self.device)[:, None, None], columns.flip(1), columns)
        levels = grey(rows[:, None] @ grey(canvas @ columns.mT[:, None]))
        return self.normalize(levels.div_(255))


def grey(levels):
    """Whole levels, halves upwards."""
    return levels.add_(0.5).floor_().clamp_(0, 255)


def resampling(sizes, target, longest, interpolation):
    """Weights of Pillow's antialiased resampling, `[B, target, longest]`: of every pixel of B rows, the first `sizes` of which count, in each of `target` new ones."""
    reach, kernel = KERNELS[interpolation]
    scale = (sizes.double() / target)[:, None, None]
    stretch = scale.clamp_min(1)     # a kernel that is as wide as what one new pixel covers: antialiasing
    centre = (torch.arange(target, device=sizes.device).double()[:, None] + 0.5) * scale
    pixel = torch.arange(longest, device=sizes.device)
    first, last = ((centre + side * reach * stretch + 0.5).long() for side in (-1, 1))
    inside = (pixel >= first) & (pixel < last) & (pixel < sizes[:, None, None])
    distance = ((pixel + 0.5 - centre) / stretch).abs().clamp_max(reach)   # where every kernel is 0
    weights = torch.where(inside, kernel(distance), 0)
    return (weights / weights.sum(-1, keepdim=True)).float()
