"""Tables of the runs below a folder, a row a group of seeds:

python -m dassl_blackbox.results output
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from math import nan
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pandas as pd
import tabulate

from .console import note, parser_of, tool
from .datasets.table import ROWS
from .trainers.blackbox import record
from .trainers.blackbox.config import ours
from .trainers.blackbox.errors import BlackBoxError, first_line, printable
from .trainers.blackbox.files import MODEL
from .trainers.blackbox.oracle.bill import counts_in

# from the least that must cross the wall to the most: what is needed beside words and pictures
ACCESS = ["words", "contexts", "image tokens", "features", "weights"]
KNOWN = ["trainer", "dataset", "backbone", "classes", "shots", "split"]  # the same in all seeds
SEED = re.compile(r"seed\d+")  # the folder of one
COUNTS = ["training", "lost", "pictures", "evaluation", "batch", "seconds"]  # NaN: not known
ZERO_SHOT, HALVES = "ZeroshotOracle", ("train_base", "test_new")
HEADERS = {
    "path": "run",
    "trainer": "method",
    "access": "access",
    "seeds": "seeds",
    "cell": "test accuracy %",
    "training": "training queries",
    "lost": "of these lost",
    "pictures": "pictures sent",
    "evaluation": "evaluation queries",
    "batch": "queries a test batch",
    "seconds": "seconds",
}
SHOWN = ["access", "test accuracy %", "training queries", "pictures sent", "queries a test batch"]
FOLD, RUN, HEADER = 18, 13, 8  # characters of a cell's lines: the narrow table has about 80
FORMULA = tuple("=+-@＝＋－＠")  # what makes a spreadsheet compute a cell
LOST = "! : more than a tenth of a run's training queries were lost when its process was ended"
# ViT-B/16, 16 shots, 5,000 queries, per cent. Zero-shot is as others published it; the methods'
# figures are read off the radar chart in ZIP's repository (about ± 0.5).
PUBLISHED = pd.DataFrame(
    [
        [92.9, 89.2, 71.3, 86.1, 24.7, 62.5, 44.4, 17.9, 47.6, None, None, 66.8, 66.7],
        [91.6, 85.6, 64.5, 83.0, 21.3, 62.4, 42.3, 19.9, 50.6, 53.7, 18.2, 63.1, 63.5],
        [91.8, 86.8, 63.0, 83.5, 21.1, 62.2, 42.7, 27.5, 44.1, 55.1, 25.9, 63.7, 65.0],
        [88.0, 89.4, 66.2, 84.2, 23.6, 53.1, 40.1, 29.8, 52.4, 56.0, 16.5, 64.4, 55.2],
        [93.1, 92.3, 69.8, 86.4, 26.7, 63.2, 47.7, 47.8, 64.0, 66.2, 28.5, 69.5, 65.6],
    ],
    index=["zero-shot", "BAR", "BlackVIP", "BPT-VLM", "ZIP"],
    columns=[
        *("Caltech101", "OxfordPets", "OxfordFlowers", "Food101", "FGVCAircraft", "SUN397"),
        *("DescribableTextures", "Svhn", "EuroSAT", "Resisc45", "CLEVR", "UCF101", "ImageNet"),
    ],
)


def read_result(folder: str | Path) -> dict[str, Any]:
    """A finished training run, or else a finished evaluation; a BlackBoxError without either.
    What an unfinished run saw on val is no result, nor is an evaluation of it in its own folder.

    Returns:
        `KNOWN`, "?" or -1 where it is not; `accuracy` in per cent; `access`, the most that the
        method needs; `COUNTS`; `lost_much`, more than a tenth; `reliability`; `seed`, the name that
        the folder should have.
    """
    folder = Path(folder)
    sections = record.read(folder / record.NAME)
    evaluation = None if (folder / MODEL).is_dir() else sections.get(record.EVALUATION)
    told = sections.get(record.END_OF_TRAINING, evaluation)
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
            row["lost"] = counts_in(bill, "lost")["queries"] if "lost" in bill else 0
            row["lost_much"] = record.lost_much(bill)
            row["evaluation"] = counts_in(bill, "evaluation")["queries"]
            row["batch"] = test["queries"] / told["batches"] if told.get("batches") else nan
    except (BlackBoxError, KeyError, TypeError, ValueError) as e:
        raise BlackBoxError(f"{folder}/{record.NAME} is damaged ({first_line(e)}).") from e
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
    """The runs below a directory, seeds once; BlackBoxError where there are none. What is left out
    is noted, as groups whose runs differ. Queries may: a budget can end a run where it stands.
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
    seeds = runs[runs.trainer != ZERO_SHOT].groupby("path", sort=False).size()  # it draws none
    for path, count in seeds[seeds < seeds.max()].items():
        note(f"{path} has {count} of {seeds.max()} seeds, and its mean is of these.")
    return runs


