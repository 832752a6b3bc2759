"""Test accuracy on the classes of a list, and on the others, of finished runs with
`TEST.PER_CLASS_RESULT True`:

    python benchmarks/groups.py output/compare/caltech101

The list is that of the classes of Caltech101 which are or contain a class of ImageNet by their
names, on whose labels the image tower of the embedded model `photo` was trained. With `--list
benchmarks/caltech101_showing_imagenet.txt`: those too that show one under another name, as
cougar_face does. Mean over seeds.
"""

import re
import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
from dassl_blackbox.console import note, parser_of, tool
from dassl_blackbox.runs import read
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import read_text
from tabulate import tabulate

LIST = Path(__file__).with_name("caltech101_in_imagenet.txt")
LINE = re.compile(r"\* class: \d+ \((.*)\)\ttotal: ([\d,]+)\tcorrect: ([\d,]+)\t")
EVALUATION = "Evaluate on"
TEST = f"{EVALUATION} the *test* set"
BLOCK = "=> per-class result"


def read_classes(log):
    """[(class name, images, correct)] of the last evaluation on test in a log, if it has any."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    _, _, after = text.rpartition(TEST)
    _, _, block = after.partition(EVALUATION)[0].partition(BLOCK)
    return [
        (name, int(total.replace(",", "")), int(correct.replace(",", "")))
        for name, total, correct in LINE.findall(block)
    ]


def accuracies(counts, listed):
    """Per cent of all images, of those of the classes listed, and of the others'."""
    groups = (
        counts,
        [row for row in counts if row[0] in listed],
        [row for row in counts if row[0] not in listed],
    )
    sums = [[sum(row[i] for row in group) for i in (1, 2)] for group in groups]
    return [100 * correct / total if total else float("nan") for total, correct in sums]


def main():
    parser = parser_of("benchmarks/groups.py", __doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--list", type=Path, default=LIST, help="class names, one a line")
    args = parser.parse_args()
    lines = read_text(args.list, "--list takes a text file with a class name a line.").splitlines()
    listed, rows = {line.strip() for line in lines} - {""}, []
    for path, runs in read(args.directory).groupby("path", sort=False):
        found = []
        for folder in runs.folder:
            counts = read_classes(folder / "log.txt")
            missing = listed - {name for name, _, _ in counts}
            if counts and missing:
                raise BlackBoxError(
                    f"{folder} knows no class '{min(missing)}' of {args.list}. Give the list "
                    f"of this data set (--list)."
                )
            if counts:
                found.append(accuracies(counts, listed))
            else:
                note(f"{folder}/log.txt has no per-class result on test, and is left out.")
        means = [f"{fmean(column):.1f}" for column in zip(*found, strict=True)]
        rows += [[path, len(found), *means]] if found else []
    if not rows:
        raise BlackBoxError(
            f"No run below {args.directory} has a per-class result: TEST.PER_CLASS_RESULT True."
        )
    headers = ["run", "seeds", "all", "listed classes", "other classes"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(tool(main))
