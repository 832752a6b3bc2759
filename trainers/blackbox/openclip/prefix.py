"""The exact short way through a causal text tower: no padding, the shared prefix once a candidate.

In `[SOS][v_1]…[v_n][class tokens][EOT]` the first n + 1 positions are the same for all C classes,
and in a causal tower nothing behind them can change them. Their keys and values are computed once a
candidate and layer; each class runs its own few tokens against them. Classes of one length go
together, so that nothing is padded, and in the last layer only EOT, which is read, asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import ALL, finish, pieces, plain, positions_at_once, project
from .describe import text_pool

EOT, NONE = slice(-1, None), slice(0, 0)
Kept = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, a pair a layer


def fits(tower: Any) -> bool:
    """Whether a tower, by its parts, is causal, read out at EOT and of open_clip's plain blocks."""
    mask = getattr(tower, "attn_mask", None)
    read_at_end = text_pool(tower) in ("argmax", "eos") and getattr(tower, "cls_emb", None) is None
    if mask is None or not read_at_end:
        return False
    causal = torch.equal(torch.isneginf(mask), torch.ones_like(mask, dtype=torch.bool).triu(1))
    return causal and plain(tower.transformer.resblocks)


def encode_prefix(blocks: Sequence[Any], x: torch.Tensor) -> Kept:
    """Keys and values of the shared prefix `[P, n + 1, D]`: one pair a layer."""
    kept = []
    for block in blocks:
        last = block is blocks[-1]  # where nothing but keys and values is needed
        q, k, v = project(block, x, NONE if last else ALL)
        kept.append((k, v))
        if not last:
            x = finish(block, x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return kept


def encode_suffix(
    blocks: Sequence[Any], x: torch.Tensor, kept: Kept, candidate: torch.Tensor
) -> torch.Tensor:
    """EOT `[N, D]` of sequences `[N, S, D]` that go on from the prefixes of candidates `[N]`."""
    S, length = x.shape[1], kept[0][0].shape[2]
    seen = torch.ones(S, length + S, dtype=torch.bool, device=x.device).tril(length)
    for block, (k0, v0) in zip(blocks, kept, strict=True):
        last = block is blocks[-1]
        q, k, v = project(block, x, EOT if last else ALL)
        k, v = torch.cat([k0[candidate], k], dim=2), torch.cat([v0[candidate], v], dim=2)
        mask = None if last else seen
        x = finish(block, x[:, EOT] if last else x, F.scaled_dot_product_attention(q, k, v, mask))
    return x[:, 0]


def encode(
    tower: Any, contexts: torch.Tensor, ids: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """Text features `[P, C, E]`, not normalised.

    Args:
        tower: a text tower for which `fits` holds.
        contexts: `[P, n, D]`.
        ids: tokens `[C, L]`, n placeholders after SOS.
        end: position of EOT `[C]`.
    """
    n, blocks = contexts.shape[1], list(tower.transformer.resblocks)
    dtype = tower.transformer.get_cast_dtype()
    places = tower.positional_embedding[: ids.shape[1]].to(dtype)
    words = tower.token_embedding(ids).to(dtype) + places
    front = contexts.to(dtype) + tower.positional_embedding[1 : n + 1].to(dtype)
    buckets = [(end == length).nonzero()[:, 0] for length in end.unique().tolist()]
    at_once = positions_at_once(tower.transformer)
    states = []
    for part in front.split(max(1, at_once // int((end - n).sum() + n + 1))):
        sos = words[:1, :1].expand(len(part), -1, -1)
        kept = encode_prefix(blocks, torch.cat([sos, part], dim=1))
        found = []
        for classes in buckets:
            suffix = words[classes, n + 1 : int(end[classes[0]]) + 1]
            C, length = len(classes), n + 1 + suffix.shape[1]
            ends = [
                encode_suffix(blocks, suffix[rows % C], kept, rows // C)
                for rows in pieces(tower.transformer, len(part) * C, length)
            ]
            found.append(torch.cat(ends).unflatten(0, (len(part), -1)))
        states.append(torch.cat(found, dim=1)[:, torch.cat(buckets).argsort()])
    x, projection = tower.ln_final(torch.cat(states)), tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection
