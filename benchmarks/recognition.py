"""What it costs to recognise pictures by their content, and to find the 8-bit pictures that a
server is sent: the whole batch at once, and few images at a time as is done on a processor.

    python benchmarks/recognition.py --sides 32 192 224 --batch 128

Times are the better of two calls after one to warm up, in one run.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import torch
from dassl_blackbox.trainers.blackbox.openclip.local import FeatureStore
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import interface
from dassl_blackbox.trainers.blackbox.oracle.wire import as_8bit, normalised
from oracle import machine, timed
from tabulate import tabulate


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="+", type=int, default=[32, 192, 224])
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    device, rows = torch.device("cpu"), []
    description = load_model("tiny").description  # for its mean and deviation
    for side in args.sides:
        pictures = torch.randint(0, 256, (args.batch, 3, side, side), dtype=torch.uint8)
        pixels = normalised(pictures, description)
        ways = {
            "recognised": partial(FeatureStore().fingerprints, pixels),
            "as 8 bits": partial(as_8bit, pixels, description),
        }
        for name, way in ways.items():
            few = timed(way, device)
            with patch.object(interface, "IN_CACHE", pixels.numel()):
                whole = timed(way, device)
            rows.append(
                [name, side, args.batch, f"{whole:.4f}", f"{few:.4f}", f"{whole / few:.1f}"]
            )
    headers = ["", "side, px", "images", "at once, s", "few at a time, s", "ratio"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    print(f"\n{machine(device)}")


if __name__ == "__main__":
    main()
