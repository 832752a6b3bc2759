"""Text features of prompts whose first words are given as vectors.

The exact short way through a causal text tower spares padding, and the shared prefix of a candidate
is computed once: in `[SOS][v_1]…[v_n][class tokens][EOT]` the first n + 1 positions are the same
for all C classes, and in a causal tower nothing behind them can change them. Each class runs its
own few tokens against their keys and values. Classes of one length go together, so that nothing is
padded, and in the last layer only EOT, which is read, asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import BlackBoxError
from ..oracle.interface import NoClasses
from .blocks import ALL, finish, pieces, plain, positions_at_once, project
from .describe import text_pool, text_tower

EOT, NONE = slice(-1, None), slice(0, 0)
Kept = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, a pair a layer


class TextPath:
    """`[SOS][v_1]…[v_n][text of the class][EOT]` for C classes and P candidate contexts.

    On any text tower of open_clip's own: a causal one that is read out at EOT takes the short way,
    any other the plain way over all its positions. Gradients pass through both (the white-box
    ceiling needs them); the oracle calls them under `no_grad`.
    """

    def __init__(self, loaded: Any) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.length = loaded.description.context_length
        self.tower = text_tower(self.model)
        self.short = short_way_fits(self.tower)
        self.texts: list[list[int]] = []
        self.names: list[str] = []
        self.ids: dict[tuple[int, int | None], tuple[torch.Tensor, torch.Tensor]] = {}
        # stands where a context is put, and must not be what the tower takes for padding
        self.placeholder = 2 if getattr(self.tower, "pad_id", 0) == 1 else 1

    def encode(self, text: str) -> list[int]:
        """Token ids, without SOS and EOT.

        Raises:
            BlackBoxError: the text is none, or holds half a character or a special token.
        """
        try:
            text.encode("utf-8")
            ids = self.tokenizer.encode(text)
        except (AttributeError, UnicodeError) as e:
            raise BlackBoxError(
                f"{text!a} is not a text that can be read (a number, or a name in another encoding "
                f"than UTF-8, perhaps). Rename it."
            ) from e
        if {self.tokenizer.sot_token_id, self.tokenizer.eot_token_id}.intersection(ids):
            raise BlackBoxError(f"{text!a} holds a token that begins or ends texts. Rename it.")
        return ids

    def embed(self, words: str) -> torch.Tensor:
        """`[n, D]` float32 token embeddings."""
        table = self.tower.token_embedding
        ids = torch.tensor(self.encode(words), dtype=torch.long, device=table.weight.device)
        return table(ids).float()

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        """Name the C classes.

        Raises:
            BlackBoxError: no class, one without words, a template without a slot, or a text that
                is too long.
        """
        if not len(names):
            raise BlackBoxError("There are no classes: at least one name is needed.")
        if "{}" not in template:
            raise BlackBoxError(f"The template {template!a} has no slot {{}} for the class name.")
        for name in names:
            if not self.encode(name.replace("_", " ") if isinstance(name, str) else name):
                raise BlackBoxError(f"The class name {name!a} has no words. Give it a name.")
        self.names = [name.replace("_", " ") for name in names]
        self.texts = [self.encode(template.replace("{}", name)) for name in self.names]
        self.ids = {}
        self.check(0)

    def check(self, n: int) -> None:
        """Raise unless n context tokens, SOS, EOT and the longest class text fit into the tower."""
        if not self.texts:
            raise NoClasses
        text, name = max(zip(self.texts, self.names, strict=True), key=lambda pair: len(pair[0]))
        taken = n + len(text) + 2
        if taken > self.length:
            raise BlackBoxError(
                f"The class name '{name}' takes {len(text)} tokens with its template; with {n} "
                f"context tokens, SOS and EOT that is {taken}, and the text tower has "
                f"{self.length} positions. Shorten the name or the context."
            )

    def tokens(self, n: int, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids `[C, L]` with n placeholders after SOS, and the position of EOT `[C]`.

        L is the length of the longest prompt, or `length`.
        """
        if (n, length) not in self.ids:
            device = self.tower.token_embedding.weight.device
            begin = [self.tokenizer.sot_token_id, *[self.placeholder] * n]
            rows = [[*begin, *text, self.tokenizer.eot_token_id] for text in self.texts]
            most = length or max(map(len, rows))
            ids = torch.tensor([row + [0] * (most - len(row)) for row in rows])
            end = torch.tensor([len(row) - 1 for row in rows])
            self.ids[n, length] = ids.to(device), end.to(device)
        return self.ids[n, length]

    def __call__(self, contexts: torch.Tensor) -> torch.Tensor:
        """Normalised text features `[P, C, E]`, float32, of contexts `[P, n, D]`."""
        self.check(contexts.shape[1])
        encode = self.encode_short if self.short else self.encode_plain
        contexts = contexts.to(self.tower.token_embedding.weight.device)
        return F.normalize(encode(contexts).float(), dim=-1)

    def encode_short(self, contexts: torch.Tensor) -> torch.Tensor:
        """`[P, C, E]`; every class's own tokens against the prefix that all share."""
        return encode_by_prefix(self.tower, contexts, *self.tokens(contexts.shape[1]))

    def encode_plain(self, contexts: torch.Tensor) -> torch.Tensor:
        """`[P, C, E]` by the model's own `encode_text`.

        A hook on the token embedding puts the context in the placeholders' slots.
        """
        (P, n, _), C = contexts.shape, len(self.texts)
        ids, _ = self.tokens(n, self.length)
        at_once = max(1, positions_at_once(self.tower.transformer) // self.length)
        features = []
        for rows in torch.arange(P * C, device=ids.device).split(at_once):
            part = contexts[rows // C]

            def fill(
                module: nn.Module, inputs: Any, x: torch.Tensor, part: torch.Tensor = part
            ) -> torch.Tensor:
                return torch.cat([x[:, :1], part.to(x.dtype), x[:, n + 1 :]], dim=1)

            handle = self.tower.token_embedding.register_forward_hook(fill)
            try:
                features.append(self.model.encode_text(ids[rows % C]))
            finally:
                handle.remove()
        return torch.cat(features).view(P, C, -1)


def short_way_fits(tower: Any) -> bool:
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


def encode_by_prefix(
    tower: Any, contexts: torch.Tensor, ids: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """Text features `[P, C, E]`, not normalised.

    Args:
        tower: a text tower for which `short_way_fits` holds.
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
