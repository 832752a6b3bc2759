"""What a CPU spares of a convolutional image tower: `photo` takes 2.6 s in place of 6.0.

Of 128 images with one thread, 3.9 s with its batch norms folded, and 2.6 eight images at a time; 32
images by RN50: 7.1, 5.9 and 4.5 s (benchmarks/image_tower.py). In evaluation a batch norm is an
affine map of each channel, which the weights of the convolution before it can hold.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..oracle.interface import QUERY_IMAGES

CONVOLVED = 8  # images; of 4 to 128, the fastest for `photo` and RN50
TOLERANCE = 1e-4  # of a normalised feature's entries; rounding alone is below 1e-6


@torch.no_grad()
def fold_batch_norms(visual: nn.Module, height: int, width: int) -> nn.Module:
    """A tower that gives the same features; the tower itself where there is nothing to fold.

    A random image shows which norm takes a convolution's output, and whether the features stay.

    Args:
        visual: in evaluation mode, in float32; it is left as it is.
        height, width: of its images.
    """
    if not any(isinstance(module, _BatchNorm) for module in visual.modules()):
        return visual
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    folded = copy.deepcopy(visual).cpu()  # a GPU may round convolutions to fewer bits
    names = {module: name for name, module in folded.named_modules()}
    norms = [m for m in names if isinstance(m, _BatchNorm) and m.running_mean is not None]
    made: dict[int, tuple[Any, torch.Tensor]] = {}  # what a tensor came from; it keeps its id
    pairs: dict[Any, Any] = {}

    def gave(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        made[id(output)] = module, output

    def took(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if id(inputs[0]) in made:
            pairs[module] = made[id(inputs[0])][0]

    handles = [m.register_forward_hook(gave) for m in names if isinstance(m, nn.Conv2d)]
    handles += [norm.register_forward_pre_hook(took) for norm in norms]
    before = F.normalize(folded(pixels), dim=-1)
    for handle in handles:
        handle.remove()
    for norm, conv in pairs.items():
        moments = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *moments)
        # timm's norms have their activation inside
        folded.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
    apart = (F.normalize(folded(pixels), dim=-1) - before).abs().max()
    if not apart < TOLERANCE:  # an output or a norm is used twice
        return visual
    return folded.requires_grad_(False).to(next(visual.parameters()).device)


def tower_batch(visual: nn.Module, device: torch.device) -> int:
    """How many images an image tower encodes at a time.

    What a convolution gives of more does not fit a processor's cache. A transformer, whose one
    convolution cuts the patches, gains nothing.
    """
    convolutions = sum(isinstance(part, nn.Conv2d) for part in visual.modules())
    return CONVOLVED if device.type == "cpu" and convolutions > 1 else QUERY_IMAGES
