"""Text features by open_clip's transformer blocks taken apart, without what nobody reads.

In `[SOS][v_1]…[v_n][class tokens][EOT]` nothing behind the first n + 1 positions, which all C
classes share, can change them in a causal tower: their keys and values are computed once a
candidate. Classes of one length go together, so that nothing is padded, and in the last layer only
EOT, which is read, asks. 100 classes take a ViT-B/32 a 24th of the time (docs/RESULTS.md).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import nn

from ..errors import BlackBoxError

# of towers of CLIP's widths: larger arrays leave the cache, and the system takes them back
CPU_POSITIONS = 2**12
ALL, LAST, NONE = slice(None), slice(-1, None), slice(0, 0)
Kept = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, a pair a layer


def told(tower: Any, name: str) -> Any:
    """A setting of a text tower; a CLIP has it under another name."""
    return getattr(tower, name, getattr(tower, f"text_{name}", None))


def positions_at_once(transformer: Any) -> int:
    """Token positions that may go through a tower at once, a power of two."""
    weight = transformer.resblocks[0].mlp.c_fc.weight
    device, (hidden, width) = weight.device, weight.shape
    if device.type != "cuda":
        return CPU_POSITIONS
    # the MLP's hidden layer in and out; queries, keys, values and what is on its way
    bytes_each = weight.element_size() * (2 * hidden + 8 * width)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return 2 ** max(10, int(free / 4 / bytes_each).bit_length() - 1)


def pieces(transformer: Any, count: int, positions: int) -> tuple[torch.Tensor, ...]:
    """Numbers 0 to count - 1, of `positions` each, in as few nearly equal parts as fit the tower.

    Equal, because the last bits of a product of very few rows differ from those of many.
    """
    # attention kernels on a GPU take no more than 65,535 sequences
    most = min(2**15, max(1, positions_at_once(transformer) // positions))
    device = transformer.resblocks[0].mlp.c_fc.weight.device
    return torch.arange(count, device=device).chunk(-(-count // most))


def plain(blocks: Iterable[Any]) -> bool:
    """Whether `project` and `finish` are these blocks' own arithmetic: judged by their parts."""
    return all(
        type(block) is ResidualAttentionBlock
        and type(block.attn) is nn.MultiheadAttention
        and block.attn.in_proj_weight is not None
        and not hasattr(block, "ln_1_kv")
        for block in blocks
    )


def project(block: Any, x: torch.Tensor, asking: slice = ALL) -> list[torch.Tensor]:
    """Of `[N, L, D]` queries of those that ask, all keys, all values `[N, heads, …, D / heads]`."""
    weight, bias, x = block.attn.in_proj_weight, block.attn.in_proj_bias, block.ln_1(x)
    if asking == ALL:
        parts = [*F.linear(x, weight, bias).chunk(3, dim=-1)]
    else:
        D = x.shape[-1]
        queries = F.linear(x[:, asking], weight[:D], bias[:D])
        parts = [queries, *F.linear(x, weight[D:], bias[D:]).chunk(2, dim=-1)]
    return [part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for part in parts]