def grouped(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a group of seeds: what all are, means, accuracy's standard `error`, and its `cell`."""
    groups = runs.groupby("path", sort=False)
    found = groups.first().assign(path=lambda found: found.index)
    found[COUNTS] = groups[COUNTS].agg(lambda counts: counts.mean(skipna=False))
    found["accuracy"], found["error"] = groups.accuracy.mean(), groups.accuracy.sem()
    found["folders"], found["seeds"] = groups.folder.agg(list), groups.size()
    found["reliability"], found["cell"] = groups.reliability.sum(), groups.apply(cell)
    return found


def cell(runs: pd.DataFrame) -> str:
    """The mean, its error where there are several seeds, and marks: of val, of lost queries."""
    spread = f" ± {runs.accuracy.sem():.1f}" if len(runs) > 1 else ""
    marks = " (val)" * bool((runs.split == "val").any()) + " !" * bool(runs.lost_much.any())
    return f"{runs.accuracy.mean():.1f}{spread}{marks}"


def placed(groups: pd.DataFrame, place: list[str]) -> pd.DataFrame:
    """One group for each place in a table or a plot; for further ones a note."""
    firsts = groups.groupby(place, observed=True).path.transform("first")
    for path, first in zip(groups.path, firsts, strict=True):
        if path != first:
            note(f"{path} has the place of {first}, and is left out.")
    return groups[groups.path == firsts]


def table(runs: pd.DataFrame, wide: bool = False) -> pd.DataFrame:
    """A row a group; what asks for least comes first within a data set. The narrow one has runs
    without the folders that all of them are in, and that of the method.
    """
    groups = grouped(runs).sort_values(["dataset", "access"], kind="stable")
    for name in COUNTS:
        form = "{:.3g}" if name == "batch" else "{:,.0f}"
        groups[name] = groups[name].map(form.format, na_action="ignore").astype(object).fillna("–")
    groups = groups[[*HEADERS]].rename(columns=HEADERS).reset_index(drop=True)
    if wide:
        return groups
    shared, paths = below_shared(groups.run)
    groups["run"] = [
        "/".join(part for part in Path(path).parts if part != method) or path
        for path, method in zip(paths, groups.method, strict=True)
    ]
    narrow = groups[["method", "run", *SHOWN]]
    return narrow.rename(columns={"run": f"run in {shared}/"}) if shared else narrow


def below_shared(paths: Iterable[str]) -> tuple[str, list[str]]:
    """The folder that all paths are in, and the paths below it."""
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return shared, [os.path.relpath(path, shared or ".") for path in paths]


def across(runs: pd.DataFrame, published: bool = False) -> pd.DataFrame:
    """The papers' table; a mean is given where no data set is missing."""
    groups = placed(grouped(runs), ["label", "dataset"])
    named = sorted({*groups.dataset, *(PUBLISHED.columns if published else ())})
    names = sorted(named, key=lambda name: [*(row.name for row in ROWS), name].index(name))
    wide = groups.pivot(index="label", columns="dataset", values=["cell", "accuracy"])
    wide = wide.reindex(groups.label.unique())
    cells, accuracies = (wide[value].reindex(columns=names) for value in ("cell", "accuracy"))
    if published:
        figures = PUBLISHED.add_suffix(" (published, ViT-B/16)", axis=0).reindex(columns=names)
        accuracies = pd.concat([accuracies, figures])
        cells = pd.concat([cells, figures.map("{:.1f}".format, na_action="ignore")])
    means = accuracies.mean(axis=1, skipna=False)
    cells["mean"] = means.map("{:.1f}".format, na_action="ignore")
    return cells.astype(object).fillna("–").rename_axis("method").reset_index()


def base2new(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on base and on new classes, and their harmonic mean."""
    runs, rows = runs.assign(half=runs.path.str.split("/").str[0]), []
    runs = runs[runs.half.isin(HALVES)]
    runs["label"] = runs.label.str.replace(r"^\w+/", "", regex=True)
    kept = runs if runs.empty else placed(grouped(runs), ["half", "label", "dataset"])
    for label, of_method in runs[runs.path.isin(kept.path)].groupby("label", sort=False):
        means = []
        for name, found in of_method.groupby("dataset", sort=False):
            paired = found.groupby("seed").half.transform("nunique") == 2
            if lone := ", ".join(sorted({*found.seed[~paired]})):
                note(f"{label} has {lone} of one half alone on {name}, which is left out.")
            if paired.any():
                halves = [found[paired & (found.half == half)] for half in HALVES]
                means.append([half.accuracy.mean() for half in halves])
                rows.append([label, name, *map(cell, halves), f"{harmonic_mean(means[-1]):.1f}"])
        if len(means) > 1:
            both = pd.DataFrame(means).mean()  # whose harmonic mean is CoCoOp's over data sets
            rows.append([label, "mean", *both.map("{:.1f}".format), f"{harmonic_mean(both):.1f}"])
    return pd.DataFrame(rows, columns=["method", "data set", "base", "new", "H"])


def show(cells: pd.DataFrame, form: str = "simple", fold: bool = True) -> None:
    """Print a table as CSV, or in a format of tabulate, and what its marks mean."""
    cells = cells.astype(str).map(printable)
    if form == "csv":
        cells = cells.map(lambda cell: "'" * cell.startswith(FORMULA) + cell)
        cells.to_csv(sys.stdout, index=False, lineterminator="\n")
        return
    if fold and form == "simple":
        # a header has the width of its column: the first two name runs, the others hold figures
        widths = [FOLD, RUN, *[HEADER] * len(cells.columns)]
        for i, name in enumerate(cells):
            cells[name] = cells[name].map(partial(folded, width=RUN if i == 1 else FOLD))
        cells.columns = pd.Index(map(folded, cells.columns, widths))
    tabulate.MIN_PADDING = 0  # beside the gap between columns
    print(cells.to_markdown(index=False, tablefmt=form, disable_numparse=True))
    print(
        "± is the standard error over seeds; a query is one candidate scored on one batch\n"
        "of at most 128 images; – : none is counted or known, or no run"
    )


def folded(cell: str, width: int) -> str:
    """Lines of at most `width`, which end with a folder, else with a word, if they can."""
    some = f".{{0,{width - 1}}}"
    return "\n".join(map(str.rstrip, re.findall(f"{some}.$|{some}/|{some}[_ -]|{some}.", cell)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of("-m dassl_blackbox.results", __doc__)
    add, shape = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("directory", help="folder that holds <run>/seed<k>/ at any depth")
    shape("--wide", action="store_true", help="all columns, which csv always has")
    shape("--across", action="store_true", help="data sets across, methods down")
    shape("--base2new", action="store_true", help="base, new, and their harmonic mean")
    add("--published", action="store_true", help="with --across: published rows (ViT-B/16)")
    formats = ["csv", *tabulate.tabulate_formats]
    told = "csv, or a table format of tabulate, such as github"
    add("--format", default="simple", choices=formats, metavar="FORMAT", help=told)
    args = parser.parse_args(argv)
    if args.published and not args.across:
        parser.error("--published adds rows to the table of --across")
    runs, csv = read(args.directory), args.format == "csv"
    if args.across:
        cells = across(runs, args.published)
    else:
        cells = base2new(runs) if args.base2new else table(runs, args.wide or csv)
    if cells.empty:
        where = "train_base and test_new, the folders of scripts/base2new_train.sh and _test.sh"
        raise BlackBoxError(f"{args.directory} has no experiment in both {where}.")
    show(cells, args.format, fold=not (args.wide or args.across))
    if runs.lost_much.any():
        (note if csv else print)(LOST)


if __name__ == "__main__":
    sys.exit(tool(main))
