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

from dassl_blackbox.console import parser_of, tool
from tabulate import tabulate

from . import listing
from .base import differences, read, sizes_of
from .listing import DatasetError, Row, shown
from .table import ROWS

HEADERS = ("data set", "configuration", "folder", "classes", "train", "val", "test", "state")


def check(row: Row, root: str) -> tuple[list[str], bool, str]:
    """A line of the table, whether the data set is broken, and what was printed about it."""
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
                of = [Counter(name for _, _, name in items or ()) for items in split]
                lines = [[shown(name), *(count[name] for count in of)] for name in of[0]]
                print(tabulate(lines, headers=("class", *listing.PARTS), disable_numparse=True))
                listing.note_names(row, list(of[0]))
        counts = ["–" if size is None else f"{size:,}" for size in sizes_of(split)]
        train, _, test = split  # one list in sets for testing only
        files = {os.stat(image)[1:3] for image, _, _ in train if train is not test}
        shared = sum(os.stat(image)[1:3] in files for image, _, _ in test)  # inode and device
        leak = f"{shared:,} test images are training images" if shared else ""
        problem = "; ".join(filter(None, (differences(row, split), leak)))
    except Exception as error:
        words = f"it cannot be read: {type(error).__name__}: {error}"
        problem = str(error) if isinstance(error, DatasetError) else shown(words)
    return [*line, *counts, problem or "complete"], bool(problem), told.getvalue()


def main() -> int:
    parser = parser_of("-m dassl_blackbox.datasets", __doc__)
    parser.add_argument("command", choices=["check"])
    words = "folder of the data sets (default: $DATA, or data)"
    parser.add_argument("--root", default=os.environ.get("DATA", "data"), help=words)
    root = parser.parse_args().root
    if not os.path.isdir(root):
        raise DatasetError(f"{shown(root)} is not a folder. Pass --root with another.")
    known = any(os.path.isdir(os.path.join(root, row.folder)) for row in ROWS if row.folder)
    inside = iglob(os.path.join(escape(root), "*", "*"))
    pictures = not known and bool(listing.are_pictures(inside))
    own = pictures or os.path.isdir(os.path.join(root, "train"))
    rows = [row for row in ROWS if row.folder or own]
    lines, broken, told = zip(*(check(row, root) for row in rows), strict=True)
    here = [line for line in lines if not line[-1].startswith("not here")]
    text = tabulate(here if own else lines, headers=HEADERS, disable_numparse=True)
    if own:
        text += f"\n{told[-1].rstrip()}"  # ImageFolder's
    elif not here:
        text += f"\nNote: no data set is in {shown(root)}. Yours belongs into train/<class>/ there."
    print(text)
    return int(any(broken))


if __name__ == "__main__":
    sys.exit(tool(main))
