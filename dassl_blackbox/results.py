"""Tables of the runs below a folder:

python -m dassl_blackbox.results output                       # a row a group of seeds, with queries and seconds
python -m dassl_blackbox.results output --across              # the papers' shape: data sets across, methods down, their mean at the end
python -m dassl_blackbox.results output/base2new --base2new   # base, new and their harmonic mean H
"""

import argparse
import csv
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from .datasets.table import ROWS
from .published import DATASETS, FIGURES
from .runlog import Run, read_result

HEADERS = (
    "run",
    "method",
    "seeds",
    "test accuracy %",
    "training queries",
    "image queries",
    "evaluation queries",
    "seconds",
)


def mean_and_error(values):
    """Mean and standard error (ddof 1); the error is None for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


@dataclass
class Group:
    """The seeds of one experiment."""

    path: Path  # below the folder that was searched, without `seed<k>`
    runs: list[Run]

    @property
    def dataset(self):
        return self.runs[0].dataset

    @property
    def label(self):
        """The path without the part that names the data set: the same for one method on all of them."""
        known = {row.name: row.config for row in ROWS}
        return "/".join(
            part for part in self.path.parts if part != known.get(self.dataset, self.dataset)
        )

    def mean_and_error(self):
        return mean_and_error([run.metrics["accuracy"] for run in self.runs])

    def cell(self):
        mean, error = self.mean_and_error()
        return f"{mean:.1f}" + ("" if error is None else f" ± {error:.1f}")

    def mean(self):
        return self.mean_and_error()[0]


def groups(root):
    """Finished runs below `root`, and evaluations that no training ended in, grouped over seeds."""
    found = {}
    for log in sorted(Path(root).rglob("log.txt")):
        run = read_result(log.parent)
        if run is not None and "accuracy" in run.metrics:
            group = (
                log.parent.parent
                if re.fullmatch(r"seed\d+", log.parent.name) and log.parent != Path(root)
                else log.parent
            )
            found.setdefault(group.relative_to(root), []).append(run)
    return [Group(path, runs) for path, runs in found.items()]


def mean_count(runs, purpose, unit):
    if any(run.counts is None for run in runs):
        return "–"
    return f"{sum(run.counts[purpose][unit] for run in runs) / len(runs):,.0f}"


def row(group):
    runs = group.runs
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return [
        str(group.path),
        runs[0].trainer,
        len(runs),
        group.cell(),
        mean_count(runs, "training", "queries"),
        mean_count(runs, "training", "image_queries"),
        mean_count(runs, "evaluation", "queries"),
        f"{sum(seconds) / len(seconds):.0f}" if seconds else "–",
    ]


def across(found, published=False):
    """Headers and rows of the papers' table; the mean is given where no data set is missing."""
    order = {name: i for i, name in enumerate(row.name for row in ROWS)}
    names = sorted(
        {group.dataset for group in found} | set(DATASETS if published else ()),
        key=lambda name: order.get(name, len(order)),
    )
    rows = []
    for label in dict.fromkeys(group.label for group in found):
        cells = {group.dataset: group for group in found if group.label == label}
        mean = (
            f"{fmean(group.mean() for group in cells.values()):.1f}"
            if len(cells) == len(names)
            else "–"
        )
        rows.append(
            [label, *(cells[name].cell() if name in cells else "–" for name in names), mean]
        )
    if published:
        for method, figures in FIGURES.items():
            figure_of = dict(zip(DATASETS, figures))
            cells = [figure_of.get(name) for name in names]
            mean = "–" if None in cells else f"{fmean(cells):.1f}"
            rows.append(
                [
                    f"{method} (published, ViT-B/16)",
                    *("–" if cell is None else f"{cell:.1f}" for cell in cells),
                    mean,
                ]
            )
    return ("method", *names, "mean"), rows


def base2new(found):
    """Headers and rows: accuracy on base and on new classes, and their harmonic mean, which is that of the means, as in CoCoOp's paper."""
    halves = {}
    for group in found:
        if group.path.parts[:1] in (("train_base",), ("test_new",)):
            rest = Group(Path(*group.path.parts[1:]), group.runs)
            halves.setdefault((rest.label, group.dataset), {})[group.path.parts[0]] = group
    rows = []
    for label in dict.fromkeys(label for label, _ in halves):
        pairs = {
            name: (pair["train_base"], pair["test_new"])
            for (of, name), pair in halves.items()
            if of == label and len(pair) == 2
        }
        rows += [
            [label, name, base.cell(), new.cell(), f"{harmonic(base.mean(), new.mean()):.1f}"]
            for name, (base, new) in pairs.items()
        ]
        if len(pairs) > 1:
            means = [fmean(pair[half].mean() for pair in pairs.values()) for half in (0, 1)]
            rows.append(
                [label, "mean", f"{means[0]:.1f}", f"{means[1]:.1f}", f"{harmonic(*means):.1f}"]
            )
    return ("method", "data set", "base", "new", "H"), rows


def harmonic(base, new):
    return 2 * base * new / (base + new) if base + new else 0.0


def show(headers, rows, form):
    """Print a table in a format of tabulate, or as CSV."""
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([headers, *rows])
    else:
        print(tabulate(rows, headers=headers, tablefmt=form, disable_numparse=True))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", help="folder that holds <run>/seed<k>/log.txt at any depth")
    parser.add_argument("--across", action="store_true", help="data sets across, methods down")
    parser.add_argument(
        "--published",
        action="store_true",
        help="with --across: rows of published figures (ViT-B/16, 16 shots)",
    )
    parser.add_argument(
        "--base2new", action="store_true", help="base, new, and their harmonic mean"
    )
    parser.add_argument(
        "--format", default="simple", help="csv, or a table format of tabulate, such as github"
    )
    args = parser.parse_args()
    found = groups(args.directory)
    if not found:
        raise SystemExit(
            f"error: no finished run (a log.txt with an accuracy) below {args.directory}"
        )
    if args.base2new:
        headers, rows = base2new(found)
        if not rows:
            raise SystemExit(
                f"error: {args.directory} has no experiment in both train_base and test_new. Run scripts/base2new_train.sh and "
                f"scripts/base2new_test.sh, and give the folder that holds the two."
            )
    else:
        headers, rows = (
            across(found, args.published)
            if args.across
            else (HEADERS, [row(group) for group in found])
        )
    show(headers, rows, args.format)
    if args.format != "csv":
        print(
            "± is the standard error over seeds; a query is one candidate scored on one batch of at most 128 images; – : none is counted, or no run"
        )


if __name__ == "__main__":
    main()
