"""What the oracle spares of an image tower's time: the tower as open_clip builds it, with its batch
norms folded, and as the oracle encodes with it, few images at a time, in one run.

    python benchmarks/image_tower.py --models photo RN50 --batch 128 --threads 1

Times are the better of two calls after one to warm up, or the first alone if it is long.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip.embedded import EMBEDDED
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import build, find, load_model
from dassl_blackbox.trainers.blackbox.openclip.patches import fold_batch_norms, image_size
from oracle import machine, random_model, timed
from tabulate import tabulate


def model_and_tower(name, device):
    """A model in float32, and its image tower as it is built; of random weights if not embedded."""
    if name not in EMBEDDED:
        loaded = random_model(name, "fp32", device)
        return loaded, loaded.model.visual
    built = build(find(name), None).visual.to(device).eval().requires_grad_(False)
    return load_model(name, device=device), built


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["photo", "RN50"])
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, rows = torch.device(args.device), []
    for name in args.models:
        loaded, plain = model_and_tower(name, device)
        folded = fold_batch_norms(plain)
        pixels = torch.rand(args.batch, 3, *image_size(plain), device=device)
        if hasattr(plain, "trunk"):  # as `load_model` has it
            plain, folded = (t.to(memory_format=torch.channels_last) for t in (plain, folded))
        loaded.model.visual = folded
        encode = LocalOracle(loaded).encode_pixels
        calls = [partial(way, pixels) for way in (plain, folded, encode)]
        first, *others = (timed(call, device) for call in calls)
        apart = F.normalize(plain(pixels), dim=-1) - encode(pixels)
        cells = [f"{seconds:.3f} ({first / seconds:.2f})" for seconds in others]
        rows.append([name, args.batch, f"{first:.3f}", *cells, f"{apart.abs().max():.0e}"])
    headers = [
        "model",
        "images",
        "as built, s",
        "folded, s (times as fast)",
        "few at a time, s (times as fast)",
        "largest difference",
    ]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    print(f"\n{machine(device)}")


if __name__ == "__main__":
    main()
