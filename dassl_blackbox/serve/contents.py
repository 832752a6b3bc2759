"""What clients have sent: images and lists of texts, by the names of their contents, on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.openclip.local import FeatureStore
from ..trainers.blackbox.oracle.cache import open_cache
from ..trainers.blackbox.oracle.interface import Description
from ..trainers.blackbox.oracle.texts import Texts
from ..trainers.blackbox.oracle.wire import normalised

PICTURE, PIXELS = b"u", b"f"  # first byte of a value: 8-bit, or normalised numbers


class Contents:
    """A cache on disk within a bound, what was stored first out first.

    Several servers on one machine may share it, and one that is started anew finds it again.

    Args:
        folder: its own.
        limit: bytes.
        description: of the model, which says how large an image is and how it is normalised.

    Raises:
        BlackBoxError: the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int, description: Description) -> None:
        self.shape = (3, *description.image_size)
        self.description = description
        try:
            self.cache = open_cache(folder, limit)
        except Exception as e:
            raise BlackBoxError(f"{folder} cannot hold what is sent ({first_line(e)}).") from e

    def put_images(self, names: Sequence[str], images: torch.Tensor) -> None:
        """Keep images `[B, 3, H, W]`: 8-bit pictures (uint8) or normalised pixels (float32)."""
        kind = PICTURE if images.dtype == torch.uint8 else PIXELS
        rows = images.contiguous().flatten(1).view(torch.uint8).numpy()
        with self.cache.transact():
            for name, row in zip(names, rows, strict=True):
                self.cache.set(f"image {name}", kind + row.tobytes())
        self.cache.cull()

    def has_image(self, name: str) -> bool:
        return f"image {name}" in self.cache

    def image(self, name: str) -> torch.Tensor | None:
        """Normalised pixels `[3, H, W]`."""
        value = self.cache.get(f"image {name}")
        if not value:
            return None
        kind = torch.uint8 if value[:1] == PICTURE else torch.float32
        stored = torch.frombuffer(bytearray(value[1:]), dtype=kind).view(self.shape)
        return normalised(stored, self.description) if kind == torch.uint8 else stored

    def put_texts(self, texts: Texts) -> None:
        value = json.dumps([texts.template, list(texts.names)]).encode()
        self.cache.set(f"texts {texts.id}", value)

    def texts(self, name: str) -> Texts | None:
        value = self.cache.get(f"texts {name}")
        if not value:
            return None
        template, names = json.loads(value)
        return Texts.of(names, template)

    def close(self) -> None:
        self.cache.close()


def missing(names: Sequence[str], contents: Contents, features: FeatureStore | None) -> list[str]:
    """Names of images that neither the contents nor the features (if they do) are known of."""
    return [
        name
        for name in dict.fromkeys(names)
        if not (features is not None and bytes.fromhex(name) in features)
        and not contents.has_image(name)
    ]
