"""A row of the table of data sets, the layouts that they come in, and what their labels must be."""

from __future__ import annotations

import contextlib
import html
import json
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from PIL import Image

Item = tuple[str, int, str]  # path of an image, label, class name
Split = Sequence["list[Item] | None"]  # train, val (None where there is none) and test
Classes = Mapping[str, tuple[int, str]]  # label and class name by folder, `composed`
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError)
PARTS = ("train", "val", "test")
SHARES = {"val": 0.2, "test": 0.3}  # of train images, for a part without a folder, as CoOp takes
TAKEN = "taken from train"
WNID = re.compile(r"n\d{8}")  # WordNet's ids, ImageNet's folders
# no word is in it: "0", "c3", "class_12", "cls-a", "A"
CODE = re.compile(
    r"(?i)((class|cls|label|id)[\W_]+)?[a-z]|(class|cls|label|id|[^\W\d_])?[\W\d_]*\d[\W\d_]*"
)
NUMBERED = re.compile(r"\d+[._-]")  # "001.Black_footed_Albatross"; of one class: "707-jet"
# a name as lists and people write it: a Mac's disk has letters and accents apart
composed = partial(unicodedata.normalize, "NFC")
SIGNS = 20  # classes from which on single letters and digits may be what is to be told apart


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

    def error(self, problem: str) -> DatasetError:
        return DatasetError(f"{self.name}: {problem}")

    def note(self, text: str) -> None:
        print(shown(f"Note: {self.name}{text}"))


class DatasetError(Exception):
    """The data set cannot be read as the config asks; what cannot be printed is escaped."""

    def __init__(self, message: str):
        super().__init__(shown(message))


def shown(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: BaseException) -> str:
    """What an exception says, without the path that the sentence has already."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def few(names: Sequence[str]) -> str:
    """The first three of several names, and how many there are besides."""
    return ", ".join(names[:3]) + (f", and {len(names) - 3:,} more" if len(names) > 3 else "")


def entries(row: Row, path: str) -> tuple[list[str], list[str], list[str]]:
    """Sorted names of folders, of regular files, and of what is neither (pipes, broken links)."""
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    try:
        with os.scandir(path) as scan:
            for entry in sorted(scan, key=lambda entry: composed(entry.name)):
                kind = 2
                with contextlib.suppress(OSError):  # of a link that leads to itself
                    kind = 0 if entry.is_dir() else 1 if entry.is_file() else 2
                if not entry.name.startswith("."):
                    found[kind].append(entry.name)
    except OSError as error:
        cure = "Put it there as DATASETS.md says" if row.folder else "Put the class folders there"
        what = f"the folder {path} cannot be read ({reason(error)}). {cure}, or pass --root (DATA"
        holds = row.folder or "train"
        raise row.error(f"{what} for the scripts) with the folder that holds {holds}.") from error
    return found


def on_disk(path: str, listed: dict[str, dict[str, str]]) -> str:
    """A path with every name as its folder (kept in `listed`) spells it, `composed` or not."""
    folder, name = os.path.split(path)
    if os.path.lexists(path) or not name:
        return path
    folder = on_disk(folder, listed)
    if folder not in listed:
        listed[folder] = {}
        with contextlib.suppress(OSError, ValueError):  # of a NUL
            listed[folder] = {composed(entry): entry for entry in os.listdir(folder)}
    return os.path.join(folder, listed[folder].get(composed(name), name))


def ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"


def are_pictures(names: Iterable[str]) -> list[str]:
    """Those that have an ending of files that Pillow opens."""
    known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return [name for name in names if ending(name) in known]


def in_folders(row: Row, classes: Classes, *paths: str) -> list[list[Item]]:
    """Items of `path/<folder>/*`, for each path, that are pictures; notes what is passed over."""
    split, passed = [], Counter[str]()
    for path in paths:
        items, empty, (folders, beside, _) = list[Item](), [], entries(row, path)
        passed["beside class folders"] += len(are_pictures(beside))
        for folder in folders:
            inside = os.path.join(path, folder)
            if composed(folder) not in classes:
                raise row.error(f"{inside} is no class of it. Move it away, or complete the list.")
            nested, files, others = entries(row, inside)
            images = are_pictures(files)
            for broken in are_pictures(others):
                raise row.error(f"{os.path.join(inside, broken)} is no regular file.")
            passed.update(map(ending, {*files, *others}.difference(images)))
            for name in nested:  # as far as a thousand folders tell; links end it
                below = os.path.join(inside, name)
                for _, _, names in islice(os.walk(below), 1 if os.path.islink(below) else 1000):
                    passed["in folders inside class folders"] += len(are_pictures(names))
            items += [(os.path.join(inside, name), *classes[composed(folder)]) for name in images]
            empty += [] if images else [folder]
        if empty:
            row.note(f": without a picture in {path}: {few(empty)}")
        split.append(items)
    if passed.total():
        which = ", ".join(f"{n:,} {kind}" for kind, n in passed.most_common() if n)
        files = "1 file is" if passed.total() == 1 else f"{passed.total():,} files are"
        row.note(f": {files} passed over: {which}. Pictures count directly in class folders")
    for path, items in zip(paths, split, strict=True):
        if not items:
            raise row.error(f"there are no images in {path}. See DATASETS.md.")
    return split


def class_names(row: Row, folder: str) -> dict[str, str]:
    """CoOp's `classnames.txt`, lines "folder class name": `{folder: class name}`, sorted."""
    path, names = os.path.join(folder, "classnames.txt"), dict[str, str]()
    for line in read_lines(row, path):
        wnid, *name = line.split(None, 1)
        if not name or names.setdefault(wnid, name[0]) != name[0]:
            other = f', and "{names[wnid]}" elsewhere' if name else " without a class name"
            raise row.error(f'{path} has the line "{line}"{other}. Copy the file anew.')
    return dict(sorted(names.items()))


