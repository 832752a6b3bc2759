"""What folding the batch norms of an image tower spares: the tower as open_clip builds it, and
folded, in one run.

    python benchmarks/folding.py --models photo RN50 --batch 32

Times are the better of two calls after one to warm up.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip.describe import image_size
from dassl_blackbox.trainers.blackbox.openclip.embedded import EMBEDDED, build_embedded
from dassl_blackbox.trainers.blackbox.openclip.folding import fold_batch_norms
from oracle import machine, random_model, timed
from tabulate import tabulate


def tower(name, device):
    """An image tower in float32 as it is loaded: of an embedded model, or on random weights."""
    if name not in EMBEDDED:
        return random_model(name, "fp32", device).model.visual
    return build_embedded(name, "fp32").visual.to(device).eval().requires_grad_(False)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["photo", "RN50"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device, rows = torch.device(args.device), []
    for name in args.models:
        plain = tower(name, device)
        folded = fold_batch_norms(plain, *image_size(plain))
        pixels = torch.rand(args.batch, 3, *image_size(plain), device=device)
        if hasattr(plain, "trunk"):  # as `load_model` has it
            plain, folded = (t.to(memory_format=torch.channels_last) for t in (plain, folded))
        before, after = (timed(partial(t, pixels), device) for t in (plain, folded))
        apart = F.normalize(plain(pixels), dim=-1) - F.normalize(folded(pixels), dim=-1)
        cells = f"{before:.3f}", f"{after:.3f}", f"{before / after:.2f}"
        rows.append([name, args.batch, *cells, f"{apart.abs().max():.0e}"])
    headers = ["model", "images", "as built, s", "folded, s", "ratio", "largest difference"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    print(f"\n{machine(device)}")


if __name__ == "__main__":
    main()
