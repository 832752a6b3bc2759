"""What clients have sent: images and lists of texts, by the names of their contents, on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.oracle import Description, Texts
from ..trainers.blackbox.oracle.wire import normalised, open_cache

PICTURE, PIXELS = b"u", b"f"  # first byte of a value: 8-bit, or normalised numbers


class Contents:
    """A cache on disk for each account, what was stored first out first.

    No account finds, or pushes out, what another has sent. Several servers on one machine may share
    the folder, and one that is started anew finds what is there.

    Args:
        folder: its own.
        limit: bytes of all of it, the same part for each account.
        description: of the model, which says how large an image is and how it is normalised.
        owners: names of the accounts.

    Raises:
        BlackBoxError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, limit: int, description: Description, owners: Sequence[str]
    ) -> None:
        self.shape = (3, *description.image_size)
        self.description = description
        self.caches: dict[str, Any] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for owner in owners:
                own = folder / hashlib.sha256(owner.encode()).hexdigest()[:16]
                self.caches[owner] = open_cache(own, limit // len(owners))
        except Exception as e:
            raise BlackBoxError(f"{folder} cannot hold what is sent ({first_line(e)}).") from e

    def put_images(self, owner: str, names: Sequence[str], images: torch.Tensor) -> None:
        """Keep images `[B, 3, H, W]`: 8-bit pictures (uint8) or normalised pixels (float32)."""
        kind = PICTURE if images.dtype == torch.uint8 else PIXELS
        rows = images.contiguous().flatten(1).view(torch.uint8).numpy()
        cache = self.caches[owner]
        with cache.transact():
            for name, row in zip(names, rows, strict=True):
                cache.set(f"image {name}", kind + row.tobytes())
        cache.cull()

    def missing(self, owner: str, names: Sequence[str]) -> list[str]:
        """Those of the names of images that the account has not sent."""
        cache = self.caches[owner]
        return [name for name in dict.fromkeys(names) if f"image {name}" not in cache]

    def image(self, owner: str, name: str) -> torch.Tensor | None:
        """Normalised pixels `[3, H, W]`."""
        value = self.caches[owner].get(f"image {name}")
        if not value:
            return None
        kind = torch.uint8 if value[:1] == PICTURE else torch.float32
        stored = torch.frombuffer(bytearray(value[1:]), dtype=kind).view(self.shape)
        return normalised(stored, self.description) if kind == torch.uint8 else stored

    def put_texts(self, owner: str, texts: Texts, room: int) -> None:
        """Keep a list of texts, and the number of context tokens that fit in front."""
        value = json.dumps([texts.template, list(texts.names), room]).encode()
        self.caches[owner].set(f"texts {texts.id}", value)

    def texts(self, owner: str, name: str) -> tuple[Texts, int] | None:
        value = self.caches[owner].get(f"texts {name}")
        if not value:
            return None
        template, names, room = json.loads(value)
        return Texts.of(names, template), room

    def close(self) -> None:
        for cache in self.caches.values():
            cache.close()
