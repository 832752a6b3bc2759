"""Which data sets are there, whole, and of the published size; or what a folder of one's own holds:

python -m dassl_blackbox.datasets check --root "$DATA"
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections import Counter
from glob import escape, iglob

from dassl_blackbox.console import parser_of
from tabulate import tabulate

from .base import differences, read, sizes_of
from .labels import note_names
from .listing import UNREADABLE, DatasetError, Row, Split, ending, picture_endings, shown
from .readers import PARTS
from .table import ROWS

HEADERS = ("data set", "configuration", "folder", "classes", "train", "val", "test", "state")


def check(row: Row, root: str) -> tuple[list[str], bool, str]:
    """A line of the table, whether the data set is broken, and what was printed about it.

    No image is opened, and nothing is written.
    """
    folder, told = os.path.abspath(os.path.join(root, row.folder)), io.StringIO()
    line, counts = [row.name, f"{row.config}.yaml", f"{row.folder or '.'}/"], [""] * 4
    written = not row.default_root or os.path.isfile(os.path.join(folder, str(row.split)))
    if not os.path.isdir(folder) or not written:
        later = ": written when it is first used" if row.default_root else ""
        return [*line, *counts, f"not here{later}"], False, ""
    try:
        with contextlib.redirect_stdout(told):
            split = read(row, folder, **({} if row.folder else {"keep": False}))
            if not row.folder:
                print_classes(row, split)
        counts = ["–" if size is None else f"{size:,}" for size in sizes_of(split)]
        problem = "; ".join(filter(None, (differences(row, split), overlap(split))))
    except DatasetError as error:
        problem = str(error)
    except (*UNREADABLE, ArithmeticError, AttributeError) as error:
        problem = shown(f"it cannot be read: {type(error).__name__}: {error}")
    return [*line, *counts, problem or "complete"], bool(problem), told.getvalue()


def print_classes(row: Row, split: Split) -> None:
    """A table of the images of every class, and the note on the names."""
    counts = [Counter(name for _, _, name in items or ()) for items in split]
    lines = [[shown(name), *(count[name] for count in counts)] for name in counts[0]]
    print(tabulate(lines, headers=("class", *PARTS), disable_numparse=True))
    note_names(row, list(counts[0]))


def overlap(split: Split) -> str:
    """How many files train shares with test, as words; sets for testing only have one list."""
    train, _, test = split
    if train is test:
        return ""
    files = {(found.st_dev, found.st_ino) for found in (os.stat(image) for image, _, _ in train)}
    tested = (os.stat(image) for image, _, _ in test)
    shared = sum((found.st_dev, found.st_ino) in files for found in tested)
    return f"{shared:,} test images are training images" if shared else ""


def has_classes(root: str) -> bool:
    """Whether pictures lie in folders directly below."""
    endings = picture_endings()
    return any(ending(path) in endings for path in iglob(os.path.join(escape(root), "*", "*")))


def main() -> int:
    parser = parser_of("-m dassl_blackbox.datasets", __doc__)
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
    known = any(os.path.isdir(os.path.join(args.root, row.folder)) for row in ROWS if row.folder)
    own = os.path.isdir(os.path.join(args.root, "train")) or (not known and has_classes(args.root))
    lines, broken, told = zip(
        *(check(row, args.root) for row in ROWS if row.folder or own), strict=True
    )
    here = [line for line in lines if not line[-1].startswith("not here")]
    text = tabulate(here if own else lines, headers=HEADERS, disable_numparse=True)
    if own:
        text += f"\n{told[-1].rstrip()}"  # ImageFolder's
    elif not here:
        text += (
            f"\nNote: no data set is in {shown(args.root)}. Pictures of your own belong into its "
            f"folders train/<class>/"
        )
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return int(any(broken))


if __name__ == "__main__":
    sys.exit(main())
