"""The exact short way through a vision transformer whose class token is read.

It serves many candidates' image tokens, or none. Image tokens `[P, n_V, W]` follow class token and
patches, after the position embedding and before `ln_pre`. Until the first attention the two do not
meet: patches are embedded, normalised and projected once an image, tokens once a candidate. In the
last layer only the class token asks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer

from .blocks import ALL, finish, pieces, plain, project

CLASS_TOKEN, NONE = slice(0, 1), slice(0, 0)


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

    `fits` holds for the tower; n_V may be 0.
    """
    patches = visual._embeds(pixels)  # and the class token in front: [B, 1 + G, W]
    tokens = visual.ln_pre(tokens.to(patches.dtype))
    B, blocks = len(patches), list(visual.transformer.resblocks)
    one_layer = len(blocks) == 1
    own = project(blocks[0], patches, CLASS_TOKEN if one_layer else ALL)
    added = project(blocks[0], tokens, NONE if one_layer else ALL)
    found = []
    for rows in pieces(visual.transformer, len(tokens) * B, patches.shape[1] + tokens.shape[1]):
        candidate, image = rows // B, rows % B
        x = torch.cat([patches[image], tokens[candidate]], dim=1)
        parts = [
            torch.cat([a[image], b[candidate]], dim=2) for a, b in zip(own, added, strict=True)
        ]
        for block in blocks:
            if block is not blocks[0]:
                parts = project(block, x, CLASS_TOKEN if block is blocks[-1] else ALL)
            if block is blocks[-1]:
                x = x[:, CLASS_TOKEN]
            q, k, v = parts
            x = finish(block, x, F.scaled_dot_product_attention(q, k, v))
        found.append(visual.ln_post(x[:, 0]))
    features = torch.cat(found).unflatten(0, (-1, B))
    return features if visual.proj is None else features @ visual.proj
