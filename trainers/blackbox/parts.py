"""Parts of a batch of images that stay in a processor's cache."""

from __future__ import annotations

import torch
from torch import nn

IN_CACHE = 2**17  # numbers; an image of 224 x 224 pixels has 150,528
CONVOLVED = 8  # images; of 4 to 128, the fastest for `photo` and RN50


def few_at_a_time(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The batch `[B, ...]` in parts of at least one image; whole on another device.

    Element-wise work on a whole batch writes and reads tens of megabytes at every operation: a part
    at a time, it takes a tenth of the time. A device is slower with many small calls.
    """
    if images.device.type != "cpu":
        return (images,)
    return images.split(max(1, IN_CACHE // max(1, images[:1].numel())))


def tower_batch(visual: nn.Module, device: torch.device) -> int | None:
    """How many images an image tower encodes at a time; None: all that there are.

    What a convolution gives of a whole batch does not fit a processor's cache, and eight images at
    a time take half of the time. A transformer, whose one convolution cuts the patches, gains
    nothing.
    """
    convolutions = sum(isinstance(part, nn.Conv2d) for part in visual.modules())
    return CONVOLVED if device.type == "cpu" and convolutions > 1 else None
