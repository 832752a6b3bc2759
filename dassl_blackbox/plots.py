"""Plots of the runs below a folder, as PNG:

python -m dassl_blackbox.plots shots output/letters --out shots.png      # accuracy against shots, a line a method
python -m dassl_blackbox.plots queries output/letters --out queries.png  # validation accuracy against queries, of runs with ORACLE.VAL_EVERY
python -m dassl_blackbox.plots gain output --out gain.png                # gain over zero-shot, a bar a method and data set
"""

import argparse
import csv
import re
from pathlib import Path
from statistics import fmean

import matplotlib

from .results import groups

matplotlib.use("Agg")  # files alone: no screen is needed
import matplotlib.pyplot as plt  # noqa: E402

ZERO_SHOT, QUERIES = "ZeroshotOracle", "training queries (one candidate on at most 128 images)"


def curve(folders):
    """Mean validation accuracy over seeds at every number of queries that all of them looked at: [(queries, accuracy)]."""
    seeds = []
    for folder in folders:
        path = Path(folder) / "val_curve.csv"
        if not path.is_file():
            return []
        with open(path, encoding="utf-8") as f:
            seeds.append({int(queries): float(accuracy) for queries, _, accuracy in csv.reader(f)})
    return [
        (queries, sum(seed[queries] for seed in seeds) / len(seeds))
        for queries in sorted(set.intersection(*map(set, seeds)))
    ]


def save(path, draw, **labels):
    """One figure: `draw(axes)`, then titles and legend."""
    figure, axes = plt.subplots(figsize=(9, 5))
    axes.set_prop_cycle(
        plt.cycler(linestyle=["-", "--", ":"]) * plt.rcParams["axes.prop_cycle"]
    )  # ten colours, then dashed ones
    draw(axes)
    axes.set(**labels)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def queries(folders, path, title):
    """Curves of `{label: folders of its seeds}`, of those that have one; returns how many."""
    curves = {
        label: points
        for label, points in ((label, curve(seeds)) for label, seeds in folders.items())
        if points
    }

    def draw(axes):
        for label, points in curves.items():
            axes.plot(*zip(*points), label=label, marker=".")

    if curves:
        save(path, draw, xlabel=QUERIES, ylabel="validation accuracy, %", title=title)
    return len(curves)


def shots(found, path, title):
    """Test accuracy against shots; one label has runs of several `<n>shots`. Returns the number of lines.

    Where there are several data sets, a line is the mean of those that have all its numbers of shots. Zero-shot is a level.
    """
    lines, levels = {}, [group for group in found if group.runs[0].trainer == ZERO_SHOT]
    for group in found:
        if group not in levels:
            label = re.sub(r"_?\d+shots|shots_\d+/?", "", group.label)
            lines.setdefault(label, {}).setdefault(group.runs[0].shots, {})[group.dataset] = group

    def draw(axes):
        for label, points in lines.items():
            shared = set.intersection(*map(set, points.values()))
            x = sorted(points) if shared else []
            errors = [
                next(iter(points[k].values())).mean_and_error()[1] or 0 if len(shared) == 1 else 0
                for k in x
            ]  # of one data set's seeds
            axes.errorbar(
                x,
                [fmean(points[k][name].mean() for name in shared) for k in x],
                errors,
                label=label,
                marker="o",
                capsize=3,
            )
        if levels:
            axes.axhline(
                fmean(group.mean() for group in levels),
                color="black",
                linestyle=":",
                label="zero-shot",
            )
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in lines.values() for x in points})
        axes.set_xticks(ticks, ticks)

    if lines:
        save(path, draw, xlabel="shots a class", ylabel="test accuracy, %", title=title)
    return len(lines)


def gain(found, path, title):
    """Bars of accuracy above zero-shot on the same classes by the same backbone, by data set and method; returns the number of bars."""

    def kind(group):
        run = group.runs[0]
        return run.dataset, run.backbone, run.classes

    zero = {kind(group): group.mean() for group in found if group.runs[0].trainer == ZERO_SHOT}
    bars = {}
    for group in found:
        if kind(group) in zero and group.runs[0].trainer != ZERO_SHOT:
            bars.setdefault(group.label, {})[group.dataset] = group.mean() - zero[kind(group)]
    names = list(dict.fromkeys(name for heights in bars.values() for name in heights))

    def draw(axes):
        width = 0.8 / max(1, len(bars))
        for i, (label, heights) in enumerate(bars.items()):
            axes.bar(
                [names.index(name) + (i + 0.5) * width - 0.4 for name in heights],
                list(heights.values()),
                width,
                label=label,
            )
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.axhline(0, color="black", linewidth=0.8)

    if bars:
        save(path, draw, ylabel="gain over zero-shot, points", title=title)
    return sum(map(len, bars.values()))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["shots", "queries", "gain"])
    parser.add_argument("directory", help="folder that holds <run>/seed<k>/log.txt at any depth")
    parser.add_argument("--out", required=True, help="the PNG to write")
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    found = groups(args.directory)
    if not found:
        raise SystemExit(
            f"error: no finished run (a log.txt with an accuracy) below {args.directory}"
        )
    if args.kind == "queries":
        drawn = queries(
            {str(group.path): [run.folder for run in group.runs] for group in found},
            args.out,
            args.title,
        )
    else:
        drawn = {"shots": shots, "gain": gain}[args.kind](found, args.out, args.title)
    if not drawn:
        missing = {
            "queries": "no run has a val_curve.csv: train with ORACLE.VAL_EVERY",
            "gain": "no data set has both a zero-shot run and another",
            "shots": "no method was trained",
        }
        raise SystemExit(f"error: nothing to draw below {args.directory}: {missing[args.kind]}")
    print(f"Plot written to {args.out}")


if __name__ == "__main__":
    main()
