"""Pictures in folders: `train/<class>/*`, and `val/<class>/*` and `test/<class>/*` if any.

A user's own data need no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .labels import by_label, check_labels, need_items
from .listing import (
    UNREADABLE,
    Classes,
    DatasetError,
    Item,
    class_folders,
    entries,
    in_folders,
    need_folder,
    note_passed,
    read_json,
    reason,
    shown,
)
from .readers import PARTS, Split, class_names, label_folders, read_json_split

if TYPE_CHECKING:
    from .base import Row

# of every class's train images, for a part that has no folder: CoOp's shares
SHARES = {"val": 0.2, "test": 0.3}
TAKEN = "taken from train"


def classes_of(row: Row, folder: str) -> Classes:
    """Named by classnames.txt where there is one, else as their folders."""
    path = need_folder(row, os.path.join(folder, "train"))
    if os.path.lexists(os.path.join(folder, "classnames.txt")):
        return label_folders(row, path, class_names(row, folder))
    return {name: (label, name) for label, name in enumerate(class_folders(row, path))}


def read_parts(row: Row, folder: str, parts: Sequence[str]) -> dict[str, list[Item]]:
    """The pictures of the parts, each of which must be there.

    A class that has none in any part is left out.
    """
    classes, passed = classes_of(row, folder), Counter()
    paths = {part: need_folder(row, os.path.join(folder, part)) for part in parts}
    found = {part: in_folders(row, path, classes, passed) for part, path in paths.items()}
    note_passed(row, folder, passed)
    used = {label for items in found.values() for _, label, _ in items}
    new = {label: n for n, label in enumerate(sorted(used))}
    return {
        part: [(image, new[label], name) for image, label, name in items]
        for part, items in found.items()
    }


def present(folder: str) -> list[str]:
    return [part for part in PARTS if os.path.isdir(os.path.join(folder, part))]


def read_folders(row: Row, folder: str) -> Split:
    """CIFAR's layout: train and test, val only where it has a folder."""
    parts = [part for part in PARTS if part != "val" or part in present(folder)]
    found = read_parts(row, folder, parts)
    return [found.get(part) for part in PARTS]


def read_pictures(row: Row, folder: str, keep: bool = True) -> Split:
    """The user's own folder.

    A part without a folder is taken from the train images, class by class, once: with `keep` the
    split is written down beside them.
    """
    found = read_parts(row, folder, ["train", *(p for p in present(folder) if p != "train")])
    note_other_folders(row, folder)
    missing = [part for part in SHARES if part not in found]
    if not missing:
        return [found[part] for part in PARTS]
    path = os.path.join(folder, row.split)
    if os.path.isfile(path):
        return read_taken(row, folder, path, found, missing)
    need_items(row, "all", found["train"], found["train"])  # before a split is written
    check_labels(row, folder, found["train"])
    found.update(take_parts(row, found["train"], missing))
    sizes = ", ".join(f"{len(found[part]):,} {part}" for part in PARTS)
    where = f"{row.name} in {shown(folder)}"
    print(f"Note: {where}: no folder for {' and '.join(missing)}: taken from train, {sizes}")
    if keep:
        write_split(path, folder, found, missing)
    return [found[part] for part in PARTS]


def note_other_folders(row: Row, folder: str) -> None:
    others = [name for name in entries(row, folder)[0] if name not in PARTS]
    if others:
        print(
            shown(
                f"Note: {row.name} in {folder}: what is in {', '.join(others[:5])} is not used; "
                f"the parts are called {', '.join(PARTS)}"
            )
        )


def read_taken(
    row: Row, folder: str, path: str, found: Mapping[str, list[Item]], missing: Sequence[str]
) -> Split:
    """The split that was written when parts were first taken from train."""
    taken = taken_in(path)
    if taken not in (missing, None):
        which = ", ".join(map(str, taken)) if isinstance(taken, list) else taken
        raise DatasetError(
            f"{path} was made for other folders ({which} taken from train, now "
            f"{', '.join(missing)}). Move it away, and the images are split anew."
        )
    split = read_json_split(row, folder)
    train = {(label, name) for _, label, name in found["train"]}
    if {(label, name) for _, label, name in split[0]} != train:
        raise DatasetError(
            f"{path} has other classes than the folders in {os.path.join(folder, 'train')}. Move "
            f"it away, and the images are split anew."
        )
    named = {os.path.normpath(image) for items in split for image, _, _ in items}
    new = sum(image not in named for items in found.values() for image, _, _ in items)
    if new:
        print(
            f"Note: {row.name}: {new:,} of the images in {shown(folder)} are not in {row.split}, "
            f"and are not used. Move that file away, and the images are split anew"
        )
    return split


def taken_in(path: str) -> object:
    """The parts that a split file took from train; None where it does not say."""
    try:
        return read_json(path).get(TAKEN)
    except (*UNREADABLE, AttributeError):
        return None


def take_parts(row: Row, items: list[Item], missing: Sequence[str]) -> dict[str, list[Item]]:
    """The train images of every class shuffled and shared out.

    From a fixed seed: all runs see one split.
    """
    rng = random.Random(0)
    split: dict[str, list[Item]] = {part: [] for part in ("train", *missing)}
    for group in by_label(items).values():
        rng.shuffle(group)
        total = len(group)
        for part in missing:
            count = max(1, round(total * SHARES[part]))
            split[part] += group[:count]
            group = group[count:]
        if not group:
            raise DatasetError(
                f'{row.name}: the class "{split[missing[0]][-1][2]}" has too few images to take '
                f"{' and '.join(missing)} from. Add images, or make folders for "
                f"{' and '.join(missing)} yourself."
            )
        split["train"] += group
    return split


def write_split(
    path: str, folder: str, split: Mapping[str, list[Item]], missing: Sequence[str]
) -> None:
    """Write the split beside the pictures; where that fails, say so and go on.

    What a killed writer leaves is no split file, and nothing reads it.
    """
    content: dict[str, object] = {TAKEN: missing}
    for part in PARTS:
        content[part] = [
            [os.path.relpath(image, folder), label, name] for image, label, name in split[part]
        ]
    draft = f"{path}.{os.getpid()}.tmp"
    try:
        with open(draft, "x", encoding="utf-8") as file:  # never through somebody's link
            json.dump(content, file)
        os.replace(draft, path)
        print(f"Split written to {shown(path)}")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        print(
            f"The split could not be written to {shown(path)} ({reason(error)}): keep the folder's "
            f"content as it is, so that every run makes the same one"
        )
