"""Data sets as rows of a table: one class reads a split, draws shots, takes half the classes."""

from __future__ import annotations

import math
import os
import random
import sys
from collections import Counter
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

from . import listing
from .listing import DatasetError, Item, Row, Split


def read(row: Row, folder: str, **options: Any) -> Split:
    """The split of a row, whose labels and names mean one thing."""
    split = (row.read or listing.read_json_split)(row, folder, **options)
    listing.need_items(row, "all", split[0], split[2])
    listing.check_labels(row, folder, split[0], *split[1:])
    return split


def sizes_of(split: Split) -> tuple[int | None, ...]:
    """(classes, train, val, test) of a split; val is None where there is none."""
    classes = len({label for _, label, _ in split[0]})
    return classes, *(None if items is None else len(items) for items in split)


def differences(row: Row, split: Split) -> str:
    """What a split has and what was published, as words; empty where they agree."""
    words = ("classes", "train images", "val images", "test images")
    return "; ".join(
        f"{found:,} {word} where {wanted:,} are published"
        for found, wanted, word in zip(sizes_of(split), row.sizes, words, strict=False)
        if found is not None and wanted is not None and found != wanted
    )


def draw_shots(items: list[Item] | None, shots: int, rng: random.Random) -> list[Item] | None:
    """`shots` items of every label, as `DatasetBase.generate_fewshot_dataset` draws them."""
    if shots < 1 or items is None:
        return items
    drawn: list[Item] = []
    for group in listing.by_label(items).values():
        drawn += rng.sample(group, shots) if len(group) >= shots else group
    return drawn


def choose_classes(which: str, *split: list[Item] | None) -> Split:
    """The split cut to all, the base (the first half, rounded up) or the new classes."""
    if which == "all":
        return split
    labels = sorted({label for _, label, _ in split[0]})
    half = math.ceil(len(labels) / 2)
    chosen = labels[:half] if which == "base" else labels[half:]
    new = {label: n for n, label in enumerate(chosen)}
    return [
        items and [(image, new[label], name) for image, label, name in items if label in new]
        for items in split
    ]


class FewShotDataset(DatasetBase):
    """A row's data set, with CoOp's shots for DATASET.NUM_SHOTS and SEED, image for image."""

    row: Row

    def __init__(self, cfg: Any):
        row, root = self.row, os.path.expanduser(cfg.DATASET.ROOT or self.row.default_root)
        # a key of CoOp's, which Dassl's defaults lack
        which, shots = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"), cfg.DATASET.NUM_SHOTS
        if which not in ("all", "base", "new"):
            wanted = 'but must be "all", "base" or "new"'
            raise DatasetError(f'DATASET.SUBSAMPLE_CLASSES is "{which}", {wanted}.')
        if not root:
            holds = f"the folder that holds {row.folder or 'train'} ({row.name}; see DATASETS.md)"
            raise DatasetError(f"DATASET.ROOT is empty: pass --root with {holds}.")
        if root.startswith("~"):  # else a folder of that name would be made here
            raise DatasetError(f"There is no home folder for {root}. Give --root another path.")
        self.dataset_dir = os.path.normpath(os.path.join(os.path.abspath(root), row.folder))
        train, val, test = split = read(row, self.dataset_dir)
        if other := differences(row, split):
            row.note(f" in {self.dataset_dir} is not the published one: {other}")
        rng = random.Random(cfg.SEED if cfg.SEED >= 0 else None)
        train, val = draw_shots(train, shots, rng), draw_shots(val, min(shots, 4), rng)
        split = choose_classes(which, train, val, test)
        listing.need_items(row, which, split[0], split[2])
        counts = Counter(label for _, label, _ in split[0]).values()
        if fewer := sum(count < shots for count in counts):
            few = f"{fewer:,} of {len(counts):,} classes have fewer than the {shots:,} training"
            taken = f"and all of theirs are taken: {sum(counts):,} images in all"
            row.note(f": {few} images of DATASET.NUM_SHOTS, {taken}")
        train_x, val, test = (
            items and [Datum(path, label, classname=name) for path, label, name in items]
            for items in split
        )
        super().__init__(train_x=train_x, val=val, test=test)
        listing.note_names(row, self.classnames)


def register(row: Row) -> None:
    """Registers a row with Dassl; a data set of that name which the host has is kept."""
    if row.name not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(type(row.name, (FewShotDataset,), {"row": row}))
        return
    present = DATASET_REGISTRY.get(row.name)
    if not hasattr(present, "row"):  # ours, registered before
        kept = f"Data set {row.name}: keeping the one that {present.__module__} registered"
        print(kept, file=sys.stderr)  # stdout may be a table
