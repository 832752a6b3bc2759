"""The pictures of a run: opened once before anything is paid for, and those of training kept."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from PIL import Image

from ..errors import BlackBoxError
from .decoding import Look, decode, look, naming, note_rules, quiet, regular, shown

THREADS = 4  # that read pictures: Pillow and disks work beside Python
TOGETHER = 4 * THREADS  # pictures that are read ahead, each of up to 89 million pixels
FEW_PIXELS = 2**28  # of pictures for evaluation that are decoded to be checked: a few seconds
EACH = 10**4  # what a picture takes besides, in pixels
WHOLE = 2**30  # bytes: training images that take no more together are all decoded at the start


def look_through(paths: Sequence[str], most: float, digest: bool = False) -> Iterator[Look]:
    """Look at all pictures, in order, and decode them until about `most` pixels are decoded."""
    with quiet(), ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(paths), TOGETHER):
            part = paths[start : start + TOGETHER]
            for seen in pool.map(partial(look, decoding=most > 0, digest=digest), part):
                most -= seen.pixels + EACH
                yield seen


def check_pictures(items: Iterable[Any], what: str) -> None:
    """Raise unless all pictures for evaluation open; the first so many pixels are decoded too."""
    paths = list(dict.fromkeys(item.impath for item in items))
    counts = Counter(rule for seen in look_through(paths, FEW_PIXELS) for rule in seen.rules)
    note_rules(counts, len(paths), what)


class Pictures:
    """Keeps the decoded RGB pictures of the files in `paths` within a bound of bytes.

    Attributes:
        digests: SHA-256 of files by path, where `load` found no more than `WHOLE` bytes.
    """

    def __init__(self, limit: int) -> None:
        self.room, self.paths = limit, set[str]()
        self.decoded: dict[str, Image.Image] = {}
        self.digests: dict[str, str] = {}

    def open(self, path: str) -> Image.Image:
        """The picture of any file; what is kept must not be changed in place.

        Raises:
            BlackBoxError: it cannot be decoded; the text names it.
        """
        if path in self.decoded:
            return self.decoded[path]
        with naming(path):
            image = decode(path)
        self.keep(path, image)
        return image

    def keep(self, path: str, image: Image.Image) -> None:
        """Keep the picture of a file in `paths`, if there is room."""
        size = image.width * image.height * 4  # Pillow keeps four bytes a pixel
        if path in self.paths and size <= self.room:
            self.room -= size
            self.decoded[path] = image

    def load(self, what: str) -> None:
        """Read all of them, so that a broken one shows before anything is paid for.

        What is kept is there for processes that are forked from this one. Where the files take more
        than `WHOLE` bytes, only the headers are read of those that find no room. Prints a note on
        pictures that CoOp reads otherwise.

        Raises:
            BlackBoxError: one cannot be decoded; the text names it.
        """
        counts: Counter[str] = Counter()
        paths = sorted(self.paths - self.decoded.keys())
        small = fits_whole(paths)
        looked = look_through(paths, math.inf if small else self.room // 4, digest=small)
        for path, seen in zip(paths, looked, strict=True):
            counts.update(seen.rules)
            self.digests[path] = seen.digest
            if seen.picture is not None:
                self.keep(path, seen.picture)
        self.paths &= self.decoded.keys()
        note_rules(counts, len(paths), what)


def fits_whole(paths: Iterable[str]) -> bool:
    """Whether files take at most `WHOLE` bytes together."""
    total = 0
    for path in paths:
        with naming(path, "cannot be read"):
            total += regular(path).st_size
    return total <= WHOLE


def file_of(path: str) -> tuple[int, int] | str:
    """What a path's file is known by, however it is called: links lead to it, hard ones are it."""
    with naming(path, "cannot be read"):
        found = os.stat(path)
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)


def shared(items: Iterable[Any], others: Iterable[Any]) -> tuple[str, str] | None:
    """Paths, to be shown, of an image of the first list and one of the second: the same file."""
    files = {file_of(item.impath): item.impath for item in others}
    for item in items:
        if (file := file_of(item.impath)) in files:
            return shown(item.impath), shown(files[file])
    return None


def need_val(dataset: Any, name: str) -> None:
    """Raise unless there are validation images, and none of them is a test or a training image."""
    for part, others in (("test", dataset.test), ("training", dataset.train_x)):
        same = shared(dataset.val or (), others)
        if same or not dataset.val:
            which = f" ({same[0]} is {same[1]})" if same else ""
            raise BlackBoxError(
                f"{name} has no validation split of its own, so TEST.FINAL_MODEL best_val (or "
                f"TEST.SPLIT val, or ORACLE.VAL_EVERY) would look at the {part} images{which}. Use "
                f"TEST.FINAL_MODEL last_step, or a data set with a val split."
            )


def need_apart(dataset: Any, name: str) -> None:
    """Raise where a training image is a test image (ImageNet's variants have nothing else)."""
    same = shared(dataset.train_x, dataset.test)
    if same is None:
        return
    if {item.impath for item in dataset.train_x} <= {item.impath for item in dataset.test}:
        raise BlackBoxError(
            f"{name} is for testing only: its training images are test images ({same[0]}). "
            f"Train on another data set, and evaluate here with --eval-only --model-dir DIR."
        )
    raise BlackBoxError(
        f"{name}: the training image {same[0]} and the test image {same[1]} are the same file, and "
        f"what is trained on it cannot be tested on it. Take it out of one of them."
    )