def label_folders(row: Row, path: str, names: Mapping[str, str] | None) -> Classes:
    """`{folder: (label, class name)}` of the sorted class folders in `path`."""
    folders = dict.fromkeys(map(composed, entries(row, path)[0]))
    for folder in folders:
        if names is not None and folder not in names:
            what = f"classnames.txt has no line for the folder {os.path.join(path, folder)}"
            raise row.error(f"{what}. Write one, or copy the file anew.")
    return {folder: (n, names[folder] if names else folder) for n, folder in enumerate(folders)}


def read_imagenet(row: Row, folder: str) -> Split:
    """`images/train` and `images/val`, which is the test split; there is none for validation."""
    paths = [os.path.join(folder, row.images, part) for part in PARTS[:2]]
    classes = label_folders(row, paths[0], class_names(row, folder))
    train, test = in_folders(row, classes, *paths)
    return train, None, test


def read_variant(row: Row, folder: str) -> Split:
    """A folder a class, named as ImageNet's, or (ImageNetV2) by its number among ImageNet's."""
    names, path = class_names(row, folder), os.path.join(folder, row.images)
    folders = entries(row, path)[0]
    if folders and all(name.isdecimal() for name in folders):
        strange = [f'"{wnid}"' for wnid in names if not WNID.fullmatch(wnid)]
        if strange or len(names) != len(folders):
            other = strange[0] if strange else f"{len(names):,} folders. Copy the file anew"
            what = f"{path} has {len(folders):,} numbered folders, and classnames.txt names"
            raise row.error(f"{what} {other}.")
        classes: Classes = {str(n): (n, name) for n, name in enumerate(names.values())}
    else:
        classes = label_folders(row, path, names)
    (items,) = in_folders(row, classes, path)
    return items, None, items


