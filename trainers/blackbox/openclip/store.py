"""Features of images, found again by what the image shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch

from ..oracle.interface import few_at_a_time

LIMIT = 2**29  # bytes that are kept
ROW_BYTES = 768  # of a key, its place in an OrderedDict and a tensor, beside the tensor's numbers
FEW = 8


class FeatureStore:
    """Rows `[E]` by the image's content, the least recently used out first.

    Args:
        limit: bytes that all of it takes at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.rows: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self.rows

    def fingerprints(self, pixels: torch.Tensor) -> list[bytes]:
        """128 bits of every image's content, `[B, 3, H, W]`, computed where the pixels are.

        Two sums, modulo 2^64, of the bits of the pixels times random odd numbers: the chance that
        two different images share both is below 2^-60.
        """
        bits = pixels.float().flatten(1).contiguous().view(torch.int32)
        if self.weights is None or self.weights.shape[1] != bits.shape[1]:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randint(-(2**62), 2**62, (2, bits.shape[1]), generator=generator)
            self.weights = (drawn * 2 + 1).to(bits.device)
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

        Each content is encoded once, and a few unknown ones together with others of their batch:
        matrix products of very few rows take other kernels, whose last bits differ, and a feature
        should not depend on what happened to be known.
        """
        first = {key: i for i, key in reversed([*enumerate(keys)])}
        found = {key: self.rows[key] for key in first if key in self.rows}
        unknown = sorted(i for key, i in first.items() if key not in found)
        if unknown:
            others = sorted({*range(len(keys))}.difference(unknown))[: max(0, FEW - len(unknown))]
            whole = len(unknown) + len(others) == len(keys)
            encoded = encode(pixels(slice(None) if whole else unknown + others))
            rows = encoded[unknown] if whole else encoded[: len(unknown)]
            # copied: a view would keep the whole batch alive
            found.update((keys[i], row.clone()) for i, row in zip(unknown, rows, strict=True))
        for key in keys:
            self.rows[key] = found[key]
            self.rows.move_to_end(key)
        features = torch.stack([found[key] for key in keys])
        capacity = self.limit // (features[0].nbytes + ROW_BYTES)
        while len(self.rows) > capacity:
            self.rows.popitem(last=False)
        return features
