"""Plots of the runs below a folder:

python -m dassl_blackbox.plots shots output/letters --out shots.png

`shots` is test accuracy against shots; `queries` that on val against queries (ORACLE.VAL_EVERY);
`gain` that over zero-shot; `budgets` on test against the queries of training; `reliability` against
what the probabilities promise. A line's style tells what its method asks of the model beside words
and pictures; bars are standard errors over seeds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from .console import note, parser_of, tool
from .results import ACCESS, ZERO_SHOT, below_shared, grouped, placed, read
from .trainers.blackbox.errors import BlackBoxError
from .trainers.blackbox.files import read_text
from .trainers.blackbox.record import BINS

KIND = ["dataset", "backbone", "classes"]  # what accuracies are compared on
LINE = ["label", "access"]
STYLES = dict(zip(ACCESS, ("-", "--", "-.", ":", (0, (9, 2))), strict=True))
QUERIES, TEST = "training queries (one candidate on at most 128 images)", "test accuracy, %"
Lines = tuple[pd.DataFrame, dict[str, float]]  # points of lines; accuracies of levels


def zero_shot(groups: pd.DataFrame) -> pd.DataFrame:
    """Zero-shot groups, one of a kind; a further one that differs, by its template, is noted."""
    return placed(groups[groups.trainer == ZERO_SHOT].drop_duplicates([*KIND, "accuracy"]), KIND)


def shots(groups: pd.DataFrame) -> Lines:
    """A line is the mean over the data sets that have all its shots. A level is zero-shot's over
    these, of a backbone and of all, the base or the new classes.
    """
    trained = groups[groups.trainer != ZERO_SHOT].rename(columns={"shots": "x"})
    trained["label"] = trained.label.str.replace(r"_?\d+shots|shots_\d+/?", "", regex=True)
    for path in trained.path[trained.x < 0]:
        note(f"{path} does not tell its number of shots, and is left out.")
    trained = placed(trained[trained.x > 0], [*LINE, *KIND, "x"])
    whole = trained.groupby([*LINE, *KIND], observed=True).x.transform("size")
    trained = trained[whole == trained.groupby(LINE, observed=True).x.transform("nunique")]
    points = trained.groupby([*LINE, "x"], sort=False, observed=True)
    found = points[["accuracy", "error"]].mean()
    found["error"] = found.error.where(points.size() == 1)  # else it is not one over seeds
    zero = zero_shot(groups).merge(trained[KIND].drop_duplicates())
    levels = zero.groupby(["backbone", "classes"]).accuracy.mean()
    names = [f"zero-shot ({model}, {of} classes)" for model, of in levels.index]
    names = [name.replace(", all classes", "") for name in names]
    return found.reset_index(), dict(zip(names, levels, strict=True))


def budgets(groups: pd.DataFrame) -> Lines:
    """A line joins one method's runs, whose folders differ in `<n>queries` alone.

    Zero-shot, and what counts no queries, is a level.
    """
    paths = groups.path.str.replace(r"_?\d+queries", "", regex=True)
    groups = groups.assign(label=below_shared(paths)[1], x=groups.training)
    paid = groups.x > 0
    return groups[paid], groups[~paid].groupby("label", sort=False).accuracy.mean().to_dict()


def queries(groups: pd.DataFrame) -> Lines:
    """The mean over seeds, at what all of them looked at."""
    curves = []
    for group in groups.itertuples():
        try:
            seeds = pd.concat(map(read_curve, group.folders), axis=1, join="inner")
        except BlackBoxError as e:
            note(f"{e} The curve of {group.path} is left out.")
            continue
        points = {"x": seeds.index, "accuracy": seeds.mean(axis=1), "error": seeds.sem(axis=1)}
        curves.append(pd.DataFrame(points).assign(label=group.path, access=group.access))
    return pd.concat(curves) if curves else pd.DataFrame(), {}


def read_curve(folder: Path) -> pd.Series:
    """Accuracy on val by queries of one run; a later line wins, and there may be no file."""
    path = folder / "val_curve.csv"
    if not os.path.lexists(path):
        return pd.Series(dtype=float)
    text, names = read_text(path, ""), ["queries", "pictures", "accuracy"]
    with suppress(ValueError):
        points = pd.read_csv(StringIO(text), names=names, dtype=float, index_col="queries").accuracy
        if points.between(0, 100).all() and (points.index > 0).all() and text.endswith("\n"):
            return points.groupby(level=0).last()
    raise BlackBoxError(f"{path} is damaged: it is cut off, or has what is no accuracy.")


def reliability(groups: pd.DataFrame) -> Lines:
    """A point is a bin of confidence, over all seeds; the diagonal is what is promised."""
    lines = []
    for group in groups.itertuples():
        bins = pd.DataFrame(group.reliability, columns=["images", "x", "accuracy"])
        place = (BINS * bins.x).astype(int).rename("bin")
        sums = bins[["x", "accuracy"]].mul(100 * bins.images, axis=0).groupby(place).sum()
        points = sums.div(bins.images.groupby(place).sum(), axis=0)
        lines.append(points.assign(error=0.0, label=group.path, access=group.access))
    return pd.concat(lines), {}


def gain(groups: pd.DataFrame) -> Lines:
    """Accuracy above zero-shot on the same classes by the same backbone: bars, not lines."""
    zero = zero_shot(groups)[[*KIND, "accuracy"]].rename(columns={"accuracy": "zero"})
    found = groups[groups.trainer != ZERO_SHOT].reset_index(drop=True).merge(zero, on=KIND)
    return placed(found.assign(gain=found.accuracy - found.zero), ["label", "dataset"]), {}


KINDS = {  # what is drawn, and its axes
    "shots": (shots, "shots a class", TEST),
    "queries": (queries, QUERIES, "validation accuracy, %"),
    "budgets": (budgets, QUERIES, TEST),
    "gain": (gain, "", "gain over zero-shot, points"),
    "reliability": (reliability, "mean confidence, %", TEST),
}


def plot(kind: str, groups: pd.DataFrame, path: str | Path, title: str) -> bool:
    """Write a plot, unless there is nothing to draw; its format is the name's ending, or PNG."""
    from matplotlib import rc_context  # which need not be installed
    from matplotlib.figure import Figure

    find, xlabel, ylabel = KINDS[kind]
    lines, levels = find(groups)
    if lines.empty:
        return False
    with rc_context({"text.parse_math": False}):  # a folder may have dollars in its name
        figure = Figure(figsize=(10, 5))
        axes = figure.subplots()
        if kind == "gain":
            bars = lines.pivot(index="dataset", columns="label", values=["gain", "error"]).fillna(0)
            bars.gain.plot.bar(ax=axes, yerr=bars.error, width=0.8, rot=30, colormap="tab20")
            axes.axhline(0, color="black", linewidth=0.8)
        else:
            for (label, access), points in lines.groupby(LINE, sort=False, observed=True):
                points = points.sort_values("x")[["x", "accuracy", "error"]].fillna(0)
                style: Any = {"linestyle": STYLES.get(access, "-"), "marker": ".", "capsize": 2}
                axes.errorbar(*points.T.to_numpy(), label=f"{label} ({access})", **style)
        for (name, accuracy), dashes in zip(levels.items(), cycle((":", "--", "-."))):
            axes.axhline(accuracy, color="black", linewidth=1, linestyle=dashes, label=name)
        if kind == "reliability":
            axes.axline((0, 0), (100, 100), color="black", linewidth=0.8, linestyle=":")
        elif kind != "gain" and (kind == "shots" or lines.x.max() > 100 * lines.x.min()):
            axes.set_xscale("log")  # for shots, and for more than two decades
            axes.xaxis.set_major_formatter("{x:,.0f}")  # the own ones are formulas, not parsed here
        if kind == "shots":
            axes.set_xticks(lines.x.unique())
            axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=4)
        ending = Path(path).suffix[1:].lower() or "png"
        try:  # what does not fit, such as the legend, makes the picture larger
            figure.savefig(path, dpi=120, format=ending, bbox_inches="tight")
        except ValueError as e:
            raise BlackBoxError(f"{path} cannot be drawn ({e}). Choose another ending.") from e
    return True


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of("-m dassl_blackbox.plots", __doc__)
    parser.add_argument("kind", choices=KINDS, help="as above")
    parser.add_argument("directory", help="folder that holds <run>/seed<k>/ at any depth")
    parser.add_argument("--out", required=True, help="the file to write; its ending is the format")
    parser.add_argument("--title", help="above the plot; without it, what was run")
    args = parser.parse_args(argv)
    runs = read(args.directory)
    if args.kind != "queries":  # whose curves are of val
        for path in runs.path[runs.split == "val"].unique():
            note(f"{path} was evaluated on val, and is left out.")
        runs = runs[runs.split != "val"]
    ran = "; ".join(", ".join(runs[name].unique()[:3]) for name in ("dataset", "backbone"))
    title = ran if args.title is None else args.title
    if runs.empty or not plot(args.kind, grouped(runs), args.out, title):
        takes = "shots takes trained methods, queries ORACLE.VAL_EVERY, gain a zero-shot run"
        raise BlackBoxError(f"Nothing to draw below {args.directory}: {takes}.")
    print(f"Plot written to {args.out}")


if __name__ == "__main__":
    sys.exit(tool(main))
