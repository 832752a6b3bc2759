"""Data sets that are written on first use: Digits, Letters, Shapes (see DATASETS.md)."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import string
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from . import render
from .listing import DatasetError, Row, Split, read_json, read_json_split, reason, shown

Picture = tuple[str, int, str, Image.Image]  # part (train, val, test), label, class name, image
Pictures = Callable[[], Iterable[Picture]]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHAPES = (  # noqa: SIM905  a list would take a page
    "red circle, red star, red stripes, green triangle, green square, green dots, blue circle, "
    "blue heart, blue checkerboard, yellow star, yellow diamond, yellow ring, orange pentagon, "
    "orange cross, purple heart, purple triangle, purple grid, pink crescent, pink ring, "
    "brown square, brown arrow, white cross, white crescent, black arrow"
).split(", ")
COUNTS = {"train": 40, "val": 8, "test": 40}  # images of a class of Letters and Shapes


def split_indices(labels: np.ndarray) -> dict[str, list[int]]:
    """Digits' rows of the train (half of each class), val (a tenth) and test split."""
    rng, out = np.random.RandomState(0), dict[str, list[int]](train=[], val=[], test=[])
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(labels == label)).tolist()
        half, rest = len(rows) // 2, len(rows) // 2 + len(rows) // 10
        for part, some in zip(out, (rows[:half], rows[half:rest], rows[rest:]), strict=True):
            out[part] = sorted(out[part] + some)
    return out


def digits() -> Iterator[Picture]:
    """The scans as greyscale images of 32 x 32, ink white on black."""
    from sklearn.datasets import load_digits

    source = load_digits()
    for part, rows in split_indices(source.target).items():
        for row in rows:
            scan = (source.images[row] * 255 / 16).round().astype(np.uint8)
            label = int(source.target[row])
            yield part, label, DIGITS[label], Image.fromarray(scan).resize((32, 32), Image.BICUBIC)


def any_colour(rng: random.Random) -> tuple[float, ...]:
    grey = rng.uniform(0, 255)
    return (grey,) * 3 if rng.random() < 0.5 else tuple(rng.uniform(0, 255) for _ in range(3))


def letter(name: str, i: int, rng: random.Random) -> Image.Image:
    """A picture of 32 x 32, drawn at twice that size."""
    char, face = name.upper() if i % 2 else name, rng.choice(render.FONTS)
    mask = Image.fromarray(render.character(char, face, 64, rng.uniform(30, 52)))
    slant, turn = rng.uniform(-0.45, 0.45), rng.uniform(-0.4, 0.4)
    c, s, dx, dy = math.cos(turn), math.sin(turn), rng.uniform(-7, 7), rng.uniform(-7, 7)
    # output pixel -> input pixel, about the centre
    a, b, d, e = c, s + slant * c, -s, c - slant * s
    affine = (a, b, 32 - a * (32 + dx) - b * (32 + dy), d, e, 32 - d * (32 + dx) - e * (32 + dy))
    mask = mask.transform((64, 64), Image.AFFINE, affine, Image.BICUBIC).resize((32, 32), Image.BOX)
    ink = any_colour(rng)
    grounds = render.grounds(ink, 130, lambda: any_colour(rng))
    return render.scene(np.asarray(mask), ink, grounds, rng.uniform(0, 25), rng.uniform(5, 30), rng)


def drawing(name: str, i: int, rng: random.Random) -> Image.Image:
    """A picture of 32 x 32."""
    colour, kind = name.split()
    shade = rng.uniform(0.72, 1.12)
    ink = [min(255, shade * value + rng.uniform(-14, 14)) for value in render.COLOURS[colour]]
    if kind in render.PATTERNS:
        large = Image.fromarray(render.pattern(kind, 64, rng.uniform(5, 11), rng))
        mask = large.rotate(rng.uniform(0, 180), Image.BICUBIC).crop((16, 16, 48, 48))
        # which of two colours is the pattern's must be plain: the ground is nearly grey
        distance, tint = 110, 20
    else:
        mask = render.shape(kind, 32, rng.uniform(5, 9), rng, stretch=0.25, tilt=0.8)
        distance, tint = 120, 90

    def ground() -> list[float]:
        grey = rng.uniform(0, 255)
        return [min(255, max(0, grey + rng.uniform(-tint, tint))) for _ in range(3)]

    grounds = render.grounds(ink, distance, ground)
    return render.scene(np.asarray(mask), ink, grounds, rng.uniform(5, 25), rng.uniform(4, 24), rng)


def drawn(names: Iterable[str], draw: Callable[..., Image.Image]) -> Iterator[Picture]:
    """`draw(class name, number of the picture, rng)` for every picture of a data set."""
    rng = random.Random(0)
    for part, count in COUNTS.items():
        for label, name in enumerate(names):
            for i in range(count):
                yield part, label, name, draw(name, i, rng)


PICTURES: dict[str, Pictures] = {
    "Digits": digits,
    "Letters": partial(drawn, string.ascii_lowercase, letter),
    "Shapes": partial(drawn, SHAPES, drawing),
}


def generated(name: str, pictures: Pictures, sizes: tuple = (), version: int = 1) -> Row:
    """Row of a data set that `pictures()` makes; a new `version` says that they have changed."""

    def read(row: Row, folder: str) -> Split:
        path = os.path.join(folder, str(row.split))
        if not os.path.isfile(path):
            write(row, folder, pictures(), version)
        split, found = read_json_split(row, folder), read_json(path).get("version")
        if found != version:
            holds = "no version" if found is None else f"version {found!r:.50}"
            other = f"{holds} of the generated data set {name}, but this is version {version}"
            raise DatasetError(f"{folder} holds {other}: move that folder away.")
        return split

    folder = name.lower()
    return Row(name, folder, folder, "images", f"split_{folder}.json", sizes, read, "data")


def write(row: Row, folder: str, pictures: Iterable[Picture], version: int) -> None:
    """Writes all into a folder beside the final one and renames that: no half is ever seen."""
    print(f"Writing {row.name} to {shown(folder)}")
    draft = f"{folder}.{uuid.uuid4().hex[:8]}.tmp"
    split: dict[str, Any] = {"version": version, "train": [], "val": [], "test": []}
    try:
        os.makedirs(draft)
        if os.path.lexists(folder) and os.listdir(folder):
            raise FileExistsError("there is a folder of that name already")
        for part, label, name, picture in pictures:
            image = f"{name.replace(' ', '_')}/{part}_{len(split[part]):04d}.png"
            target = os.path.join(draft, row.images, image)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            picture.save(target)
            split[part].append([image, label, name])
        with open(os.path.join(draft, str(row.split)), "w", encoding="utf-8") as file:
            json.dump(split, file)
        os.rename(draft, folder)
    except (ImportError, OSError, ValueError) as error:
        # another process may have been faster: its folder, complete, is as good
        if not os.path.isfile(os.path.join(folder, str(row.split))):
            cure = "Install what is missing, make room, or pass --root with a folder of yours"
            away = f"a folder of that name without {row.split} must be moved away first"
            what = f"{row.name} cannot be written to {folder} ({reason(error)})"
            raise DatasetError(f"{what}. {cure}; {away}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
