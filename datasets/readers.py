"""Readers of the layouts that data sets come in. Each takes a row and its folder and returns a split.

A split is three lists of `(image path, label, class name)`: train, val and test; val is None where there is none.
"""

import json
import os

PARTS = ("train", "val", "test")
AFRESH = ", or move the split file away, and the images are split anew"  # where the split is ours and not published


class DatasetError(ValueError):
    """The data set cannot be read as the config asks; the message says what to do."""


def check_labels(row, folder, train, *others):
    """Raise unless the training images have the labels 0 to C - 1 and the others no more: Dassl numbers the classes that it finds in training."""
    labels = {label for _, label, _ in train}
    absent = next((label for label in range(len(labels)) if label not in labels), None)
    if absent is not None:
        raise DatasetError(
            f"{row.name} in {folder}: class {absent} of {max(labels) + 1} (counted from 0) has no training image, and the classes behind it would be "
            f"misnumbered. Complete the data set, or take the class away."
        )
    strange = next(
        (item for items in others for item in items or () if item[1] not in labels), None
    )
    if strange is not None:
        raise DatasetError(
            f'{row.name} in {folder}: {strange[0]} is of class {strange[1]}, "{strange[2]}", which has no training image. Complete the data set, or take '
            f"the class away."
        )


def by_label(items):
    """The items of every label, in the order in which the labels first appear."""
    groups = {}
    for item in items:
        groups.setdefault(item[1], []).append(item)
    return groups


def need_folder(row, path):
    """`path`, which must be a folder."""
    if not os.path.isdir(path):
        raise DatasetError(
            f"{row.name} is not complete: there is no folder {path}. Put it there as DATASETS.md says, or pass --root with the folder that "
            f"holds {row.folder or 'train'}."
        )
    return path


def read_lines(row, path):
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{row.name}: {path} cannot be read ({getattr(error, 'strerror', None) or error}). Put it there as DATASETS.md says."
        ) from error


def visible(path, folders):
    """Sorted names of what is in a folder: of its folders, or of its files; hidden ones do not count."""
    with os.scandir(path) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.is_dir() == folders
        )


def in_folders(row, path, classes):
    """Items of `path/<folder>/*`; `classes`: pairs of label and class name by folder."""
    items = []
    for folder in visible(path, folders=True):
        if folder not in classes:
            raise DatasetError(
                f"{row.name}: {os.path.join(path, folder)} is no class of it. Move that folder away, or complete the list of classes."
            )
        items += [
            (os.path.join(path, folder, image), *classes[folder])
            for image in visible(os.path.join(path, folder), folders=False)
        ]
    if not items:
        raise DatasetError(
            f"{row.name}: there are no images in {path}, which should hold a folder for every class. See DATASETS.md."
        )
    return items


def split_file(row, folder):
    """Path of the split file, under the first of its names that is there."""
    names = (row.split,) if isinstance(row.split, str) else row.split
    for name in names:
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise DatasetError(
        f"{row.name} has no split file {os.path.join(folder, names[0])}. Download it as DATASETS.md says; a split is never made up here."
    )


def read_json_split(row, folder, parts=PARTS):
    """CoOp's JSON format: `{"train": [[path in the image folder, label, class name], ...], "val": ..., "test": ...}`."""
    if not os.path.isdir(folder):
        raise DatasetError(
            f"{row.name} is not at {folder}: there is no such folder. Put it there as DATASETS.md says, or pass --root with "
            f"the folder that holds {row.folder}."
        )
    path, images = split_file(row, folder), os.path.join(folder, row.images)
    print(f"Reading split from {path}")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        split = [
            [
                (os.path.join(images, image), int(label), name)
                for image, label, name in content[part]
            ]
            for part in parts
        ]
    except (ValueError, KeyError, TypeError) as error:  # not JSON at all, or JSON of another shape
        words = ", ".join(f'"{part}"' for part in parts[:-1]) + f' and "{parts[-1]}"'
        raise DatasetError(
            f"{path} is not a split in CoOp's JSON format ({type(error).__name__}: {error}): expected {words}, "
            f"lists of [image, label, class name]. Download it again as DATASETS.md says."
        ) from error
    named = [image for items in split for image, _, _ in items]
    absent = [image for image in named if not os.path.isfile(image)]
    if absent:
        raise DatasetError(
            f"{len(absent):,} of the {len(named):,} images that {path} names are missing, the first of them {absent[0]}. "
            f"Put them back as DATASETS.md says{AFRESH if not row.folder else ''}."
        )
    return split


def read_svhn(row, folder):
    """Train and val from a split file that names images of `train`; test is every image of `test`, by class."""
    train, val = read_json_split(row, folder, PARTS[:2])
    classes = {name: (label, name) for _, label, name in train}
    return train, val, in_folders(row, need_folder(row, os.path.join(folder, "test")), classes)


def read_aircraft(row, folder):
    """FGVC Aircraft's own lists: `variants.txt`, and for each part a file with lines "image class name"."""
    need_folder(row, folder)
    label_of = {
        name: label
        for label, name in enumerate(read_lines(row, os.path.join(folder, "variants.txt")))
    }
    split = []
    for part in PARTS:
        path = os.path.join(folder, f"images_variant_{part}.txt")
        pairs = [line.partition(" ")[::2] for line in read_lines(row, path)]
        unknown = next((name for _, name in pairs if name not in label_of), None)
        if unknown is not None:
            raise DatasetError(
                f'{row.name}: {path} names the variant "{unknown}", which variants.txt lacks. Unpack the archive again.'
            )
        items = [
            (os.path.join(folder, row.images, f"{image}.jpg"), label_of[name], name)
            for image, name in pairs
        ]
        absent = next((image for image, _, _ in items if not os.path.isfile(image)), None)
        if absent is not None:
            raise DatasetError(
                f"{row.name}: {path} names the image {absent}, which is missing. Unpack the archive again."
            )
        split.append(items)
    return split


def class_names(row, folder):
    """CoOp's `classnames.txt`, lines "folder class name": `{folder: class name}` in the file's order."""
    path = os.path.join(need_folder(row, folder), "classnames.txt")
    return dict(line.partition(" ")[::2] for line in read_lines(row, path))


def read_imagenet(row, folder):
    """`images/train` and `images/val`, a folder a class. The val images are the test split, and there is no val split (CoOp's is its test split)."""
    names, paths = (
        class_names(row, folder),
        [need_folder(row, os.path.join(folder, row.images, part)) for part in PARTS[:2]],
    )
    classes = label_folders(row, paths[0], names)
    train, test = (in_folders(row, path, classes) for path in paths)
    return train, None, test


def read_variant(row, folder):
    """A variant of ImageNet, for testing only: a folder a class, named as ImageNet's, or in ImageNetV2 by the class's number."""
    names, path = class_names(row, folder), need_folder(row, os.path.join(folder, row.images))
    if all(name.isdigit() for name in visible(path, folders=True)):
        classes = {str(label): (label, name) for label, name in enumerate(names.values())}
    else:
        classes = label_folders(row, path, names)
    items = in_folders(row, path, classes)
    return items, None, items


def label_folders(row, path, names):
    """`{folder: (label, class name)}` of the class folders in `path`, labelled in their sorted order."""
    folders = visible(path, folders=True)
    unnamed = next((folder for folder in folders if folder not in names), None)
    if unnamed is not None:
        raise DatasetError(
            f"{row.name}: classnames.txt has no line for the folder {os.path.join(path, unnamed)}. Copy the file that DATASETS.md names."
        )
    return {folder: (label, names[folder]) for label, folder in enumerate(folders)}
