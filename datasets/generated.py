"""Data sets that are written on first use: PNGs, and a split file like any other's beside them."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence

from PIL import Image

from .base import Row
from .listing import DatasetError, Item, read_json, reason, shown
from .readers import read_json_split

Picture = tuple[str, int, str, Image.Image]  # part (train, val, test), label, class name, image


def generated(
    name: str,
    pictures: Callable[[], Iterable[Picture]],
    sizes: Sequence[int] = (),
    version: int = 1,
) -> Row:
    """Row of a data set that `pictures()` makes.

    A new `version` says that the pictures have changed since those that may lie on a user's disk.
    """

    def read(row: Row, folder: str) -> list[list[Item]]:
        path = os.path.join(folder, row.split)
        if not os.path.isfile(path):
            write(row, folder, pictures(), version)
        split = read_json_split(row, folder)
        found = read_json(path).get("version")
        if found != version:
            holds = "no version" if found is None else f"version {found!r:.50}"
            raise DatasetError(
                f"{folder} holds {holds} of the generated data set {row.name}, but this is version "
                f"{version}: move that folder away, and it will be written anew."
            )
        return split

    return Row(
        name,
        name.lower(),
        name.lower(),
        "images",
        f"split_{name.lower()}.json",
        read,
        sizes,
        default_root="data",
    )


def write(row: Row, folder: str, pictures: Iterable[Picture], version: int) -> None:
    """Writes all into a folder beside the final one and renames that: no half is ever seen.

    What a killed writer leaves has a name of its own, and nothing reads it.
    """
    print(f"Writing {row.name} to {shown(folder)}")
    draft = f"{folder}.{uuid.uuid4().hex[:8]}.tmp"
    split: dict = {"version": version, "train": [], "val": [], "test": []}
    saved: set[int] = set()
    try:
        os.makedirs(draft)
        if os.path.lexists(folder) and os.listdir(folder):
            raise FileExistsError("there is a folder of that name already")
        for part, label, name, picture in pictures:
            image = f"{name.replace(' ', '_')}/{part}_{len(split[part]):04d}.png"
            target = os.path.join(draft, row.images, image)
            if label not in saved:
                os.makedirs(os.path.dirname(target))
                saved.add(label)
            picture.save(target)
            split[part].append([image, label, name])
        with open(os.path.join(draft, row.split), "w", encoding="utf-8") as file:
            json.dump(split, file)
        os.rename(draft, folder)
    except ImportError as error:
        raise DatasetError(
            f"{row.name} is drawn with a package that is not installed ({error}). Install it."
        ) from error
    except (OSError, ValueError) as error:
        # another process may have been faster: its folder, complete, is as good
        if not os.path.isfile(os.path.join(folder, row.split)):
            raise DatasetError(
                f"{row.name} cannot be written to {folder} ({reason(error)}). Make room, or pass "
                f"--root with a folder that you may write to; a folder of that name without "
                f"{row.split} must be moved away first."
            ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