def finish(block: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """The rest of a block: `[N, L, D]` and its heads' answers `[N, heads, L, D / heads]`."""
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    mlp, hidden = block.mlp, block.ln_2(x)
    if torch.is_grad_enabled() or type(mlp.gelu) is not QuickGELU:
        return x + block.ls_2(mlp(hidden))
    # in place on the tower's widest array: a block takes a CPU a tenth less time
    hidden = mlp.c_fc(hidden)
    return x + block.ls_2(mlp.c_proj(hidden.mul_((1.702 * hidden).sigmoid_())))


def encode_prefix(blocks: Sequence[Any], x: torch.Tensor) -> Kept:
    """Keys and values of the shared prefix `[P, n + 1, D]`."""
    kept = []
    for block in blocks[:-1]:
        q, k, v = project(block, x)
        kept.append((k, v))
        x = finish(block, x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    _, k, v = project(blocks[-1], x, NONE)
    return [*kept, (k, v)]


def encode_suffix(
    blocks: Sequence[Any], x: torch.Tensor, kept: Kept, candidate: torch.Tensor
) -> torch.Tensor:
    """EOT `[N, D]` of sequences `[N, S, D]` that go on from the prefixes of candidates `[N]`."""
    S, length = x.shape[1], kept[0][0].shape[2]
    seen = torch.ones(S, length + S, dtype=torch.bool, device=x.device).tril(length)
    for block, (k0, v0) in zip(blocks, kept, strict=True):
        asking = LAST if block is blocks[-1] else ALL
        q, k, v = project(block, x, asking)
        k, v = torch.cat([k0[candidate], k], dim=2), torch.cat([v0[candidate], v], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v, seen[asking])
        x = finish(block, x[:, asking], attended)
    return x[:, 0]


class TextPath:
    """`[SOS][v_1]…[v_n][text of the class][EOT]` for C classes and P candidate contexts.

    A causal tower of open_clip's plain blocks that is read out at EOT takes the short way, others
    the plain way over all their positions. Gradients pass through both, for the white-box ceiling.
    """

    def __init__(self, loaded: Any) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.tower = tower = getattr(self.model, "text", self.model)  # a CLIP is its own
        self.length = tower.context_length
        self.short = False
        mask = getattr(tower, "attn_mask", None)
        at_end = told(tower, "pool_type") in ("argmax", "eos")
        if mask is not None and at_end and getattr(tower, "cls_emb", None) is None:
            seen = torch.ones_like(mask, dtype=torch.bool).tril()
            causal = torch.equal(~torch.isneginf(mask), seen)
            self.short = causal and plain(tower.transformer.resblocks)
        self.texts: list[list[int]] = []
        self.names: list[str] = []

    def encode(self, text: str) -> list[int]:
        """Token ids, without SOS and EOT."""
        try:
            ids = self.tokenizer.encode(text.encode().decode())
        except (AttributeError, UnicodeError) as e:
            raise BlackBoxError(f"{text!a} is not a text that can be read. Rename it.") from e
        if {self.tokenizer.sot_token_id, self.tokenizer.eot_token_id}.intersection(ids):
            raise BlackBoxError(f"{text!a} holds a token that begins or ends texts. Rename it.")
        return ids

    def look_up(self, ids: list[list[int]]) -> torch.Tensor:
        """Token embeddings `[C, L, D]`."""
        table = self.tower.token_embedding
        return table(torch.tensor(ids, dtype=torch.long, device=table.weight.device))

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        """Name the C classes, or raise a BlackBoxError that says why that cannot be."""
        if "{}" not in template:
            raise BlackBoxError(f"The template {template!a} has no slot {{}} for the class name.")
        for name in names:
            if not self.encode(name) or not self.encode(name.replace("_", " ")):
                raise BlackBoxError(f"The class name {name!a} has no words. Give it a name.")
        shown = [name.replace("_", " ") for name in names]
        self.texts = [self.encode(template.replace("{}", name)) for name in shown]
        self.names = shown
        self.check(0)

    def check(self, n: int) -> None:
        """Raise unless n context tokens, SOS, EOT and the longest class text fit into the tower."""
        if not self.texts:
            raise BlackBoxError("The oracle has no class names yet: call set_classes first.")
        text, name = max(zip(self.texts, self.names, strict=True), key=lambda pair: len(pair[0]))
        taken = n + len(text) + 2
        if taken > self.length:
            raise BlackBoxError(
                f"The class name '{name}' takes {len(text)} tokens with its template; with {n} "
                f"context tokens, SOS and EOT that is {taken} of {self.length} positions. Shorten."
            )

    def __call__(self, contexts: torch.Tensor) -> torch.Tensor:
        """Normalised text features `[P, C, E]`, float32, of contexts `[P, n, D]`."""
        self.check(contexts.shape[1])
        encode = self.encode_short if self.short else self.encode_plain
        contexts = contexts.to(self.tower.token_embedding.weight.device)
        return F.normalize(encode(contexts).float(), dim=-1)

    def encode_short(self, contexts: torch.Tensor) -> torch.Tensor:
        """`[P, C, E]`; every class's own tokens against the prefix that all share."""
        (P, n, _), transformer = contexts.shape, self.tower.transformer
        blocks, dtype = list(transformer.resblocks), transformer.get_cast_dtype()
        places = self.tower.positional_embedding.to(dtype)
        sos = self.look_up([[self.tokenizer.sot_token_id]]).to(dtype).expand(P, -1, -1)
        prefix = torch.cat([sos, contexts.to(dtype)], dim=1) + places[: n + 1]
        own = torch.tensor([len(text) + 1 for text in self.texts])
        buckets = [(own == length).nonzero()[:, 0] for length in own.unique()]
        at_once = positions_at_once(transformer) // (n + 1 + int(own.sum()))
        states = []
        for part in prefix.split(max(1, at_once)):
            kept, found = encode_prefix(blocks, part), []
            for bucket in buckets:
                ids = [[*self.texts[i], self.tokenizer.eot_token_id] for i in bucket]
                C, S = len(ids), len(ids[0])
                suffix = self.look_up(ids).to(dtype) + places[n + 1 : n + 1 + S]
                ends = [
                    encode_suffix(blocks, suffix[rows % C], kept, rows // C)
                    for rows in pieces(transformer, len(part) * C, n + 1 + S)
                ]
                found.append(torch.cat(ends).unflatten(0, (len(part), C)))
            states.append(torch.cat(found, dim=1)[:, torch.cat(buckets).argsort()])
        x, projection = self.tower.ln_final(torch.cat(states)), self.tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def encode_plain(self, contexts: torch.Tensor) -> torch.Tensor:
        """`[P, C, E]` by the model's own `encode_text`, with contexts in the slots after SOS."""
        (P, n, _), C = contexts.shape, len(self.texts)
        begin, end = [self.tokenizer.sot_token_id] * (n + 1), self.tokenizer.eot_token_id
        texts = [[*begin, *text, end] for text in self.texts]
        padded = [text + [0] * (self.length - len(text)) for text in texts]
        ids, features = torch.tensor(padded, device=contexts.device), []

        def fill(module: nn.Module, inputs: Any, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, :1], contexts[rows // C].to(x.dtype), x[:, n + 1 :]], dim=1)

        with self.tower.token_embedding.register_forward_hook(fill):
            for rows in pieces(self.tower.transformer, P * C, self.length):
                features.append(self.model.encode_text(ids[rows % C]))
        return torch.cat(features).view(P, C, -1)
