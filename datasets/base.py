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
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

from .labels import by_label, check_labels, need_items, note_names
from .listing import DatasetError, Item, Row, Split, note
from .readers import read_json_split


def read(row: Row, folder: str, **options: Any) -> Split:
    """The split of a row, whose labels and names mean one thing."""
    split = (row.read or read_json_split)(row, folder, **options)
    need_items(row, "all", split[0], split[2])
    check_labels(row, folder, split[0], *split[1:])
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


class FewShotDataset(DatasetBase):
    """A row's data set, with CoOp's shots for DATASET.NUM_SHOTS and SEED, image for image."""

    row: Row
    origin = "dassl_blackbox"  # by which a second registration knows the first

    def __init__(self, cfg: Any):
        row, root = self.row, os.path.expanduser(cfg.DATASET.ROOT or self.row.default_root)
        # a key of CoOp's, which Dassl's defaults lack
        which, shots = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"), cfg.DATASET.NUM_SHOTS
        if which not in ("all", "base", "new"):
            raise DatasetError(
                f'DATASET.SUBSAMPLE_CLASSES is "{which}", but must be "all", "base" or "new".'
            )
        if not root:
            raise DatasetError(
                f"DATASET.ROOT is empty: pass --root with the folder that holds "
                f"{row.folder or 'train'} ({row.name}; see DATASETS.md)."
            )
        if root.startswith("~"):  # else a folder of that name would be made here
            raise DatasetError(f"There is no home folder for {root}. Give --root another path.")
        self.dataset_dir = os.path.normpath(os.path.join(os.path.abspath(root), row.folder))
        train, val, test = split = read(row, self.dataset_dir)
        other = differences(row, split)
        if other:
            note(row, f" in {self.dataset_dir} is not the published one: {other}")
        rng = random.Random(cfg.SEED if cfg.SEED >= 0 else None)
        train, val = draw_shots(train, shots, rng), draw_shots(val, min(shots, 4), rng)
        split = choose_classes(which, train, val, test)
        need_items(row, which, split[0], split[2])
        counts = Counter(label for _, label, _ in split[0]).values()
        fewer = sum(count < shots for count in counts)
        if fewer:
            note(
                row,
                f": {fewer:,} of {len(counts):,} classes have fewer than the {shots:,} training "
                f"images of DATASET.NUM_SHOTS, and all of theirs are taken: {sum(counts):,} images "
                f"in all",
            )
        train_x, val, test = (
            items
            and [Datum(impath=path, label=label, classname=name) for path, label, name in items]
            for items in split
        )
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