def read_parts(row: Row, folder: str, *others: str) -> dict[str, list[Item]]:
    """The pictures of train, of `others` and of what parts there are; an empty class is none."""
    here = [part for part in PARTS if os.path.isdir(os.path.join(folder, part))]
    paths = {part: os.path.join(folder, part) for part in ("train", *others, *here)}
    named = os.path.lexists(os.path.join(folder, "classnames.txt"))
    classes = label_folders(row, paths["train"], class_names(row, folder) if named else None)
    found = dict(zip(paths, in_folders(row, classes, *paths.values()), strict=True))
    used = {label for items in found.values() for _, label, _ in items}
    new = {label: n for n, label in enumerate(sorted(used))}
    for part, items in found.items():
        found[part] = [(image, new[label], name) for image, label, name in items]
    return found


def read_folders(row: Row, folder: str) -> Split:
    """CIFAR's layout: train and test, val only where it has a folder."""
    found = read_parts(row, folder, "test")
    return [found.get(part) for part in PARTS]


def read_text(path: str) -> str:
    """The text of a regular file (a pipe would be waited for), which is UTF-8."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no regular file")
    with open(path, encoding="utf-8-sig") as file:
        return file.read()


def read_json(path: str) -> Any:
    """What a JSON file holds, or one of `UNREADABLE`: of a key that is there twice, too."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
            raise ValueError(f'"{twice[0]}" is there twice')
        return dict(pairs)

    return json.loads(read_text(path), object_pairs_hook=once)


def read_lines(row: Row, path: str) -> list[str]:
    """The lines of a text file that are not blank, composed."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise row.error(f"{path} cannot be read ({reason(error)}). See DATASETS.md.") from error
    return [composed(line.strip()) for line in lines if line.strip()]


def read_json_split(row: Row, folder: str, parts: Sequence[str] = PARTS) -> list[list[Item]]:
    """CoOp's JSON format: `{"train": [[path below the images, label, class name], ...], ...}`."""
    names = (row.split,) if isinstance(row.split, str) else row.split
    paths = [os.path.join(folder, name) for name in names]
    path = next(filter(os.path.isfile, paths), None)
    if path is None:
        cure = f"Put it there as DATASETS.md says, or pass --root with what holds {row.folder}."
        raise DatasetError(f"{row.name} has no split file {paths[0]}. {cure}")
    print(f"Reading split from {shown(path)}")
    images, split = os.path.join(folder, row.images), []
    try:
        content = read_json(path)
        for part in parts:
            if not isinstance(content[part], list):
                raise TypeError(f'"{part}" is no list')
            for n, entry in enumerate(content[part]):
                match entry:
                    case [str(at), int(label), str()] if at and type(label) is int and label >= 0:
                        continue
                wanted = "image and class name should be texts, and the label a whole number from 0"
                raise ValueError(f'entry {n} of "{part}" is {entry!r:.200}; {wanted} on')
            items = [(os.path.join(images, at), n, composed(name)) for at, n, name in content[part]]
            split.append(items)
    except UNREADABLE as error:  # not JSON at all, or JSON of another shape
        words, wrong = " and ".join(f'"{part}"' for part in parts), type(error).__name__
        what = f"{path} is not a split in CoOp's JSON format ({wrong}: {reason(error)})"
        raise DatasetError(f"{what}: expected {words}, lists of [image, label, name].") from error
    return need_images(row, path, split)


def need_images(row: Row, path: str, split: Sequence[list[Item]]) -> list[list[Item]]:
    """The items with the paths as the disk spells them; all images must be files."""
    listed: dict[str, dict[str, str]] = {}
    split = [[(on_disk(image, listed), *about) for image, *about in items] for items in split]
    images = [image for items in split for image, _, _ in items]
    if absent := [image for image in images if not os.path.isfile(image)]:
        there = " (which is no regular file, or not readable)" if os.path.lexists(absent[0]) else ""
        afresh = "" if row.folder else ", or move the split file away, to split the images anew"
        what = f"{len(absent):,} of the {len(images):,} images that {path} names are missing"
        raise DatasetError(f"{what}, the first of them {absent[0]}{there}. Put them back{afresh}.")
    return split


