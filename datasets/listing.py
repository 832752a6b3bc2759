"""A row of the table of data sets, and what lies in its folder: class folders, pictures, lists."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from PIL import Image

Item = tuple[str, int, str]  # path of an image, label, class name
Split = Sequence["list[Item] | None"]  # train, val (None where there is none) and test
Classes = Mapping[str, tuple[int, str]]  # label and class name by folder, `composed`
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError)
# what is passed over, beside the endings of files that are no pictures
BARE, NESTED = "without an ending", "in folders inside class folders"
BESIDE = "beside class folders"


@dataclass(frozen=True)
class Row:
    """Where a data set lies under DATASET.ROOT, and how it is read."""

    name: str  # in Dassl's registry
    config: str  # its YAML in configs/datasets, and its folder's name in output/
    folder: str
    images: str = ""
    split: str | tuple = ""  # name of the split file, or names that it goes by
    sizes: tuple = ()  # (classes, train, val, test) as published; None where nobody tells
    read: Callable[[Row, str], Split] | None = None  # of the folder; None: a split of CoOp's
    default_root: str = ""  # where DATASET.ROOT is empty; itself empty: the user must name one


class DatasetError(Exception):
    """The data set cannot be read as the config asks; the message says what to do.

    Names of files may hold any bytes: what cannot be printed on one line is escaped.
    """

    def __init__(self, message: str):
        super().__init__(shown(message))


def shown(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: BaseException) -> str:
    """What an exception says, without the path that the sentence has already."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def composed(name: str) -> str:
    """A name as lists and people write it: a Mac's disk has letters and accents apart."""
    return unicodedata.normalize("NFC", name)


def few(names: Sequence[str]) -> str:
    """The first three of several names, and how many there are besides."""
    more = f", and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def note(row: Row, text: str) -> None:
    print(shown(f"Note: {row.name}{text}"))


def entries(row: Row, path: str) -> tuple[list[str], list[str], list[str]]:
    """Sorted names of folders, of regular files, and of what is neither; hidden ones do not count.

    Links count as what they lead to; those that lead nowhere, pipes and devices are neither.
    """
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    try:
        with os.scandir(path) as scan:
            for entry in scan:
                if not entry.name.startswith("."):
                    found[kind(entry)].append(entry.name)
    except OSError as error:
        cure = "Put it there as DATASETS.md says" if row.folder else "Put the class folders there"
        raise DatasetError(
            f"{row.name}: the folder {path} cannot be read ({reason(error)}). {cure}, or pass "
            f"--root (DATA for the scripts) with the folder that holds {row.folder or 'train'}."
        ) from error
    for names in found:
        names.sort(key=composed)
    return found


def kind(entry: os.DirEntry) -> int:
    """0: a folder, 1: a regular file, 2: neither."""
    try:
        return 0 if entry.is_dir() else 1 if entry.is_file() else 2
    except OSError:  # a link that leads to itself
        return 2


def class_folders(row: Row, path: str) -> list[str]:
    """Sorted names of the class folders in `path`, composed."""
    return list(dict.fromkeys(map(composed, entries(row, path)[0])))


def on_disk(path: str, listed: dict[str, dict[str, str]]) -> str:
    """A path with every name as its folder spells it, `composed` or not.

    `listed` keeps what folders hold for the next path.
    """
    folder, name = os.path.split(path)
    if os.path.lexists(path) or not name:
        return path
    folder = on_disk(folder, listed)
    if folder not in listed:
        try:
            listed[folder] = {composed(entry): entry for entry in os.listdir(folder)}
        except (OSError, ValueError):  # of a NUL
            listed[folder] = {}
    return os.path.join(folder, listed[folder].get(composed(name), name))


def ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or BARE


def picture_endings() -> set[str]:
    """Endings of the files that Pillow opens, in small letters."""
    return {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}


def in_folders(row: Row, classes: Classes, *paths: str) -> list[list[Item]]:
    """Items of `path/<folder>/*`, for each path, that are pictures by their ending.

    Prints a note on what is passed over, and on folders without a picture.
    """
    passed: Counter[str] = Counter()
    split = [items_in(row, path, classes, passed) for path in paths]
    if passed.total():
        count = passed.total()
        which = ", ".join(f"{n:,} {kind}" for kind, n in passed.most_common() if n)
        note(
            row,
            f": {count:,} {'file is' if count == 1 else 'files are'} passed over: {which}. What "
            f"counts are pictures directly in class folders, known by endings that Pillow opens",
        )
    for path, items in zip(paths, split, strict=True):
        if not items:
            raise DatasetError(
                f"{row.name}: there are no images in {path}, which should hold a folder for every "
                f"class. See DATASETS.md."
            )
    return split


def items_in(row: Row, path: str, classes: Classes, passed: Counter[str]) -> list[Item]:
    """The items of one path; what is no picture is counted in `passed`."""
    items, endings, empty = [], picture_endings(), []
    folders, files, _ = entries(row, path)
    passed[BESIDE] += sum(ending(name) in endings for name in files)
    for folder in folders:
        inside = os.path.join(path, folder)
        if composed(folder) not in classes:
            raise DatasetError(
                f"{row.name}: {inside} is no class of it. Move that folder away, or complete the "
                f"list of classes."
            )
        nested, files, others = entries(row, inside)
        broken = next((name for name in others if ending(name) in endings), None)
        if broken is not None:
            raise DatasetError(f"{row.name}: {os.path.join(inside, broken)} is no regular file.")
        passed.update(ending(name) for name in files + others if ending(name) not in endings)
        for name in nested:  # as far as a thousand folders tell; links end it
            below = os.path.join(inside, name)
            walk = islice(os.walk(below), 1 if os.path.islink(below) else 1000)
            passed[NESTED] += sum(ending(n) in endings for _, _, names in walk for n in names)
        images = [os.path.join(inside, name) for name in files if ending(name) in endings]
        items += [(image, *classes[composed(folder)]) for image in images]
        if not images:
            empty.append(folder)
    if empty:
        note(row, f": without a picture in {path}: {few(empty)}")
    return items


def read_text(path: str) -> str:
    """The text of a regular file (a pipe would be waited for), which is UTF-8."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no regular file")
    with open(path, encoding="utf-8-sig") as file:
        return file.read()


def read_json(path: str) -> Any:
    """What a JSON file holds, or one of `UNREADABLE`."""
    return json.loads(read_text(path), object_pairs_hook=once)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ; otherwise the last of them would be taken."""
    for key, n in Counter(key for key, _ in pairs).items():
        if n > 1:
            raise ValueError(f'"{key}" is there twice')
    return dict(pairs)


def read_lines(row: Row, path: str) -> list[str]:
    """The lines of a text file that are not blank, composed."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{row.name}: {path} cannot be read ({reason(error)}). Put it there as DATASETS.md "
            f"says."
        ) from error
    return [composed(line.strip()) for line in lines if line.strip()]
