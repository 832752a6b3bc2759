"""What recognising pictures by their content costs: all of a batch at once, and few at a time as
the feature store does on a processor, in one run.

    python benchmarks/recognition.py --sides 32 192 224 --batch 128

Times are the better of two calls after one to warm up.
"""

import argparse
import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import torch
from dassl_blackbox.trainers.blackbox.openclip import store
from oracle import machine, timed
from tabulate import tabulate


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="+", type=int, default=[32, 192, 224])
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    device, known, rows = torch.device("cpu"), store.FeatureStore(), []
    for side in args.sides:
        pixels = torch.rand(args.batch, 3, side, side)
        few = timed(lambda: known.fingerprints(pixels), device)  # noqa: B023  called at once
        names = known.fingerprints(pixels)
        with patch.object(store, "IN_CACHE", pixels.numel()):
            whole = timed(lambda: known.fingerprints(pixels), device)  # noqa: B023
            same = known.fingerprints(pixels) == names
        rows.append([side, args.batch, f"{whole:.4f}", f"{few:.4f}", f"{whole / few:.1f}", same])
    headers = ["side, px", "images", "at once, s", "few at a time, s", "ratio", "same names"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    print(f"\n{machine(device)}")


if __name__ == "__main__":
    main()
