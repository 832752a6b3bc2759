"""Plots of the runs below a folder:

python -m dassl_blackbox.plots shots output/letters --out shots.png
python -m dassl_blackbox.plots queries output/letters --out queries.png
python -m dassl_blackbox.plots gain output --out gain.png
python -m dassl_blackbox.plots budgets output/compare/digits --out budgets.png

That is test accuracy against shots; on val against queries (ORACLE.VAL_EVERY); the gain over
zero-shot; on test against the queries of training.
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle, takewhile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from .console import note, parser_of, tool
from .results import ZERO_SHOT, Group, note_fewer_seeds, put, some_groups
from .trainers.blackbox.errors import BlackBoxError, first_line
from .trainers.blackbox.files import read_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUERIES = "training queries (one candidate on at most 128 images)"
DASHES = ":", "--", "-."  # of levels
DECADES = 100  # a ratio of queries above which their axis is logarithmic


class Kind(NamedTuple):
    """What accuracies are compared on."""

    dataset: str
    backbone: str
    classes: str  # all, base, or new


def kind(group: Group) -> Kind:
    run = group.known
    return Kind(run.dataset, run.backbone, run.classes)


def read_curve(path: Path) -> dict[int, float]:
    """{queries: accuracy on val} of one run; a later line wins.

    Raises:
        BlackBoxError: the file cannot be read, or has a line that is no such pair.
    """
    points, cure = {}, "Its curve is left out."
    for line in read_text(path, cure).splitlines(keepends=True) or [""]:
        try:
            queries, _, accuracy = next(csv.reader([line]))
            points[int(queries)] = float(accuracy)
            if not (line.endswith("\n") and int(queries) > 0 and 0 <= float(accuracy) <= 100):
                raise ValueError("out of range, or cut off")
        except (ValueError, StopIteration, csv.Error) as e:
            raise BlackBoxError(f"{path} is damaged: {line[:60]!r} is no point. {cure}") from e
    return points


def curve(folders: Iterable[str | Path]) -> list[tuple[int, float]]:
    """Mean validation accuracy over seeds, [(queries, accuracy)], at what all of them looked at.

    Empty where one of them has no curve that can be read, which is noted.
    """
    seeds = []
    for folder in folders:
        path = Path(folder) / "val_curve.csv"
        if not os.path.lexists(path):
            return []
        try:
            seeds.append(read_curve(path))
        except BlackBoxError as e:
            note(str(e))
            return []
    return [
        (queries, fmean(seed[queries] for seed in seeds))
        for queries in sorted(set.intersection(*map(set, seeds)))
    ]


def rendered(draw: Callable[[Axes], None], kind: str, labels: Mapping[str, str]) -> bytes:
    """One figure in a format of matplotlib's: `draw(axes)`, then labels, and a legend at the right.

    Raises:
        BlackBoxError: matplotlib is missing.
        ValueError: it does not know the format.
    """
    try:
        from matplotlib import rc_context, rcParams
        from matplotlib.figure import Figure
        from matplotlib.rcsetup import cycler
    except (ImportError, ValueError) as e:  # the second is of its own settings
        raise BlackBoxError(
            f"Plots need matplotlib ({first_line(e)}). Install it, and try again."
        ) from e

    picture = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # a folder may have dollars in its name
        figure = Figure(figsize=(9, 5))
        axes = figure.subplots()
        colours = rcParams["axes.prop_cycle"]  # ten solid lines, then the same dashed, then dotted
        axes.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * colours)
        draw(axes)
        axes.set(**labels)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
        figure.savefig(picture, dpi=120, format=kind)
    return picture.getvalue()


def save(path: str | Path, draw: Callable[[Axes], None], **labels: str) -> None:
    """Write a figure; its format is the ending of the name, or PNG.

    Raises:
        BlackBoxError: matplotlib is missing or does not know the ending, or the file cannot be
            written.
    """
    try:
        Path(path).write_bytes(rendered(draw, Path(path).suffix[1:].lower() or "png", labels))
    except ValueError as e:  # of a format
        raise BlackBoxError(f"{path} cannot be drawn ({e}). Choose another ending.") from e
    except OSError as e:
        raise BlackBoxError(
            f"{path} cannot be written ({e.strerror or e}). Give --out a file in a folder that is "
            f"there and can be written to."
        ) from e


def logarithmic(axes: Axes) -> None:
    """The axis of queries: logarithmic, from 1."""
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    # those of matplotlib are formulas, which are not parsed here
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")


def queries(folders: Mapping[str, Iterable[str | Path]], path: str | Path, title: str) -> int:
    """Curves of `{label: folders of its seeds}`, of those that have one; returns how many.

    Where their queries span more than two decades, the axis is logarithmic, from 1.
    """
    curves = {label: points for label, seeds in folders.items() if (points := curve(seeds))}
    asked = [queries for points in curves.values() for queries, _ in points]

    def draw(axes: Axes) -> None:
        for label, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=label, marker=".")
        if max(asked) > DECADES * min(asked):
            logarithmic(axes)

    if curves:
        save(path, draw, xlabel=QUERIES, ylabel="validation accuracy, %", title=title)
    return len(curves)


def shots(found: list[Group], path: str | Path, title: str) -> int:
    """Test accuracy against shots; one label has runs of several `<n>shots`.

    Returns the number of lines. Where there are several data sets, a line is the mean of those that
    have all its numbers of shots. Zero-shot is a level: of a backbone and of all, the base or the
    new classes, and a mean over the data sets that the lines are of.
    """
    lines: dict[str, dict[int, dict[Kind, Group]]] = defaultdict(lambda: defaultdict(dict))
    for group in found:
        count = group.known.shots
        if group.known.trainer == ZERO_SHOT:
            continue
        if count is None:
            note(f"{group.path} does not tell its number of shots, and is left out.")
            continue
        label = re.sub(r"_?\d+shots|shots_\d+/?", "", group.label)
        put(lines[label][count], kind(group), group)
    levels = levels_of(found, set().union(*(shared_kinds(points) for points in lines.values())))

    def draw(axes: Axes) -> None:
        for label, points in lines.items():
            x, means, errors = line_of(points)
            axes.errorbar(x, means, errors, label=label, marker="o", capsize=3)
        for (backbone, classes), level in levels.items():
            of = backbone if classes == "all" else f"{backbone}, {classes} classes"
            name = f"zero-shot ({of})" if len(levels) > 1 else "zero-shot"
            axes.axhline(level, color="black", linestyle=next(dashes), label=name)
        axes.set_xscale("log", base=2)
        ticks = sorted({count for points in lines.values() for count in points})
        axes.set_xticks(ticks, list(map(str, ticks)))

    dashes = cycle(DASHES)
    if lines:
        save(path, draw, xlabel="shots a class", ylabel="test accuracy, %", title=title)
    return len(lines)


def on_test(found: list[Group]) -> list[Group]:
    """Without what was evaluated on val, which is noted."""
    for group in found:
        if group.known.split == "val":
            note(f"{group.path} was evaluated on val, and is left out.")
    return [group for group in found if group.known.split != "val"]


def zero_shot(found: list[Group]) -> dict[Kind, float]:
    """Zero-shot accuracies; of several of a kind that differ the first, which is noted."""
    first: dict[Kind, Group] = {}
    for group in found:
        if group.known.trainer == ZERO_SHOT:
            taken = first.setdefault(kind(group), group)
            if taken.mean() != group.mean():  # by another template, perhaps
                note(f"{group.path} has not the accuracy of {taken.path}, and is left out.")
    return {of: group.mean() for of, group in first.items()}


def levels_of(found: list[Group], drawn: set[Kind]) -> dict[tuple[str, str], float]:
    """Zero-shot accuracies by backbone and classes, means over the data sets that are drawn."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for of, accuracy in zero_shot(found).items():
        if of in drawn:
            values[of.backbone, of.classes].append(accuracy)
    return {level: fmean(accuracies) for level, accuracies in values.items()}


