"""Accuracy on the classes of a list, and on the others, of runs with `TEST.PER_CLASS_RESULT True`:

    python benchmarks/groups.py output/compare/caltech101

The list is that of the classes of Caltech101 which are or contain a class of ImageNet, on whose
labels the image tower of the embedded model `photo` was trained. Mean over seeds.
"""

import argparse
import re
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

LIST = Path(__file__).with_name("caltech101_in_imagenet.txt")
LINE = re.compile(r"\* class: \d+ \((.*)\)\ttotal: ([\d,]+)\tcorrect: ([\d,]+)\t")
BLOCK = "=> per-class result"


def read_classes(log):
    """{class name: (images, correct)} of the last evaluation in a log, if it has any."""
    _, found, block = log.read_text(encoding="utf-8", errors="replace").rpartition(BLOCK)
    lines = LINE.findall(block) if found else []
    return {
        name: (int(total.replace(",", "")), int(correct.replace(",", "")))
        for name, total, correct in lines
    }


def accuracies(counts, listed):
    """Per cent of all images, of those of the classes listed, and of the others'."""
    groups = counts, counts.keys() & listed, counts.keys() - listed
    sums = [[sum(counts[n][i] for n in group) for i in (0, 1)] for group in groups]
    return [100 * correct / total if total else float("nan") for total, correct in sums]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--list", type=Path, default=LIST, help="class names, one a line")
    args = parser.parse_args()
    listed = set(args.list.read_text(encoding="utf-8").split())
    runs = {}
    for log in sorted(args.directory.rglob("seed*/log.txt")):
        counts = read_classes(log)
        if counts:
            run = log.parent.parent.relative_to(args.directory)
            runs.setdefault(str(run), []).append(accuracies(counts, listed))
    if not runs:
        raise SystemExit(f"error: no log below {args.directory} has a per-class result")
    rows = [
        [run, len(found), *(f"{fmean(column):.1f}" for column in zip(*found, strict=True))]
        for run, found in runs.items()
    ]
    headers = ["run", "seeds", "all", "listed classes", "other classes"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