def read_svhn(row: Row, folder: str) -> Split:
    """Train and val from a split file that names images of `train`; test is all of `test`."""
    train, val = read_json_split(row, folder, PARTS[:2])
    classes = {name: (label, name) for _, label, name in train}
    return train, val, *in_folders(row, classes, os.path.join(folder, "test"))


def read_aircraft(row: Row, folder: str) -> Split:
    """FGVC Aircraft's own lists: `variants.txt`, and for each part lines "image class name"."""
    variants, split = read_lines(row, os.path.join(folder, "variants.txt")), []
    label_of = {name: label for label, name in enumerate(variants)}
    for part in PARTS:
        path, items = os.path.join(folder, f"images_variant_{part}.txt"), []
        for line in read_lines(row, path):
            image, _, name = line.partition(" ")
            if name not in label_of:
                what = f'{path} names the variant "{name}", which variants.txt lacks'
                raise row.error(f"{what}. Unpack the archive again.")
            items.append((os.path.join(folder, row.images, f"{image}.jpg"), label_of[name], name))
        split += need_images(row, path, [items])
    return split


def read_pictures(row: Row, folder: str, keep: bool = True) -> Split:
    """A user's own; a part without a folder is taken from train, and with `keep` written down."""
    found = read_parts(row, folder)
    if unused := [name for name in entries(row, folder)[0] if name not in PARTS]:
        called = f"is not used; the parts are called {', '.join(PARTS)}"
        row.note(f" in {folder}: what is in {few(unused)} {called}")
    missing = [part for part in SHARES if part not in found]
    path = os.path.join(folder, str(row.split))
    if missing and not os.path.isfile(path):
        need_items(row, "all", found["train"], found["train"])  # before a split is written
        check_labels(row, folder, found["train"])
        found |= take_parts(row, found["train"], missing)
        sizes = ", ".join(f"{len(found[part]):,} {part}" for part in PARTS)
        row.note(f" in {folder}: no folder for {' and '.join(missing)}: taken from train, {sizes}")
        if keep:
            write_split(path, folder, found, missing)
    elif missing:
        away, taken = "Move it away, and the images are split anew", None
        with contextlib.suppress(*UNREADABLE):  # it does not say, or is told of below
            taken = read_json(path)[TAKEN]
        if taken not in (missing, None):
            other = f"other folders ({few(taken)} taken from train, now {few(missing)})"
            raise DatasetError(f"{path} was made for {other}. {away}.")
        split = read_json_split(row, folder)
        train = {(label, name) for _, label, name in found["train"]}
        if {(label, name) for _, label, name in split[0]} != train:
            raise DatasetError(f"{path} has other classes than the folders of train. {away}.")
        named = {os.path.normpath(image) for items in split for image, _, _ in items}
        if new := sum(image not in named for items in found.values() for image, _, _ in items):
            other = f"{new:,} of the images in {folder} are not in {path}, and are not used"
            row.note(f": {other}. {away}")
        return split
    return [found[part] for part in PARTS]


def take_parts(row: Row, items: list[Item], missing: Sequence[str]) -> dict[str, list[Item]]:
    """The train images of every class, shuffled from a fixed seed and shared out."""
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
            what = f'the class "{split[missing[0]][-1][2]}" has too few images to take'
            raise row.error(f"{what} {' and '.join(missing)} from. Add some, or make that folder.")
        split["train"] += group
    return split


