"""A table of the runs below a folder, one row a group of seeds:

python -m dassl_blackbox.results output/quickstart
"""

import argparse
import math
from pathlib import Path

from tabulate import tabulate

from .runlog import read_run

HEADERS = ("run", "method", "seeds", "test accuracy %", "training queries", "image queries", "evaluation queries", "seconds")


def mean_and_error(values):
    """Mean and standard error (ddof 1); the error is None for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def groups(root):
    """Finished runs below `root`, grouped by the folder that holds their `seed<k>` folders: {relative folder: [Run]}."""
    found = {}
    for log in sorted(Path(root).rglob("log.txt")):
        run = read_run(log.parent)
        if run is not None:
            group = log.parent if log.parent == Path(root) else log.parent.parent
            found.setdefault(str(group.relative_to(root)), []).append(run)
    return found


def mean_count(runs, purpose, unit):
    if any(run.counts is None for run in runs):
        return "–"
    return f"{sum(run.counts[purpose][unit] for run in runs) / len(runs):,.0f}"


def row(name, runs):
    mean, error = mean_and_error([run.metrics["accuracy"] for run in runs])
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return [name, runs[0].trainer, len(runs), f"{mean:.1f}" + ("" if error is None else f" ± {error:.1f}"), mean_count(runs, "training", "queries"),
            mean_count(runs, "training", "image_queries"), mean_count(runs, "evaluation", "queries"),
            f"{sum(seconds) / len(seconds):.0f}" if seconds else "–"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="folder that holds <run>/seed<k>/log.txt at any depth")
    parser.add_argument("--format", default="simple", help="a table format of tabulate, such as github")
    args = parser.parse_args()
    rows = [row(name, runs) for name, runs in groups(args.directory).items()]
    if not rows:
        raise SystemExit(f"error: no finished run (a log.txt with an accuracy) below {args.directory}")
    print(tabulate(rows, headers=HEADERS, tablefmt=args.format, disable_numparse=True))
    print("± is the standard error over seeds; a query is one candidate scored on one batch of at most 128 images; – : none is counted")


if __name__ == "__main__":
    main()
