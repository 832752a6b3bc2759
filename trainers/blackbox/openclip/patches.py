"""Exact short ways through an image tower.

In a plain ViT's last layer only the class token asks. Of a convolutional tower the batch norms are
folded, and a CPU encodes eight images at a time: 128 by `photo` with one thread take 2.6 s in place
of 6.0, 32 by RN50 4.5 in place of 7.1 (benchmarks/image_tower.py).
"""

import copy
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from open_clip.utils import to_2tuple
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .blocks import finish, pieces, plain, project

CLASS_TOKEN = slice(0, 1)
CONVOLVED = 8  # images that fit a processor's cache; of 4 to 128, the fastest for `photo` and RN50


def fits(visual: Any) -> bool:
    """Whether a tower, by its parts, is open_clip's plain ViT, read out at its class token."""
    return (
        type(visual) is VisionTransformer
        and hasattr(visual, "_embeds")
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.output_tokens
        and not visual.training
        and plain(visual.transformer.resblocks)
    )


def encode(visual: Any, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Image features `[P, B, E]`, not normalised, of `[B, 3, H, W]` and tokens `[P, n_V, W]`.

    The tokens, if any, follow the patches, after the position embedding and before `ln_pre`.
    """
    patches = visual._embeds(pixels)  # and the class token in front: [B, 1 + G, W]
    tokens = visual.ln_pre(tokens.to(patches.dtype))
    B, found = len(patches), []
    *blocks, last = visual.transformer.resblocks
    for rows in pieces(visual.transformer, len(tokens) * B, patches.shape[1] + tokens.shape[1]):
        x = torch.cat([patches[rows % B], tokens[rows // B]], dim=1)
        for block in blocks:
            q, k, v = project(block, x)
            x = finish(block, x, F.scaled_dot_product_attention(q, k, v))
        q, k, v = project(last, x, CLASS_TOKEN)
        x = finish(last, x[:, CLASS_TOKEN], F.scaled_dot_product_attention(q, k, v))
        found.append(visual.ln_post(x[:, 0]))
    features = torch.cat(found).unflatten(0, (-1, B))
    return features if visual.proj is None else features @ visual.proj


def image_size(visual: Any) -> tuple[int, int]:
    """(height, width) in pixels."""
    return tuple(to_2tuple(visual.image_size))


@torch.no_grad()
def fold_batch_norms(visual: Any) -> Any:
    """A tower that gives the same features, or, where it would not, the tower itself.

    In evaluation a batch norm is an affine map of each channel, which the weights of the
    convolution before it can hold. Whether that feeds it, and nothing else, shows a random image.
    """
    if not any(isinstance(part, _BatchNorm) for part in visual.modules()):
        return visual
    folded = copy.deepcopy(visual).cpu()  # a GPU may round convolutions to fewer bits
    noise = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, *image_size(visual), generator=noise)
    before = F.normalize(folded(pixels), dim=-1)
    modules: Any = folded.named_modules()
    parts = [item for item in modules if isinstance(item[1], (nn.Conv2d, _BatchNorm))]
    for (_, conv), (name, norm) in pairwise(parts):
        channels = getattr(conv, "out_channels", None)
        if channels == getattr(norm, "num_features", 0) and norm.running_mean is not None:
            moments = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *moments)
            # timm's norms have their activation inside
            folded.set_submodule(name, getattr(norm, "act", nn.Identity()))
    apart = (F.normalize(folded(pixels), dim=-1) - before).abs().max()
    if not apart < 1e-4:  # rounding alone is below 1e-6
        return visual
    return folded.requires_grad_(False).to(next(visual.parameters()).device)
