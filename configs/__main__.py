"""Copies the configurations of this version, for users without a checkout:

    python -m dassl_blackbox.configs DIR

writes DIR/datasets/*.yaml and DIR/trainers/*/*.yaml. `--keys` prints docs/KEYS.md in its place.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl_blackbox.console import parser_of, tool
from dassl_blackbox.trainers.blackbox.config import HOST, Key, all_keys, get_cfg_default, leaves
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError

HOME = Path(__file__).resolve().parent
PARTS = ("datasets", "trainers")
INTRODUCTION = """# All keys

Printed by `python -m dassl_blackbox.configs --keys`. `KEY VALUE` at the end of a command sets one,
as in `TRAINER.ZIP.RANK 3`. Some are read only where another has a certain value; a run names those
that were set and have no effect. Dassl's are listed where their values are checked here."""


def keys_page() -> str:
    """Every key of ours, and Dassl's whose values are checked: a table for each node."""
    host = leaves(get_cfg_default())
    keys = {name: Key(host[name], valid, "Dassl's") for name, valid in HOST.items()} | all_keys()
    tables: dict[str, list[str]] = {}
    for name, key in keys.items():
        node, _, own = name.rpartition(".")
        cells = f"`{own}`", f"`{key.default!r}`", key.valid.expects, key.about
        row = " | ".join(cell.replace("|", r"\|") for cell in cells)
        tables.setdefault(node or "without a node", []).append(f"| {row} |")
    head = "| key | default | what it may hold | what it is |\n|---|---|---|---|"
    pages = ["\n".join([f"## {node}", "", head, *tables[node]]) for node in sorted(tables)]
    return "\n\n".join([INTRODUCTION, *pages])


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of("-m dassl_blackbox.configs", __doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="where to write; made if missing")
    parser.add_argument("--keys", action="store_true", help="print all keys, and copy nothing")
    args = parser.parse_args(argv)
    if args.keys:
        print(keys_page())
        return
    folder = args.folder or parser.error("the folder is missing")
    taken = [str(folder / part) for part in PARTS if (folder / part).exists()]
    if taken:
        raise BlackBoxError(f"{' and '.join(taken)} exist already. Choose another folder.")
    for part in PARTS:
        shutil.copytree(HOME / part, folder / part)
    print(f"{folder}: {sum(1 for _ in folder.rglob('*.yaml'))} configurations")


if __name__ == "__main__":
    sys.exit(tool(main))
