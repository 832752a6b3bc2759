"""Readers of the layouts that data sets come in. Each takes a row and its folder; returns a split.

The last one is of a user's own folder, whose parts may be taken from its train images.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

from .labels import WNID, by_label, check_labels, need_items
from .listing import (
    UNREADABLE,
    Classes,
    DatasetError,
    Item,
    Row,
    Split,
    class_folders,
    composed,
    entries,
    few,
    in_folders,
    note,
    on_disk,
    read_json,
    read_lines,
    reason,
    shown,
)

PARTS = ("train", "val", "test")
# of every class's train images, for a part that has no folder: CoOp's shares
SHARES = {"val": 0.2, "test": 0.3}
TAKEN = "taken from train"


def read_json_split(row: Row, folder: str, parts: Sequence[str] = PARTS) -> list[list[Item]]:
    """CoOp's JSON format: `{"train": [[path below the images, label, class name], ...], ...}`."""
    names = (row.split,) if isinstance(row.split, str) else row.split
    paths = [os.path.join(folder, name) for name in names]
    path = next(filter(os.path.isfile, paths), None)
    if path is None:
        raise DatasetError(
            f"{row.name} has no split file {paths[0]}. Put the data set there as DATASETS.md says, "
            f"or pass --root with the folder that holds {row.folder}; no split is made up here."
        )
    print(f"Reading split from {shown(path)}")
    try:
        content, images = read_json(path), os.path.join(folder, row.images)
        split = [items_of(part, content[part], images) for part in parts]
    except UNREADABLE as error:  # not JSON at all, or JSON of another shape
        words = ", ".join(f'"{part}"' for part in parts[:-1]) + f' and "{parts[-1]}"'
        raise DatasetError(
            f"{path} is not a split in CoOp's JSON format ({type(error).__name__}: "
            f"{reason(error)}): expected {words}, lists of [image, label, class name]. Download it "
            f"again as DATASETS.md says."
        ) from error
    return need_images(row, path, split)


def items_of(part: str, found: Any, images: str) -> list[Item]:
    """A part of a split file, or a TypeError or ValueError that tells of an entry that is none."""
    if not isinstance(found, list):
        raise TypeError(f'"{part}" is no list')
    for n, entry in enumerate(found):
        match entry:
            case [str(image), int(label), str()] if image and type(label) is int and label >= 0:
                continue
        raise ValueError(
            f'entry {n} of "{part}" is {entry!r:.200}; image and class name should be texts, and '
            f"the label a whole number from 0 on"
        )
    return [(os.path.join(images, image), label, composed(name)) for image, label, name in found]


def need_images(row: Row, path: str, split: Sequence[list[Item]]) -> list[list[Item]]:
    """The items with the paths as the disk spells them; all images must be files."""
    listed: dict[str, dict[str, str]] = {}
    split = [
        [(on_disk(image, listed), label, name) for image, label, name in items] for items in split
    ]
    images = [image for items in split for image, _, _ in items]
    absent = [image for image in images if not os.path.isfile(image)]
    if absent:
        there = " (which is no regular file, or not readable)" if os.path.lexists(absent[0]) else ""
        afresh = "" if row.folder else ", or move the split file away, to split the images anew"
        raise DatasetError(
            f"{len(absent):,} of the {len(images):,} images that {path} names are missing, the "
            f"first of them {absent[0]}{there}. Put them back as DATASETS.md says{afresh}."
        )
    return split


def read_svhn(row: Row, folder: str) -> Split:
    """Train and val from a split file that names images of `train`; test is all of `test`."""
    train, val = read_json_split(row, folder, PARTS[:2])
    classes = {name: (label, name) for _, label, name in train}
    return train, val, *in_folders(row, classes, os.path.join(folder, "test"))


def read_aircraft(row: Row, folder: str) -> Split:
    """FGVC Aircraft's own lists: `variants.txt`, and for each part lines "image class name"."""
    variants = read_lines(row, os.path.join(folder, "variants.txt"))
    label_of = {name: label for label, name in enumerate(variants)}
    split = []
    for part in PARTS:
        path = os.path.join(folder, f"images_variant_{part}.txt")
        items = []
        for line in read_lines(row, path):
            image, _, name = line.partition(" ")
            if name not in label_of:
                raise DatasetError(
                    f'{row.name}: {path} names the variant "{name}", which variants.txt lacks. '
                    f"Unpack the archive again."
                )
            image = os.path.join(folder, row.images, f"{image}.jpg")
            items.append((image, label_of[name], name))
        split += need_images(row, path, [items])
    return split


def class_names(row: Row, folder: str) -> dict[str, str]:
    """CoOp's `classnames.txt`, lines "folder class name": `{folder: class name}`, sorted."""
    path = os.path.join(folder, "classnames.txt")
    names: dict[str, str] = {}
    for line in read_lines(row, path):
        wnid, *name = line.split(None, 1)
        if not name or names.setdefault(wnid, name[0]) != name[0]:
            other = f', and "{names[wnid]}" elsewhere' if name else " without a class name"
            raise DatasetError(
                f'{row.name}: {path} has the line "{line}"{other}. Copy the file that DATASETS.md '
                f"names."
            )
    return dict(sorted(names.items()))


