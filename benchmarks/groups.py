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

from common import parser, show
from dassl_blackbox.console import note, tool
from dassl_blackbox.results import read
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import read_text

LIST = Path(__file__).with_name("caltech101_in_imagenet.txt")
LINE = re.compile(r"\* class: \d+ \((.*)\)\ttotal: ([\d,]+)\tcorrect: ([\d,]+)\t")
EVALUATION = "Evaluate on"
TEST = f"{EVALUATION} the *test* set"


def read_classes(log):
    """[(class name, images, correct)] of the last evaluation on test in a log, if it has any."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    _, _, after = text.rpartition(TEST)
    found = LINE.findall(after.partition(EVALUATION)[0])
    return [
        (name, int(total.replace(",", "")), int(correct.replace(",", "")))
        for name, total, correct in found
    ]


def accuracy(counts):
    """Per cent of the images of all these classes."""
    total = sum(images for _, images, _ in counts)
    return 100 * sum(correct for *_, correct in counts) / total if total else float("nan")


def main():
    made = parser(__doc__)
    made.add_argument("directory", type=Path)
    made.add_argument("--list", type=Path, default=LIST, help="class names, one a line")
    args = made.parse_args()
    lines = read_text(args.list, "--list takes a text file with a class name a line.").splitlines()
    listed, rows = {line.strip() for line in lines} - {""}, []
    for path, runs in read(args.directory).groupby("path", sort=False):
        found = []
        for folder in runs.folder:
            counts = read_classes(folder / "log.txt")
            missing = listed - {name for name, *_ in counts}
            if not counts:
                note(f"{folder}/log.txt has no per-class result on test, and is left out.")
            elif missing:
                raise BlackBoxError(
                    f"{folder} knows no class '{min(missing)}' of {args.list}. Give the list "
                    f"of this data set (--list)."
                )
            else:
                inside = [row for row in counts if row[0] in listed]
                others = [row for row in counts if row[0] not in listed]
                found.append([accuracy(part) for part in (counts, inside, others)])
        means = [f"{fmean(column):.1f}" for column in zip(*found)]
        rows += [[path, len(found), *means]] if found else []
    if not rows:
        raise BlackBoxError(
            f"No run below {args.directory} has a per-class result: TEST.PER_CLASS_RESULT True."
        )
    show(["run", "seeds", "all", "listed classes", "other classes"], rows)


if __name__ == "__main__":
    sys.exit(tool(main))
