"""Which data sets are there, whole, and of the published size:

python -m dassl_blackbox.datasets check --root "$DATA"
"""

import argparse
import contextlib
import io
import os
import sys

from tabulate import tabulate

from .base import differences, sizes_of
from .readers import DatasetError
from .table import ROWS

HEADERS = ("data set", "configuration", "folder", "classes", "train", "val", "test", "state")


def check(row, root):
    """A line of the table, and whether the data set is broken. Nothing is written, and no image is opened."""
    folder = os.path.join(root, row.folder)
    line = [row.name, f"{row.config}.yaml", row.folder + "/"]
    if (
        not os.path.isdir(folder)
        or row.default_root
        and not os.path.isfile(os.path.join(folder, row.split))
    ):
        return [
            *line,
            *[""] * 4,
            "not here" + (": written when it is first used" if row.default_root else ""),
        ], False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            split = row.read(row, folder)
    except DatasetError as error:
        return [*line, *[""] * 4, str(error)], True
    other = differences(row, split)
    return [
        *line,
        *("–" if size is None else f"{size:,}" for size in sizes_of(split)),
        other or "complete",
    ], bool(other)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m dassl_blackbox.datasets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["check"])
    parser.add_argument(
        "--root",
        default=os.environ.get("DATA", "data"),
        help="folder of the data sets (default: $DATA, or data)",
    )
    args = parser.parse_args()
    if not os.path.isdir(args.root):
        raise SystemExit(
            f"error: {args.root} is not a folder. Pass --root with the folder that holds the data sets."
        )
    lines, broken = zip(*(check(row, args.root) for row in ROWS if row.folder))
    print(tabulate(lines, headers=HEADERS, disable_numparse=True))
    return int(any(broken))


if __name__ == "__main__":
    sys.exit(main())
