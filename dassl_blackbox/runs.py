"""What finished runs left in the `metrics.json` of their folders: a table with a row a run."""

from __future__ import annotations

import os
import re
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from .console import note
from .datasets.table import ROWS
from .trainers.blackbox import record
from .trainers.blackbox.config import ours
from .trainers.blackbox.errors import BlackBoxError, first_line, printable
from .trainers.blackbox.files import MODEL
from .trainers.blackbox.oracle.bill import LOST, counts_in

# from the least that must cross the wall to the most: what is needed beside words and pictures
ACCESS = ["words", "contexts", "image tokens", "features", "weights"]
KNOWN = ["trainer", "dataset", "backbone", "classes", "shots", "split"]  # the same in all seeds
SEED = re.compile(r"seed\d+")  # the folder of one
COUNTS = ["training", "lost", "pictures", "evaluation", "batch", "seconds"]  # NaN: not known


def read_result(folder: str | Path) -> dict[str, Any]:
    """A finished training run, or else a finished evaluation; a BlackBoxError without either.

    What an unfinished run saw on val is no result, nor is an evaluation of it in its own folder.

    Returns:
        `KNOWN`, "?" or -1 where it is not; `accuracy` in per cent; `access`, the most demanding of
        what the method needs; `COUNTS`, of which `batch` is the queries of a batch of test images;
        `lost_much`, more than a tenth; `reliability`; `seed`, the name that the folder should have.
    """
    folder = Path(folder)
    path = folder / record.NAME
    sections = record.read(path)
    told = sections.get(record.END_OF_TRAINING)
    if told is None and not (folder / MODEL).is_dir():
        told = sections.get(record.EVALUATION)
    if told is None:
        raise BlackBoxError(f"{folder} has no result in {record.NAME}: it is not finished.")
    try:
        row: dict[str, Any] = {name: printable(str(told.get(name, "?"))) for name in KNOWN}
        row |= {"folder": folder, "shots": int(told.get("shots", -1)), "lost_much": False}
        row |= {**dict.fromkeys(COUNTS, nan), "seconds": float(told.get("seconds") or nan)}
        row["accuracy"] = float(told["accuracy"])
        if not 0 <= row["accuracy"] <= 100:
            raise ValueError(f"the accuracy is {row['accuracy']}")
        if row["dataset"] == "ImageFolder":  # whose name does not tell what it is
            row["dataset"] += f" ({printable(str(told.get('root', '?')))})"
        needs = {str(need).replace("logits", "words").replace("_", " ") for need in told["access"]}
        known = needs <= {*ACCESS}
        row["access"] = max(needs, key=ACCESS.index, default="words") if known else "?"
        row["reliability"] = list(told.get("reliability", ()))
        seed, bill = int(told.get("seed", -1)), told.get("queries")  # a white-box run has none
        row["seed"] = f"seed{seed}" if seed >= 0 else folder.name
        if bill is not None:
            training, test = counts_in(bill, "training"), counts_in(bill, "test")
            row["training"], row["pictures"] = training.values()
            row["lost"] = counts_in(bill, LOST)["queries"] if LOST in bill else 0
            row["lost_much"] = record.lost_much(bill)
            row["evaluation"] = counts_in(bill, "evaluation")["queries"]
            row["batch"] = test["queries"] / told["batches"] if told.get("batches") else nan
    except (BlackBoxError, KeyError, TypeError, ValueError) as e:
        raise BlackBoxError(f"{path} is damaged ({first_line(e)}).") from e
    return row


def with_names(row: dict[str, Any], root: Path) -> dict[str, Any]:
    """With `path`, a group's below `root`, and `label`, the path without the data set's part.

    A folder that is named after another trainer, data set or number of shots is noted.
    """
    folder, names = row["folder"], {data.config: data.name for data in ROWS}
    dataset, group = row["dataset"].partition(" (")[0], folder.parent
    shots = re.findall(r"(?<!\d)(\d+)shots|shots_(\d+)", str(group))
    for what, told, named in (
        ("trainer", row["trainer"], ours().keys() & group.parts),
        ("data set", dataset, {names[part] for part in names.keys() & group.parts}),
        ("number of shots", row["shots"], {int(a or b) for a, b in shots}),
    ):
        if named and told not in {*named, "?", -1}:
            others = ", ".join(sorted(map(str, named)))
            note(f"{group} names the {what} {others}, and its run is of {told}, which counts.")
    path = (group if SEED.fullmatch(folder.name) and folder != root else folder).relative_to(root)
    label = "/".join(part for part in path.parts if names.get(part, part) != dataset)
    return row | {"path": printable(str(path)), "label": printable(label)}


def read(directory: str | Path) -> pd.DataFrame:
    """The runs below a directory, seeds once; BlackBoxError where there are none.

    Groups that cannot be averaged are left out, as far as their runs tell. Their queries may
    differ: a budget can end a run where it stands. Evaluations that no training ended in have their
    own group; what is left out is noted.
    """
    rows = []
    for name, folders, files in sorted(os.walk(directory, onerror=lambda e: note(first_line(e)))):
        if {"log.txt", record.NAME} & {*folders, *files}:
            try:
                rows.append(with_names(read_result(name), Path(directory)))
            except BlackBoxError as e:
                note(f"{e} The run is left out.")
    if not rows:
        raise BlackBoxError(f"There is no finished run, with a {record.NAME}, below {directory}.")
    runs = pd.DataFrame(rows)
    runs["access"] = pd.Categorical(runs.access, [*ACCESS, "?"], ordered=True)
    # of copies, and folders made with another's seed, those that are named so are kept
    runs["renamed"] = [row.folder.name != row.seed for row in runs.itertuples()]
    runs = runs.sort_values("renamed", kind="stable")
    for (_, seed), same in runs.groupby(["path", "seed"], sort=False):
        first, *others = same.folder
        if first.name != seed and SEED.fullmatch(first.name):
            note(f"{first} is of seed {seed[4:]}, and counts as that.")
        for other in others:
            note(f"{other} is of seed {seed[4:]}, as {first} is, and is left out.")
    runs = runs.drop_duplicates(["path", "seed"]).sort_index()
    for path, group in runs.groupby("path", sort=False):
        for name in KNOWN:
            values = sorted({*map(str, group[name])} - {"?", "-1"})
            if len(values) > 1:
                told = f"{name} ({', '.join(values)})"
                note(f"{path} holds runs that differ in {told}, and is left out.")
                runs = runs[runs.path != path]
    return runs
