"""What the oracle spares of an image tower's time: the tower as open_clip builds it, with its batch
norms folded, and as the oracle encodes with it, few images at a time, in one run.

    python benchmarks/image_tower.py --models photo RN50 --batch 128 --threads 1
"""

from functools import partial

import torch
import torch.nn.functional as F
from common import parser, random_model, show, timed
from dassl_blackbox.trainers.blackbox.openclip.embedded import EMBEDDED
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import build, find, load_model
from dassl_blackbox.trainers.blackbox.openclip.patches import fold_batch_norms, image_size


@torch.no_grad()
def row(name, count, device):
    """Seconds of the three ways, and how far the last is from the first."""
    if name in EMBEDDED:
        loaded = load_model(name, device=device)
        plain = build(find(name), None).visual.to(device).eval().requires_grad_(False)
    else:
        loaded = random_model(name, device)
        plain = loaded.model.visual
    folded = fold_batch_norms(plain)
    pixels = torch.rand(count, 3, *image_size(plain), device=device)
    if hasattr(plain, "trunk"):  # as `load_model` has it
        plain, folded = (tower.to(memory_format=torch.channels_last) for tower in (plain, folded))
    loaded.model.visual = folded
    encode = LocalOracle(loaded).encode_pixels
    first, *others = (timed(partial(way, pixels), device) for way in (plain, folded, encode))
    apart = (F.normalize(plain(pixels), dim=-1) - encode(pixels)).abs().max()
    cells = [f"{seconds:.3f} ({first / seconds:.2f})" for seconds in others]
    return [name, count, f"{first:.3f}", *cells, f"{apart:.0e}"]


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--models", nargs="+", default=["photo", "RN50"])
    made.add_argument("--batch", type=int, default=128, help="images")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    ways = "as built, s", "folded, s (times as fast)", "few at a time, s (times as fast)"
    rows = [row(name, args.batch, device) for name in args.models]
    show(["model", "images", *ways, "largest difference"], rows, device)
