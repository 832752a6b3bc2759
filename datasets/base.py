"""Data sets as rows of a table: one class reads a split, draws the shots and takes the base or the new classes, as CoOp does.

A split is three lists of `(image path, label, class name)`: train, val and test; val may be None where there is none.
Nothing is written into the user's data folder, and no pickle is read: the shots are drawn anew from the seed.
"""

import json
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum


class DatasetError(ValueError):
    """The data set cannot be read as the config asks; the message says what to do."""


def read_json_split(row, folder):
    """The split in CoOp's JSON format: `{"train": [[path in the image folder, label, class name], ...], "val": ..., "test": ...}`."""
    path, images = os.path.join(folder, row.split), os.path.join(folder, row.images)
    if not os.path.isdir(folder):
        raise DatasetError(f"{row.name} is not at {folder}: there is no such folder. Put it there as DATASETS.md says, or pass --root with "
                           f"the folder that holds {row.folder}.")
    if not os.path.isfile(path):
        raise DatasetError(f"{row.name} has no split file {path}. Download it as DATASETS.md says; a split is never made up here.")
    print(f"Reading split from {path}")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        split = [[(os.path.join(images, image), int(label), name) for image, label, name in content[part]]
                 for part in ("train", "val", "test")]
    except (ValueError, KeyError, TypeError) as error:  # not JSON at all, or JSON of another shape
        raise DatasetError(f'{path} is not a split in CoOp\'s JSON format ({type(error).__name__}: {error}): expected "train", "val" and '
                           f'"test", lists of [image, label, class name]. Download it again as DATASETS.md says.') from error
    named = [image for items in split for image, _, _ in items]
    absent = [image for image in named if not os.path.isfile(image)]
    if absent:
        raise DatasetError(f"{len(absent):,} of the {len(named):,} images that {path} names are missing, the first of them {absent[0]}. "
                           f"Put them back as DATASETS.md says.")
    return split


@dataclass(frozen=True)
class Row:
    """Where a data set lies under DATASET.ROOT and who reads it; `read(row, folder)` returns a split."""
    name: str               # in Dassl's registry
    folder: str
    images: str = ""
    split: str = ""
    read: Callable = read_json_split
    default_root: str = ""  # where DATASET.ROOT is empty; itself empty: the user must name one


def draw_shots(items, shots, rng):
    """`shots` items of every label, all of a label that has fewer; below 1, everything.

    Label by label in the order of first appearance, as `DatasetBase.generate_fewshot_dataset` draws from the global generator.
    """
    if shots < 1 or items is None:
        return items
    groups = {}
    for item in items:
        groups.setdefault(item[1], []).append(item)
    return [item for group in groups.values() for item in (rng.sample(group, shots) if len(group) >= shots else group)]


def choose_classes(which, *split):
    """The split cut to all, the base (first half, rounded up) or the new classes of its train list, relabelled from 0."""
    if which == "all":
        return split
    labels = sorted({label for _, label, _ in split[0]})
    half = math.ceil(len(labels) / 2)
    relabel = {label: new for new, label in enumerate(labels[:half] if which == "base" else labels[half:])}
    return [items and [(image, relabel[label], name) for image, label, name in items if label in relabel] for items in split]


class FewShotDataset(DatasetBase):
    """A row's data set with the shots that DATASET.NUM_SHOTS and SEED decide, image for image those of CoOp."""
    row: Row
    origin = "dassl_blackbox"  # by which a second registration knows the first

    def __init__(self, cfg):
        row, root = self.row, cfg.DATASET.ROOT or self.row.default_root
        which = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")  # a key of CoOp's, which Dassl's defaults lack
        if which not in ("all", "base", "new"):
            raise DatasetError(f'DATASET.SUBSAMPLE_CLASSES is "{which}", but must be "all", "base" or "new".')
        if not root:
            raise DatasetError(f"DATASET.ROOT is empty: pass --root with the folder that holds {row.folder} ({row.name}; see DATASETS.md).")
        self.dataset_dir = os.path.join(os.path.abspath(os.path.expanduser(root)), row.folder)
        train, val, test = row.read(row, self.dataset_dir)
        rng, shots = random.Random(cfg.SEED if cfg.SEED >= 0 else None), cfg.DATASET.NUM_SHOTS
        train, val = draw_shots(train, shots, rng), draw_shots(val, min(shots, 4), rng)
        split = [items and [Datum(impath=image, label=label, classname=name) for image, label, name in items]
                 for items in choose_classes(which, train, val, test)]
        super().__init__(train_x=split[0], val=split[1], test=split[2])


def register(row):
    """Registers a row with Dassl, unless the host already has a data set of that name: its own is kept."""
    if row.name not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(type(row.name, (FewShotDataset,), {"row": row}))
        return
    present = DATASET_REGISTRY.get(row.name)
    if getattr(present, "origin", None) != FewShotDataset.origin:
        print(f"Data set {row.name}: keeping the one that {present.__module__} registered")
