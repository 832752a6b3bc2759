"""Data sets as rows of a table: one class reads a split, draws the shots and takes the base or the new classes, as CoOp does.

Nothing is written into the user's data folder, and no pickle is read: the shots are drawn anew from the seed.
"""

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

from .readers import DatasetError, by_label, check_labels, read_json_split


@dataclass(frozen=True)
class Row:
    """Where a data set lies under DATASET.ROOT and who reads it; `read(row, folder)` returns a split."""

    name: str  # in Dassl's registry
    config: str  # its YAML in configs/datasets, and its folder's name in output/
    folder: str
    images: str = ""
    split: str | tuple = ""  # name of the split file, or names that it goes by
    read: Callable = read_json_split
    sizes: tuple = ()  # (classes, train, val, test) as published; None where nobody tells
    default_root: str = ""  # where DATASET.ROOT is empty; itself empty: the user must name one


def sizes_of(split):
    """(classes, train, val, test) of a split; val is None where there is none."""
    return (
        len({label for _, label, _ in split[0]}),
        *(None if items is None else len(items) for items in split),
    )


def differences(row, split):
    """What a split has and what was published, as words; empty where they agree."""
    words = ("classes", "train images", "val images", "test images")
    return "; ".join(
        f"{found:,} {word} where {wanted:,} are published"
        for found, wanted, word in zip(sizes_of(split), row.sizes, words)
        if found is not None and wanted is not None and found != wanted
    )


def draw_shots(items, shots, rng):
    """`shots` items of every label, all of a label that has fewer; below 1, everything.

    Label by label in the order of first appearance, as `DatasetBase.generate_fewshot_dataset` draws from the global generator.
    """
    if shots < 1 or items is None:
        return items
    return [
        item
        for group in by_label(items).values()
        for item in (rng.sample(group, shots) if len(group) >= shots else group)
    ]


def choose_classes(which, *split):
    """The split cut to all, the base (first half, rounded up) or the new classes of its train list, relabelled from 0."""
    if which == "all":
        return split
    labels = sorted({label for _, label, _ in split[0]})
    half = math.ceil(len(labels) / 2)
    relabel = {
        label: new for new, label in enumerate(labels[:half] if which == "base" else labels[half:])
    }
    return [
        items
        and [(image, relabel[label], name) for image, label, name in items if label in relabel]
        for items in split
    ]


class FewShotDataset(DatasetBase):
    """A row's data set with the shots that DATASET.NUM_SHOTS and SEED decide, image for image those of CoOp."""

    row: Row
    origin = "dassl_blackbox"  # by which a second registration knows the first

    def __init__(self, cfg):
        row, root = self.row, cfg.DATASET.ROOT or self.row.default_root
        which = cfg.DATASET.get(
            "SUBSAMPLE_CLASSES", "all"
        )  # a key of CoOp's, which Dassl's defaults lack
        if which not in ("all", "base", "new"):
            raise DatasetError(
                f'DATASET.SUBSAMPLE_CLASSES is "{which}", but must be "all", "base" or "new".'
            )
        if not root:
            raise DatasetError(
                f"DATASET.ROOT is empty: pass --root with the folder that holds {row.folder or 'train'} ({row.name}; see DATASETS.md)."
            )
        self.dataset_dir = os.path.normpath(
            os.path.join(os.path.abspath(os.path.expanduser(root)), row.folder)
        )
        train, val, test = row.read(row, self.dataset_dir)
        check_labels(row, self.dataset_dir, train, val, test)
        other = differences(row, (train, val, test))
        if other:
            print(f"Note: {row.name} in {self.dataset_dir} is not the published one: {other}")
        rng, shots = random.Random(cfg.SEED if cfg.SEED >= 0 else None), cfg.DATASET.NUM_SHOTS
        train, val = draw_shots(train, shots, rng), draw_shots(val, min(shots, 4), rng)
        split = [
            items
            and [Datum(impath=image, label=label, classname=name) for image, label, name in items]
            for items in choose_classes(which, train, val, test)
        ]
        super().__init__(train_x=split[0], val=split[1], test=split[2])


def register(row):
    """Registers a row with Dassl, unless the host already has a data set of that name: its own is kept."""
    if row.name not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(type(row.name, (FewShotDataset,), {"row": row}))
        return
    present = DATASET_REGISTRY.get(row.name)
    if getattr(present, "origin", None) != FewShotDataset.origin:
        print(f"Data set {row.name}: keeping the one that {present.__module__} registered")
