"""Data sets that are written out on first use: the images as PNGs, and a split file like any other's beside them."""

import json
import os
import shutil
import uuid

from .base import Row
from .readers import DatasetError, read_json_split


def generated(name, pictures, sizes=(), version=1):
    """Row of a data set that `pictures()` makes: pairs of part (train, val, test), label, class name and PIL image.

    A new `version` says that the pictures have changed since those that may lie on a user's disk.
    """

    def read(row, folder):
        path = os.path.join(folder, row.split)
        if not os.path.isfile(path):
            write(row, folder, pictures(), version)
        split = read_json_split(row, folder)
        with open(path, encoding="utf-8") as file:
            found = json.load(file).get("version")
        if found != version:
            raise DatasetError(
                f"{folder} holds version {found} of the generated data set {row.name}, but this is version {version}: "
                f"move that folder away, and it will be written anew."
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


def write(row, folder, pictures, version):
    """Writes all of it into a folder beside the final one and renames that at the end, so that no half of it is ever seen."""
    print(f"Writing {row.name} to {folder}")
    draft = f"{folder}.{uuid.uuid4().hex[:8]}.tmp"
    split, saved = {"version": version, "train": [], "val": [], "test": []}, set()
    try:
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
    except OSError as error:
        # another process may have been faster: its folder, complete, is as good
        if not os.path.isfile(os.path.join(folder, row.split)):
            raise DatasetError(
                f"{row.name} cannot be written to {folder} ({error}). Pass --root with a folder that you may write to; a "
                f"folder of that name without {row.split} must be moved away first."
            ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