def write_split(path: str, folder: str, split: dict[str, list[Item]], missing: list[str]) -> None:
    """Write the split beside the pictures; where that fails, say so and go on."""
    content: dict[str, list] = {TAKEN: missing}
    for part, items in split.items():
        content[part] = [[os.path.relpath(image, folder), *about] for image, *about in items]
    draft = f"{path}.{os.getpid()}.tmp"
    try:
        with open(draft, "x", encoding="utf-8") as file:  # never through somebody's link
            json.dump(content, file)
        os.replace(draft, path)
        print(f"Split written to {shown(path)}")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        what = f"The split could not be written to {shown(path)} ({reason(error)})"
        print(f"{what}: keep the folder as it is, so that every run makes the same one")


def by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """The items of every label, in the order in which the labels first appear."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item[1], []).append(item)
    return groups


def text_of(name: str) -> str:
    """What CLIP's tokenizer makes of a class name: underscores are spaces, capitals are small."""
    plain = html.unescape(html.unescape(name.replace("_", " ")))
    return " ".join(composed(plain).lower().split())


def need_items(row: Row, which: str, train: Sequence[Item], test: Sequence[Item]) -> None:
    """Raise where nothing is left to train or to test on, or to tell apart."""
    among = "" if which == "all" else f" among the {which} half of its classes"
    cure = ", or set DATASET.SUBSAMPLE_CLASSES to all" if among else ""
    for part, items in (("training", train), ("test", test)):
        if not items:
            raise DatasetError(f"{row.name} has no {part} image{among}. Complete it{cure}.")
    if len({label for _, label, _ in train}) == 1:
        only = f'{row.name} has one class only{among}, "{train[0][2]}": every answer would be right'
        raise DatasetError(f"{only}. Add one, perhaps of pictures that are none of it{cure}.")


def check_labels(row: Row, folder: str, train: list[Item], *others: list[Item] | None) -> None:
    """Raise unless all parts have the labels 0 to C - 1, each with one name that is a text."""
    cure = "Complete the data set, or take the class away."

    def refuse(problem: str) -> None:
        raise DatasetError(f"{row.name} in {folder}: {problem}")

    names: dict[int, str] = {}
    for image, label, name in train:
        known = names.setdefault(label, name)
        if known != name:
            refuse(f'class {label} is called "{known}" and, for {image}, "{name}". Choose one.')
    for label, name in names.items():
        if any("\ud800" <= c <= "\udfff" for c in name):
            refuse(f'the name of class {label}, "{name}", is not UTF-8. Rename it.')
        if not any(c.isprintable() and not c.isspace() for c in text_of(name)):
            refuse(f'the name of class {label} is "{name}", which is no text for the model.')
    if lost := [n for n in range(len(names)) if n not in names]:  # others would be misnumbered
        what = f"class {lost[0]} of {max(names) + 1} (counted from 0)"
        refuse(f"{what} has no training image. {cure}")
    for image, label, name in (item for items in others for item in items or ()):
        if label not in names:
            refuse(f'{image} is of class {label}, "{name}", which has no training image. {cure}')
        if name != names[label] and text_of(name) != text_of(names[label]):
            other = f'"{names[label]}" in training and, for {image}, "{name}"'
            refuse(f"class {label} is called {other}. Number the classes of all parts alike.")


def note_names(row: Row, names: Sequence[str]) -> None:
    """Note which classes have the same text, or, in a user's own, none that says what they are."""
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(text_of(name), []).append(label)
    alike = [f'"{text}" ({", ".join(map(str, of))})' for text, of in labels.items() if len(of) > 1]
    if alike:
        row.note(f" has classes of the same text, which the model cannot tell apart: {few(alike)}")
    own, shortest = not row.sizes, 1 if len(names) < SIGNS else 2
    bare = {name for name in names if own and CODE.fullmatch(name) and len(name) >= shortest}
    codes = [name for name in names if WNID.match(name) or name in bare]
    if own and all(map(NUMBERED.match, names)):
        codes = list(names)
    if codes:
        cure = f'Write classnames.txt beside them, with lines "{codes[0]} red fox"'
        row.note(f" has classes called by ids or numbers, which say little: {few(codes)}. {cure}")
