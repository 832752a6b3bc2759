"""What lies in the folders of a data set: class folders, pictures, lists of names."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from .base import Row

Item = tuple[str, int, str]  # path of an image, label, class name
Classes = Mapping[str, tuple[int, str]]  # label and class name by folder, `composed`
SHOWN = 3  # names in a note
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError)
# what is passed over, beside the endings of files that are no pictures
BARE, NESTED, BESIDE = (
    "without an ending",
    "in folders inside class folders",
    "beside class folders",
)


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
    """The first of several names, and how many there are besides."""
    more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def need_folder(row: Row, path: str) -> str:
    """`path`, which must be a folder."""
    if not os.path.isdir(path):
        cure = (
            "Put it there as DATASETS.md says" if row.folder else "Move the class folders into it"
        )
        raise DatasetError(
            f"{row.name} is not complete: there is no folder {path}. {cure}, or pass --root (DATA "
            f"for the scripts) with the folder that holds {row.folder or 'train'}."
        )
    return path


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
        raise DatasetError(
            f"{row.name}: the folder {path} cannot be listed ({reason(error)}). Make it readable, "
            f"or put the data set there anew."
        ) from error
    for names in found:
        names.sort(key=composed)
    return found


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


def kind(entry: os.DirEntry) -> int:
    """0: a folder, 1: a regular file, 2: neither."""
    try:
        return 0 if entry.is_dir() else 1 if entry.is_file() else 2
    except OSError:  # a link that leads to itself
        return 2


def ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or BARE


def picture_endings() -> set[str]:
    """Endings of the files that Pillow opens, in small letters."""
    return {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}


def in_folders(row: Row, path: str, classes: Classes, passed: Counter[str]) -> list[Item]:
    """Items of `path/<folder>/*` that are pictures by their ending; the rest counts in `passed`.

    Prints a note on folders without a picture.
    """
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
            raise DatasetError(
                f"{row.name}: {os.path.join(inside, broken)} is no regular file (a link that leads "
                f"nowhere, perhaps). Put the image there, or take it away."
            )
        passed.update(ending(name) for name in files + others if ending(name) not in endings)
        passed[NESTED] += sum(pictures_below(os.path.join(inside, name)) for name in nested)
        images = [os.path.join(inside, name) for name in files if ending(name) in endings]
        items += [(image, *classes[composed(folder)]) for image in images]
        if not images:
            empty.append(folder)
    if not items:
        raise DatasetError(
            f"{row.name}: there are no images in {path}, which should hold a folder for every "
            f"class{f' ({words(passed)})' if passed.total() else ''}. See DATASETS.md."
        )
    if empty:
        print(shown(f"Note: {row.name}: without a picture in {path}: {few(empty)}"))
    return items


def pictures_below(path: str) -> int:
    """Pictures in a folder and those inside, as far as a thousand folders tell; links end it."""
    endings, most = picture_endings(), 1 if os.path.islink(path) else 1000
    return sum(
        ending(name) in endings for _, _, names in islice(os.walk(path), most) for name in names
    )


def words(passed: Counter[str]) -> str:
    """Counts of what is passed over, as words."""
    count = passed.total()
    which = ", ".join(f"{n:,} {kind}" for kind, n in passed.most_common() if n)
    return f"{count:,} {'file is' if count == 1 else 'files are'} passed over: {which}"


def note_passed(row: Row, folder: str, passed: Counter[str]) -> None:
    if passed.total():
        print(
            shown(
                f"Note: {row.name} in {folder}: {words(passed)}. What counts are pictures directly "
                f"in class folders, known by the endings that Pillow opens"
            )
        )


def read_text(path: str) -> str:
    """The text of a regular file (a pipe would be waited for).

    Raises:
        OSError, ValueError: it cannot be read, or is not UTF-8.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    with open(path, encoding="utf-8-sig") as file:
        return file.read()


def read_json(path: str) -> Any:
    """What a JSON file holds.

    Raises:
        Exception: one of `UNREADABLE`.
    """
    return json.loads(read_text(path), object_pairs_hook=once)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ; otherwise the last of them would be taken."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f'"{twice}" is there twice')
    return found


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
