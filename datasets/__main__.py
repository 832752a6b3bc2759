"""Which data sets are there, whole, and of the published size:

python -m dassl_blackbox.datasets check --root "$DATA"
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys

from tabulate import tabulate

from .base import Row, differences, need_items, sizes_of
from .labels import check_labels
from .listing import UNREADABLE, DatasetError, shown
from .readers import Split
from .table import ROWS

HEADERS = ("data set", "configuration", "folder", "classes", "train", "val", "test", "state")


def check(row: Row, root: str) -> tuple[list[str], bool]:
    """A line of the table, and whether the data set is broken. No image is opened."""
    folder = os.path.join(root, row.folder)
    line = [row.name, f"{row.config}.yaml", row.folder + "/"]
    written = not row.default_root or os.path.isfile(os.path.join(folder, row.split))
    if not os.path.isdir(folder) or not written:
        later = ": written when it is first used" if row.default_root else ""
        return [*line, *[""] * 4, f"not here{later}"], False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            split = row.read(row, folder)
        need_items(row, "all", split[0], split[2])
        check_labels(row, folder, *split)
        other = "; ".join(filter(None, (differences(row, split), overlap(split))))
    except DatasetError as error:
        return [*line, *[""] * 4, str(error)], True
    except (*UNREADABLE, ArithmeticError, AttributeError) as error:
        return [
            *line,
            *[""] * 4,
            shown(f"it cannot be read: {type(error).__name__}: {error}"),
        ], True
    sizes = ("–" if size is None else f"{size:,}" for size in sizes_of(split))
    return [*line, *sizes, other or "complete"], bool(other)


def overlap(split: Split) -> str:
    """How many files train shares with test, as words.

    A set for testing only has one list for both.
    """
    train, _, test = split
    if train is test:
        return ""
    files = {(found.st_dev, found.st_ino) for found in (os.stat(image) for image, _, _ in train)}
    tested = (os.stat(image) for image, _, _ in test)
    shared = sum((found.st_dev, found.st_ino) in files for found in tested)
    return f"{shared:,} test images are training images" if shared else ""


def main() -> int:
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
            f"error: {shown(args.root)} is not a folder. Pass --root with the folder that holds "
            f"the data sets."
        )
    lines, broken = zip(*(check(row, args.root) for row in ROWS if row.folder), strict=True)
    text = tabulate(lines, headers=HEADERS, disable_numparse=True)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return int(any(broken))


if __name__ == "__main__":
    sys.exit(main())