def label_folders(row: Row, path: str, names: Mapping[str, str]) -> Classes:
    """`{folder: (label, class name)}` of the class folders in `path`, labelled in sorted order."""
    folders = class_folders(row, path)
    for folder in folders:
        if folder not in names:
            raise DatasetError(
                f"{row.name}: classnames.txt has no line for the folder "
                f"{os.path.join(path, folder)}. Write one, or copy the file that DATASETS.md names."
            )
    return {folder: (label, names[folder]) for label, folder in enumerate(folders)}


def read_imagenet(row: Row, folder: str) -> Split:
    """`images/train` and `images/val`, a folder a class. The val images are the test split.

    There is no val split (CoOp's is its test split).
    """
    paths = [os.path.join(folder, row.images, part) for part in PARTS[:2]]
    classes = label_folders(row, paths[0], class_names(row, folder))
    train, test = in_folders(row, classes, *paths)
    return train, None, test


def read_variant(row: Row, folder: str) -> Split:
    """A variant of ImageNet, for testing only: a folder a class.

    It is named as ImageNet's, or in ImageNetV2 by the class's number among ImageNet's folders.
    """
    names, path = class_names(row, folder), os.path.join(folder, row.images)
    folders = class_folders(row, path)
    if folders and all(name.isdecimal() for name in folders):
        strange = next((f'"{wnid}"' for wnid in names if not WNID.fullmatch(wnid)), None)
        if strange or len(names) != len(folders):
            raise DatasetError(
                f"{row.name}: {path} has {len(folders):,} numbered folders, which count ImageNet's "
                f"in order, but classnames.txt names {strange or f'{len(names):,} folders'}. Copy "
                f"the file that DATASETS.md names."
            )
        classes: Classes = {str(label): (label, name) for label, name in enumerate(names.values())}
    else:
        classes = label_folders(row, path, names)
    (items,) = in_folders(row, classes, path)
    return items, None, items


def read_parts(row: Row, folder: str, *others: str) -> dict[str, list[Item]]:
    """The pictures of train, of the parts that must be there besides, and of those that are.

    Classes are named by classnames.txt where there is one, else as their folders; one that has no
    picture in any part is left out.
    """
    here = [part for part in PARTS if os.path.isdir(os.path.join(folder, part))]
    paths = {part: os.path.join(folder, part) for part in ("train", *others, *here)}
    if os.path.lexists(os.path.join(folder, "classnames.txt")):
        classes = label_folders(row, paths["train"], class_names(row, folder))
    else:
        folders = class_folders(row, paths["train"])
        classes = {name: (label, name) for label, name in enumerate(folders)}
    found = dict(zip(paths, in_folders(row, classes, *paths.values()), strict=True))
    used = {label for items in found.values() for _, label, _ in items}
    new = {label: n for n, label in enumerate(sorted(used))}
    return {
        part: [(image, new[label], name) for image, label, name in items]
        for part, items in found.items()
    }


def read_folders(row: Row, folder: str) -> Split:
    """CIFAR's layout: train and test, val only where it has a folder."""
    found = read_parts(row, folder, "test")
    return [found.get(part) for part in PARTS]


def read_pictures(row: Row, folder: str, keep: bool = True) -> Split:
    """The user's own folder.

    A part without a folder is taken from the train images, class by class, once: with `keep` the
    split is written down beside them.
    """
    found = read_parts(row, folder)
    unused = [name for name in entries(row, folder)[0] if name not in PARTS]
    if unused:
        parts = ", ".join(PARTS)
        note(
            row,
            f" in {folder}: what is in {few(unused)} is not used; the parts are called {parts}",
        )
    missing = [part for part in SHARES if part not in found]
    if not missing:
        return [found[part] for part in PARTS]
    path = os.path.join(folder, str(row.split))
    if os.path.isfile(path):
        return read_taken(row, folder, path, found, missing)
    need_items(row, "all", found["train"], found["train"])  # before a split is written
    check_labels(row, folder, found["train"])
    found |= take_parts(row, found["train"], missing)
    sizes = ", ".join(f"{len(found[part]):,} {part}" for part in PARTS)
    note(row, f" in {folder}: no folder for {' and '.join(missing)}: taken from train, {sizes}")
    if keep:
        write_split(path, folder, found, missing)
    return [found[part] for part in PARTS]


def read_taken(
    row: Row, folder: str, path: str, found: Mapping[str, list[Item]], missing: Sequence[str]
) -> Split:
    """The split that was written when parts were first taken from train."""
    away = "Move it away, and the images are split anew"
    try:
        taken = read_json(path)[TAKEN]
    except UNREADABLE:  # it does not say, or is told of below
        taken = None
    if taken not in (missing, None):
        raise DatasetError(
            f"{path} was made for other folders ({few(taken)} taken from train, now "
            f"{few(missing)}). {away}."
        )
    split = read_json_split(row, folder)
    train = {(label, name) for _, label, name in found["train"]}
    if {(label, name) for _, label, name in split[0]} != train:
        raise DatasetError(f"{path} has other classes than the folders of train. {away}.")
    named = {os.path.normpath(image) for items in split for image, _, _ in items}
    new = sum(image not in named for items in found.values() for image, _, _ in items)
    if new:
        note(
            row, f": {new:,} of the images in {folder} are not in {path}, and are not used. {away}"
        )
    return split


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
            parts = " and ".join(missing)
            raise DatasetError(
                f'{row.name}: the class "{split[missing[0]][-1][2]}" has too few images to take '
                f"{parts} from. Add images, or make folders for {parts} yourself."
            )
        split["train"] += group
    return split


def write_split(path: str, folder: str, split: dict[str, list[Item]], missing: list[str]) -> None:
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