def shared_kinds(points: Mapping[int, Mapping[Kind, Group]]) -> set[Kind]:
    """What all numbers of shots have."""
    return set.intersection(*map(set, points.values()))


def line_of(
    points: Mapping[int, Mapping[Kind, Group]],
) -> tuple[list[int], list[float], list[float]]:
    """Shots, mean accuracies and errors of one line, from `{shots: {kind: its seeds}}`.

    The errors are those of one data set's seeds, and 0 for a mean over several data sets.
    """
    shared = sorted(shared_kinds(points))
    x = sorted(points) if shared else []
    means = [fmean(points[count][name].mean() for name in shared) for count in x]
    if len(shared) > 1:
        return x, means, [0.0] * len(x)
    return x, means, [points[count][shared[0]].mean_and_error()[1] or 0.0 for count in x]


def gain(found: list[Group], path: str | Path, title: str) -> int:
    """Bars of accuracy above zero-shot on the same classes by the same backbone: how many."""
    zero = zero_shot(found)
    bars: dict[str, dict[str, Group]] = {}
    for group in found:
        if kind(group) in zero and group.known.trainer != ZERO_SHOT:
            put(bars.setdefault(group.label, {}), group.dataset, group)
    names = list(dict.fromkeys(name for heights in bars.values() for name in heights))

    def draw(axes: Axes) -> None:
        width = 0.8 / max(1, len(bars))
        for i, (label, heights) in enumerate(bars.items()):
            axes.bar(
                [names.index(name) + (i + 0.5) * width - 0.4 for name in heights],
                [group.mean() - zero[kind(group)] for group in heights.values()],
                width,
                label=label,
            )
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.axhline(0, color="black", linewidth=0.8)

    if bars:
        save(path, draw, ylabel="gain over zero-shot, points", title=title)
    return sum(map(len, bars.values()))


