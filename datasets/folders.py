"""Pictures in folders: `train/<class>/*`, and `val/<class>/*` and `test/<class>/*` where there are any. A user's own data need no more."""

import json
import os
import random

from PIL import Image

from .readers import (
    PARTS,
    DatasetError,
    by_label,
    check_labels,
    in_folders,
    need_folder,
    read_json_split,
    visible,
)

SHARES = {
    "val": 0.2,
    "test": 0.3,
}  # of every class's train images, for a part that has no folder: CoOp's shares
TAKEN = "taken from train"


def classes_of(row, folder):
    return {
        name: (label, name)
        for label, name in enumerate(
            visible(need_folder(row, os.path.join(folder, "train")), folders=True)
        )
    }


def read_folders(row, folder):
    """CIFAR's layout: train and test, val only where it has a folder."""
    classes, split = classes_of(row, folder), []
    for part in PARTS:
        path = os.path.join(folder, part)
        split.append(
            None
            if part == "val" and not os.path.isdir(path)
            else in_folders(row, need_folder(row, path), classes)
        )
    return split


def read_pictures(row, folder):
    """The user's own folder. A part without a folder is taken from the train images, class by class, once: the split is written down beside them."""
    classes = classes_of(row, folder)
    found = {
        part: pictures(in_folders(row, os.path.join(folder, part), classes))
        for part in PARTS
        if os.path.isdir(os.path.join(folder, part))
    }
    missing = [part for part in SHARES if part not in found]
    if not missing:
        return [found[part] for part in PARTS]
    path = os.path.join(folder, row.split)
    if os.path.isfile(path):
        taken = taken_in(path)
        if taken not in (missing, None):
            raise DatasetError(
                f"{path} was made for other folders ({', '.join(taken)} taken from train, now {', '.join(missing)}). "
                f"Move it away, and the images are split anew."
            )
        split = read_json_split(row, folder)
        if {(label, name) for _, label, name in split[0]} != set(classes.values()):
            raise DatasetError(
                f"{path} has other classes than the folders in {os.path.join(folder, 'train')}. Move it away, and the images are split anew."
            )
        return split
    check_labels(row, folder, found["train"])
    found.update(take_parts(row, found["train"], missing))
    print(
        f"No folder for {' and '.join(missing)} in {folder}: taken from train, {', '.join(f'{len(found[part]):,} {part}' for part in PARTS)}"
    )
    write_split(path, folder, found, missing)
    return [found[part] for part in PARTS]


def taken_in(path):
    """The parts that a split file took from train; None where it is not ours."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file).get(TAKEN)
    except (ValueError, AttributeError):
        return None


def pictures(items):
    endings = tuple(
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    )
    return [item for item in items if item[0].lower().endswith(endings)]


def take_parts(row, items, missing):
    """The train images of every class shuffled (from a fixed seed: all runs see one split) and shared out."""
    rng, split = random.Random(0), {part: [] for part in ("train", *missing)}
    for group in by_label(items).values():
        rng.shuffle(group)
        total = len(group)
        for part in missing:
            count = max(1, round(total * SHARES[part]))
            split[part] += group[:count]
            group = group[count:]
        if not group:
            raise DatasetError(
                f'{row.name}: the class "{split[missing[0]][-1][2]}" has too few images to take {" and ".join(missing)} from. Add images, or '
                f"make folders for {' and '.join(missing)} yourself."
            )
        split["train"] += group
    return split


def write_split(path, folder, split, missing):
    content = {
        TAKEN: missing,
        **{
            part: [
                [os.path.relpath(image, folder), label, name] for image, label, name in split[part]
            ]
            for part in PARTS
        },
    }
    draft = f"{path}.{os.getpid()}.tmp"
    try:
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(draft, path)
        print(f"Split written to {path}")
    except OSError as error:
        print(
            f"The split could not be written to {path} ({error.strerror}): keep the folder's content as it is, so that every run makes the same one"
        )
