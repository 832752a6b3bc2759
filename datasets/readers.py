"""Readers of the layouts that data sets come in. Each takes a row and its folder; returns a split.

A split is three lists of `(image path, label, class name)`: train, val and test; val is None where
there is none.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .labels import WNID, by_label, check_labels
from .listing import (
    UNREADABLE,
    Classes,
    DatasetError,
    Item,
    class_folders,
    composed,
    in_folders,
    need_folder,
    note_passed,
    on_disk,
    read_json,
    read_lines,
    reason,
    shown,
)

if TYPE_CHECKING:
    from .base import Row

__all__ = ["DatasetError", "by_label", "check_labels", "read_json_split"]

Split = Sequence["list[Item] | None"]
PARTS = ("train", "val", "test")
# where the split is ours and not published
AFRESH = ", or move the split file away, and the images are split anew"


def split_file(row: Row, folder: str) -> str:
    """Path of the split file, under the first of its names that is there."""
    names = (row.split,) if isinstance(row.split, str) else row.split
    for name in names:
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise DatasetError(
        f"{row.name} has no split file {os.path.join(folder, names[0])}. Download it as "
        f"DATASETS.md says; a split is never made up here."
    )


def read_json_split(row: Row, folder: str, parts: Sequence[str] = PARTS) -> list[list[Item]]:
    """CoOp's JSON format: `{"train": [[path below the images, label, class name], ...], ...}`."""
    if not os.path.isdir(folder):
        raise DatasetError(
            f"{row.name} is not at {folder}: there is no such folder. Put it there as DATASETS.md "
            f"says, or pass --root with the folder that holds {row.folder or 'train'}."
        )
    path, images = split_file(row, folder), os.path.join(folder, row.images)
    print(f"Reading split from {shown(path)}")
    try:
        content = read_json(path)
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
    """A part of a split file.

    Raises:
        TypeError, ValueError: an entry is none; it is told.
    """
    if not isinstance(found, list):
        raise TypeError(f'"{part}" is no list')
    for n, entry in enumerate(found):
        whole = isinstance(entry, list) and len(entry) == 3
        if not whole or not is_item(*entry):
            raise ValueError(
                f'entry {n} of "{part}" is {entry!r:.200}; image and class name should be texts, '
                f"and "
                f"the label a whole number from 0 on"
            )
    return [(os.path.join(images, image), label, composed(name)) for image, label, name in found]


def is_item(image: Any, label: Any, name: Any) -> bool:
    texts = isinstance(image, str) and isinstance(name, str) and image
    return bool(texts) and type(label) is int and label >= 0


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
        raise DatasetError(
            f"{len(absent):,} of the {len(images):,} images that {path} names are missing, the "
            f"first of them {absent[0]}{there}. Put them back as DATASETS.md says"
            f"{AFRESH if not row.folder else ''}."
        )
    return split


def read_svhn(row: Row, folder: str) -> Split:
    """Train and val from a split file that names images of `train`; test is all of `test`."""
    train, val = read_json_split(row, folder, PARTS[:2])
    passed: Counter[str] = Counter()
    classes = {name: (label, name) for _, label, name in train}
    path = need_folder(row, os.path.join(folder, "test"))
    test = in_folders(row, path, classes, passed)
    note_passed(row, folder, passed)
    return train, val, test


def read_aircraft(row: Row, folder: str) -> Split:
    """FGVC Aircraft's own lists: `variants.txt`, and for each part lines "image class name"."""
    need_folder(row, folder)
    variants = read_lines(row, os.path.join(folder, "variants.txt"))
    label_of = {name: label for label, name in enumerate(variants)}
    split = []
    for part in PARTS:
        path = os.path.join(folder, f"images_variant_{part}.txt")
        pairs = [line.partition(" ")[::2] for line in read_lines(row, path)]
        unknown = next((name for _, name in pairs if name not in label_of), None)
        if unknown is not None:
            raise DatasetError(
                f'{row.name}: {path} names the variant "{unknown}", which variants.txt lacks. '
                f"Unpack "
                f"the archive again."
            )
        items = [
            (os.path.join(folder, row.images, f"{image}.jpg"), label_of[name], name)
            for image, name in pairs
        ]
        split += need_images(row, path, [items])
    return split


def class_names(row: Row, folder: str) -> dict[str, str]:
    """CoOp's `classnames.txt`, lines "folder class name": `{folder: class name}`, sorted."""
    path = os.path.join(need_folder(row, folder), "classnames.txt")
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


def read_imagenet(row: Row, folder: str) -> Split:
    """`images/train` and `images/val`, a folder a class. The val images are the test split.

    There is no val split (CoOp's is its test split).
    """
    names, passed = class_names(row, folder), Counter()
    paths = [need_folder(row, os.path.join(folder, row.images, part)) for part in PARTS[:2]]
    classes = label_folders(row, paths[0], names)
    train, test = (in_folders(row, path, classes, passed) for path in paths)
    note_passed(row, folder, passed)
    return train, None, test


def read_variant(row: Row, folder: str) -> Split:
    """A variant of ImageNet, for testing only: a folder a class.

    It is named as ImageNet's, or in ImageNetV2 by the class's number among ImageNet's folders.
    """
    names, passed = class_names(row, folder), Counter()
    path = need_folder(row, os.path.join(folder, row.images))
    folders = class_folders(row, path)
    if folders and all(name.isdecimal() for name in folders):
        strange = next((wnid for wnid in names if not WNID.fullmatch(wnid)), None)
        if strange is not None or len(names) != len(folders):
            problem = f'"{strange}"' if strange is not None else f"{len(names):,} folders"
            raise DatasetError(
                f"{row.name}: {path} has {len(folders):,} numbered folders, which count ImageNet's "
                f"in order, but classnames.txt names {problem}. Copy the file that DATASETS.md "
                f"names."
            )
        classes: Classes = {str(label): (label, name) for label, name in enumerate(names.values())}
    else:
        classes = label_folders(row, path, names)
    items = in_folders(row, path, classes, passed)
    note_passed(row, folder, passed)
    return items, None, items


def label_folders(row: Row, path: str, names: Mapping[str, str]) -> Classes:
    """`{folder: (label, class name)}` of the class folders in `path`, labelled in sorted order."""
    folders = class_folders(row, path)
    unnamed = next((folder for folder in folders if folder not in names), None)
    if unnamed is not None:
        raise DatasetError(
            f"{row.name}: classnames.txt has no line for the folder {os.path.join(path, unnamed)}. "
            f"Write one, or copy the file that DATASETS.md names."
        )
    return {folder: (label, names[folder]) for label, folder in enumerate(folders)}