def budgets(found: list[Group], path: str | Path, title: str) -> int:
    """Test accuracy against the queries of training; returns the number of lines and levels.

    A line joins one method's runs with other budgets, whose folders differ in `<n>queries` alone.
    Zero-shot, and what counts no queries, is a level.
    """
    lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    levels = {}
    for label, group in zip(short([str(group.path) for group in found]), found, strict=True):
        mean, error = group.mean_and_error()
        counts = [run.counts["training"]["queries"] for run in group.runs if run.counts]
        if 0 < len(counts) < len(group.runs):
            note(f"{group.path} has runs without a bill, and is left out.")
        elif counts and all(counts):
            lines[label].append((fmean(counts), mean, error or 0.0))
        else:
            levels[label] = mean

    def draw(axes: Axes) -> None:
        for label, points in lines.items():
            x, means, errors = zip(*sorted(points), strict=True)
            axes.errorbar(x, means, errors, label=label, marker="o", markersize=4, capsize=2)
        for label, mean in levels.items():
            axes.axhline(mean, color="black", linewidth=1, linestyle=next(dashes), label=label)
        logarithmic(axes)
        axes.grid(alpha=0.3)

    dashes = cycle(DASHES)
    if lines:
        save(path, draw, xlabel=QUERIES, ylabel="test accuracy, %", title=title)
    return len(lines) + len(levels)


def short(paths: list[str]) -> list[str]:
    """Paths without their budgets, and without the folders that all of them begin with."""
    parts = [re.sub(r"_?\d+queries", "", path).strip("/").split("/") for path in paths]
    levels = list(zip(*(p[:-1] for p in parts), strict=False))
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    return ["/".join(p[shared:]) for p in parts]


def main() -> None:
    parser = parser_of("-m dassl_blackbox.plots", __doc__)
    parser.add_argument("kind", choices=["shots", "queries", "gain", "budgets"], help="as above")
    parser.add_argument("directory", help="folder that holds <run>/seed<k>/ at any depth")
    parser.add_argument("--out", required=True, help="the file to write; its ending is the format")
    parser.add_argument("--title", default="", help="above the plot")
    args = parser.parse_args()
    found = some_groups(args.directory)
    if Path(args.out).is_dir():
        raise SystemExit(f"error: {args.out} is a folder. Give --out the name of a file.")
    note_fewer_seeds(found)
    if args.kind == "queries":  # whose curves are of val
        drawn = queries(
            {str(group.path): [run.folder for run in group.runs] for group in found},
            args.out,
            args.title,
        )
    else:
        kinds = {"shots": shots, "gain": gain, "budgets": budgets}
        drawn = kinds[args.kind](on_test(found), args.out, args.title)
    if not drawn:
        missing = {
            "queries": "no run has a val_curve.csv: train with ORACLE.VAL_EVERY",
            "gain": "no data set has both a zero-shot run and another",
            "shots": "no method was trained",
            "budgets": "no run has counted queries",
        }
        raise SystemExit(f"error: nothing to draw below {args.directory}: {missing[args.kind]}")
    print(f"Plot written to {args.out}")


if __name__ == "__main__":
    sys.exit(tool(main))
