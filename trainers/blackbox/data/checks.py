"""What must hold before anything is paid for: parts that are apart, and pictures that open."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..run.errors import BlackBoxError
from .decoding import CLEAR, DEEP, DIM, TURNED, naming, quiet, regular, shown
from .pictures import THREADS, fits_whole, look

TOGETHER = 64  # pictures that a thread opens at a time
FEW_PIXELS = 2**28  # pictures for evaluation that take no more together are decoded to be checked
EACH = 10**4  # what a picture takes besides, in pixels


def file_of(path: str) -> tuple[int, int] | str:
    """What a path's file is known by, however it is called: links lead to it, hard ones are it."""
    with naming(path, "cannot be read"):
        found = os.stat(path)
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)


def shared(items: Iterable[Any], others: Iterable[Any]) -> tuple[str, str] | None:
    """Paths of an image of the first list and of one of the second that are the same file."""
    files = {file_of(item.impath): item.impath for item in others}
    for item in items:
        if (file := file_of(item.impath)) in files:
            return item.impath, files[file]
    return None


def need_val(dataset: Any, name: str) -> None:
    """Raise unless there are validation images, and none of them is a test or a training image."""
    for part, others in (("test", dataset.test), ("training", dataset.train_x)):
        same = shared(dataset.val, others) if dataset.val else ()
        if same is not None:
            where = f" ({shown(same[0])} is {shown(same[1])})" if same else ""
            raise BlackBoxError(
                f"{name} has no validation split of its own, so TEST.FINAL_MODEL best_val (or "
                f"TEST.SPLIT val, or ORACLE.VAL_EVERY) would look at the {part} images{where}. Use "
                f"TEST.FINAL_MODEL last_step, or a data set with a val split."
            )


def need_apart(dataset: Any, name: str) -> None:
    """Raise where a training image is a test image (ImageNet's variants have nothing else)."""
    same = shared(dataset.train_x, dataset.test)
    if same is None:
        return
    if {item.impath for item in dataset.train_x} <= {item.impath for item in dataset.test}:
        raise BlackBoxError(
            f"{name} is for testing only: its training images are test images ({shown(same[0])}). "
            f"Train on another data set, and evaluate here with --eval-only --model-dir DIR."
        )
    raise BlackBoxError(
        f"{name}: the training image {shown(same[0])} and the test image {shown(same[1])} are the "
        f"same file, and what is trained on it cannot be tested on it. Take it out of one of them."
    )


def check_pictures(dataset: Any, name: str) -> None:
    """Raise unless all val and test images open; prints a note on those that CoOp reads otherwise.

    They are decoded where that takes no longer than a few seconds; else their headers are read.
    """
    paths = list(dict.fromkeys(item.impath for item in (*(dataset.val or ()), *dataset.test)))
    with quiet(), ThreadPoolExecutor(THREADS) as pool:
        parts = [paths[i : i + TOGETHER] for i in range(0, len(paths), TOGETHER)]
        found = list(pool.map(look_through, parts))
        if sum(pixels for _, pixels in found) + EACH * len(paths) <= FEW_PIXELS:
            found = list(pool.map(look_through, parts, [True] * len(parts)))
    note_rules(sum((counts for counts, _ in found), Counter()), len(paths), f"{name}, val and test")


def look_through(paths: Sequence[str], decoding: bool = False) -> tuple[Counter[str], int]:
    """(how many pictures each rule touches, the pixels of all)."""
    counts: Counter[str] = Counter()
    pixels = 0
    for path in paths:
        _, found, size = look(path, decoding)
        counts.update(found)
        pixels += size
    return counts, pixels


def note_rules(counts: Counter[str], total: int, what: str) -> None:
    if counts:
        words = ", ".join(
            f"{counts[rule]:,} {rule}" for rule in (DEEP, DIM, CLEAR, TURNED) if counts[rule]
        )
        print(f"Note: {what}: of {total:,} images {words}. CoOp's results can differ there")


def training_images(items: Sequence[Any]) -> str:
    """A SHA-256 of the training images, wherever they lie: names, labels and contents.

    The content is the files' bytes where these are at most `WHOLE` together, else their sizes and
    times of change, which a copy elsewhere may not keep.

    Raises:
        BlackBoxError: one cannot be read.
    """
    paths = [item.impath for item in items]
    content = digest if fits_whole(paths) else size_and_time
    with ThreadPoolExecutor(THREADS) as pool:
        contents = list(pool.map(content, paths))
    every = hashlib.sha256()
    for item, found in zip(items, contents, strict=True):
        names = (unicodedata.normalize("NFC", part) for part in Path(item.impath).parts[-2:])
        line = [*names, item.label, item.classname, found]
        every.update(json.dumps(line).encode())
    return every.hexdigest()


def digest(path: str) -> str:
    with naming(path, "cannot be read"):
        regular(path)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def size_and_time(path: str) -> str:
    with naming(path, "cannot be read"):
        found = regular(path)
        return f"{found.st_size} {found.st_mtime_ns}"
