"""Features of images, found again by what the image shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch

from ..parts import few_at_a_time

LIMIT = 2**29  # bytes that are kept
KEY_BYTES = 288  # of a key, its slot and their places in an OrderedDict, where these cost most
BLOCK_ROWS = 4096
FEW = 8


class FeatureStore:
    """Rows `[E]` by the image's content, the least recently used out first.

    A row is copied into a slot of a block that the store owns, so that it keeps nothing else alive.

    Args:
        limit: bytes that rows, keys and their order take at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.slots: OrderedDict[bytes, int] = OrderedDict()
        self.blocks: list[torch.Tensor] = []
        self.weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def __contains__(self, key: bytes) -> bool:
        return key in self.slots

    def fingerprints(self, pixels: torch.Tensor) -> list[bytes]:
        """128 bits of every image's content, `[B, 3, H, W]`, computed where the pixels are.

        Two sums, modulo 2^64, of the bits of the pixels times random odd numbers: the chance that
        two different images share both is below 2^-60.
        """
        bits = pixels.float().flatten(1).contiguous().view(torch.int32)
        if self.weights is None or self.weights.shape[1] != bits.shape[1]:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randint(-(2**62), 2**62, (2, bits.shape[1]), generator=generator)
            self.weights = drawn * 2 + 1
        self.weights = self.weights.to(bits.device)
        sums = [
            torch.stack([(part * weights).sum(1) for weights in self.weights], dim=1)
            for part in few_at_a_time(bits)
        ]
        return [row.tobytes() for row in torch.cat(sums).cpu().numpy()]

    def fill(
        self, pixels: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Features `[B, E]` of images `[B, 3, H, W]`; `encode` gets those that are not known."""
        return self.named(self.fingerprints(pixels), pixels.__getitem__, encode)

    def named(
        self,
        keys: list[bytes],
        pixels: Callable[[list[int] | slice], torch.Tensor],
        encode: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The same of images whose contents are named; `pixels` gives those of some of them.

        Each content is encoded once, and a few unknown ones in the company of others of their
        batch: matrix products of very few rows take other kernels, whose last bits differ, and a
        feature should not depend on what happened to be known.
        """
        unknown: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in self.slots:
                unknown.setdefault(key, i)
        rows = {key: self.row(self.slots[key]) for key in keys if key not in unknown}
        if unknown:
            chosen = list(unknown.values())
            company = sorted(set(range(len(keys))).difference(chosen))[: max(0, FEW - len(chosen))]
            whole = len(chosen) + len(company) == len(keys)
            encoded = encode(pixels(slice(None) if whole else chosen + company))
            encoded = encoded[chosen if whole else slice(len(chosen))]
            rows.update(zip(unknown, encoded, strict=True))
        features = torch.stack([rows[key] for key in keys])
        self.touch(keys)
        if unknown:
            self.keep(list(unknown), encoded)
            self.touch(keys)
        return features

    def row(self, slot: int) -> torch.Tensor:
        return self.blocks[slot // BLOCK_ROWS][slot % BLOCK_ROWS]

    def touch(self, keys: list[bytes]) -> None:
        """Put these last in the order, in the order given."""
        for key in keys:
            if key in self.slots:
                self.slots.move_to_end(key)

    def keep(self, keys: list[bytes], encoded: torch.Tensor) -> None:
        """Copy new rows `[U, E]` into free slots, then into those of the least recently used."""
        capacity = self.limit // (encoded.shape[1] * encoded.element_size() + KEY_BYTES)
        keys, encoded = keys[-capacity:] if capacity else [], encoded[-capacity:]
        placed: dict[int, tuple[list[int], list[int]]] = {}
        for i, key in enumerate(keys):
            full = len(self.slots) >= capacity
            slot = self.slots.popitem(last=False)[1] if full else len(self.slots)
            self.slots[key] = slot
            to, of = placed.setdefault(slot // BLOCK_ROWS, ([], []))
            to.append(slot % BLOCK_ROWS)
            of.append(i)
        for block, (to, of) in placed.items():
            if block == len(self.blocks):
                size = min(BLOCK_ROWS, capacity - block * BLOCK_ROWS)
                self.blocks.append(encoded.new_empty(size, encoded.shape[1]))
            self.blocks[block][to] = encoded[of]
