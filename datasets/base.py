"""Data sets as rows of a table: one class reads a split, draws shots, takes base or new classes.

Nothing is written into the user's data folder, and no pickle is read: the shots are drawn anew from
the seed, as CoOp draws them.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

from .labels import by_label, check_labels, need_items, note_names
from .listing import DatasetError, Item, shown
from .readers import Split, read_json_split


@dataclass(frozen=True)
class Row:
    """Where a data set lies under DATASET.ROOT; `read(row, folder)` returns its split."""

    name: str  # in Dassl's registry
    config: str  # its YAML in configs/datasets, and its folder's name in output/
    folder: str
    images: str = ""
    split: str | tuple = ""  # name of the split file, or names that it goes by
    read: Callable = read_json_split
    sizes: tuple = ()  # (classes, train, val, test) as published; None where nobody tells
    default_root: str = ""  # where DATASET.ROOT is empty; itself empty: the user must name one


def sizes_of(split: Split) -> tuple[int | None, ...]:
    """(classes, train, val, test) of a split; val is None where there is none."""
    return (
        len({label for _, label, _ in split[0]}),
        *(None if items is None else len(items) for items in split),
    )


def differences(row: Row, split: Split) -> str:
    """What a split has and what was published, as words; empty where they agree."""
    words = ("classes", "train images", "val images", "test images")
    return "; ".join(
        f"{found:,} {word} where {wanted:,} are published"
        for found, wanted, word in zip(sizes_of(split), row.sizes, words, strict=False)
        if found is not None and wanted is not None and found != wanted
    )


def draw_shots(items: list[Item] | None, shots: int, rng: random.Random) -> list[Item] | None:
    """`shots` items of every label, all of a label that has fewer; below 1, everything.

    Label by label in the order of first appearance, as `DatasetBase.generate_fewshot_dataset` draws
    from the global generator.
    """
    if shots < 1 or items is None:
        return items
    return [
        item
        for group in by_label(items).values()
        for item in (rng.sample(group, shots) if len(group) >= shots else group)
    ]


def choose_classes(which: str, *split: list[Item] | None) -> Split:
    """The split cut to all, the base or the new classes of its train list, relabelled from 0.

    Base is the first half of the labels, rounded up.
    """
    if which == "all":
        return split
    labels = sorted({label for _, label, _ in split[0]})
    half = math.ceil(len(labels) / 2)
    chosen = labels[:half] if which == "base" else labels[half:]
    relabel = {label: new for new, label in enumerate(chosen)}
    return [
        items
        and [(image, relabel[label], name) for image, label, name in items if label in relabel]
        for items in split
    ]


def note_shots(row: Row, train: Sequence[Item], shots: int) -> None:
    """Print how many classes have fewer images than were to be drawn."""
    counts = Counter(label for _, label, _ in train).values()
    fewer = sum(count < shots for count in counts)
    if fewer:
        print(
            f"Note: {row.name}: {fewer:,} of {len(counts):,} classes have fewer than the "
            f"{shots:,} training images of DATASET.NUM_SHOTS, and all of theirs are taken: "
            f"{len(train):,} images in all"
        )


def datums(row: Row, items: Sequence[Item]) -> list[Datum]:
    """Dassl's items, which assert that their files are there."""
    made = []
    for image, label, name in items:
        try:
            made.append(Datum(impath=image, label=label, classname=name))
        except AssertionError as error:
            raise DatasetError(
                f"{row.name}: the image {image} is missing, or its folder is not readable. Put the "
                f"data set there anew."
            ) from error
    return made


class FewShotDataset(DatasetBase):
    """A row's data set, with CoOp's shots for DATASET.NUM_SHOTS and SEED, image for image."""

    row: Row
    origin = "dassl_blackbox"  # by which a second registration knows the first

    def __init__(self, cfg: Any):
        row, root = self.row, cfg.DATASET.ROOT or self.row.default_root
        # a key of CoOp's, which Dassl's defaults lack
        which = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        if which not in ("all", "base", "new"):
            raise DatasetError(
                f'DATASET.SUBSAMPLE_CLASSES is "{which}", but must be "all", "base" or "new".'
            )
        if not root:
            raise DatasetError(
                f"DATASET.ROOT is empty: pass --root with the folder that holds "
                f"{row.folder or 'train'} ({row.name}; see DATASETS.md)."
            )
        root = os.path.expanduser(root)
        if root.startswith("~"):  # else a folder of that name would be made here
            raise DatasetError(
                f"There is no home folder for {shown(root)}. Give --root another path."
            )
        self.dataset_dir = os.path.normpath(os.path.join(os.path.abspath(root), row.folder))
        train, val, test = row.read(row, self.dataset_dir)
        need_items(row, "all", train, test)
        check_labels(row, self.dataset_dir, train, val, test)
        other = differences(row, (train, val, test))
        if other:
            where = shown(self.dataset_dir)
            print(f"Note: {row.name} in {where} is not the published one: {other}")
        rng, shots = random.Random(cfg.SEED if cfg.SEED >= 0 else None), cfg.DATASET.NUM_SHOTS
        train, val = draw_shots(train, shots, rng), draw_shots(val, min(shots, 4), rng)
        split = choose_classes(which, train, val, test)
        need_items(row, which, split[0], split[2])
        note_shots(row, split[0], shots)
        train_x, val, test = (items and datums(row, items) for items in split)
        super().__init__(train_x=train_x, val=val, test=test)
        note_names(row, self.classnames)


def register(row: Row) -> None:
    """Registers a row with Dassl, unless the host already has a data set of that name.

    The host's own is kept.
    """
    if row.name not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(type(row.name, (FewShotDataset,), {"row": row}))
        return
    present = DATASET_REGISTRY.get(row.name)
    if getattr(present, "origin", None) != FewShotDataset.origin:
        kept = f"Data set {row.name}: keeping the one that {present.__module__} registered"
        print(kept, file=sys.stderr)  # stdout may be a table
