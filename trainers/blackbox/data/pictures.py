"""The training pictures, read and decoded once a run."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from .decoding import DEEP, DIM, decode, is_dim, naming, opened, quiet, regular, rules, to_rgb

THREADS = 4  # that read pictures: Pillow and disks work beside Python
TOGETHER = 4 * THREADS  # pictures that are read ahead, each of up to 89 million pixels
DECODED = 0.75  # share of the bound for decoded pictures; the rest holds files as they are
WHOLE = 2**30  # bytes: training images that take no more together are all decoded at the start


class Pictures:
    """Keeps RGB pictures of the files in `paths` within a bound of bytes.

    Decoded while there is room, then as the file's bytes, then not at all.

    Args:
        limit: the bound.
    """

    def __init__(self, limit: int) -> None:
        self.paths: set[str] = set()
        self.decoded: dict[str, Image.Image] = {}
        self.files: dict[str, bytes] = {}
        self.room = {"decoded": int(limit * DECODED), "files": int(limit * (1 - DECODED))}

    def open(self, path: str) -> Image.Image:
        """The picture of any file; what is kept must not be changed in place.

        Raises:
            BlackBoxError: it cannot be decoded; the text names it.
        """
        if path in self.decoded:
            return self.decoded[path]
        kept = path in self.files
        with naming(path):
            image = decode(io.BytesIO(self.files[path]) if kept else path)
        return self.keep(path, image) if path in self.paths and not kept else image

    def keep(self, path: str, image: Image.Image) -> Image.Image:
        """Keep a picture in the form for which there is room; returns it."""
        if self.fits("decoded", image.width * image.height * 4):  # Pillow keeps four bytes a pixel
            self.decoded[path] = image
            return image
        with naming(path, "cannot be read"):
            if self.fits("files", os.path.getsize(path)):
                self.files[path] = Path(path).read_bytes()
            else:
                self.paths.discard(path)
        return image

    def fits(self, kind: str, size: int) -> bool:
        if size > self.room[kind]:
            return False
        self.room[kind] -= size
        return True

    def load(self) -> Counter[str]:
        """Read all of them, so that a broken one shows before anything is paid for.

        What is kept is there for processes that are forked from this one. Where the files take more
        than `WHOLE` bytes, only the headers are read of those that find no room.

        Returns how many pictures each of the rules in `decoding` touches.

        Raises:
            BlackBoxError: one cannot be decoded; the text names it.
        """
        counts: Counter[str] = Counter()
        paths = sorted(self.paths - self.decoded.keys() - self.files.keys())
        small, room = fits_whole(paths), True
        with quiet(), ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(paths), TOGETHER):
                part = paths[start : start + TOGETHER]
                looked = pool.map(look, part, [small or room] * len(part))
                for path, (picture, found, _) in zip(part, looked, strict=True):
                    counts.update(found)
                    if picture is None:
                        self.paths.discard(path)
                    else:
                        self.keep(path, picture)
                room = part[-1] in self.paths
        return counts


def look(path: str, decoding: bool) -> tuple[Image.Image | None, list[str], int]:
    """(the RGB picture if it is decoded and not only opened, rules that touch it, its pixels)."""
    with naming(path), opened(path) as image:
        picture = to_rgb(image) if decoding else None
        found = rules(image)
        if picture is not None and DEEP in found and is_dim(picture):
            found.append(DIM)
        return picture, found, image.width * image.height


def fits_whole(paths: Iterable[str]) -> bool:
    """Whether files take at most `WHOLE` bytes together."""
    total = 0
    for path in paths:
        with naming(path, "cannot be read"):
            total += regular(path).st_size
    return total <= WHOLE
