"""Copies the configurations of this version, for users without a checkout:

    python -m dassl_blackbox.configs DIR

writes DIR/datasets/*.yaml and DIR/trainers/*/*.yaml.
"""

import argparse
import shutil
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent
PARTS = ("datasets", "trainers")


def main() -> str | None:
    """Copies; returns what went wrong, if anything did."""
    parser = argparse.ArgumentParser(
        prog="python -m dassl_blackbox.configs",
        description="Copies the YAMLs of data sets and trainers into a folder.",
    )
    parser.add_argument("folder", type=Path, help="where to write; made if it is missing")
    folder = parser.parse_args().folder
    try:
        taken = [str(folder / part) for part in PARTS if (folder / part).exists()]
        if taken:
            return f"error: {' and '.join(taken)} exist already. Choose another folder."
        for part in PARTS:
            shutil.copytree(HOME / part, folder / part)
    except OSError as e:
        return f"error: {folder} cannot be written ({e.strerror or e}). Choose another folder."
    print(f"{folder}: {sum(1 for _ in folder.rglob('*.yaml'))} configurations")
    return None


if __name__ == "__main__":
    sys.exit(main())
