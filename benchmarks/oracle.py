"""Our oracle beside each method's published way of asking, on random weights: seconds of a step,
and ratios of one run, of every combination of what is given.

    python benchmarks/oracle.py
    python benchmarks/oracle.py --models ViT-B/32 --classes 10 100 --contexts 1 16 --ways CBBT

The published codes ask about 77 positions of every class, padding included, each in its own way:
ZIP one candidate at a time, and the image tower again for every one; CBBT the images once and the
candidates in a batch; CraFT one candidate at a time, with the images' features from before. They
are written anew here, and timed and counted on their first candidates: every further one costs the
same. Times are the better of two calls after one to warm up, or the first alone if it is long.
"""

from itertools import product

import torch
import torch.nn.functional as F
from common import class_names, parser, random_model, show, timed
from dassl_blackbox.trainers.blackbox.openclip.local import FeatureStore, LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import OPENAI
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

HEADERS = (
    *("model", "C", "n", "P", "B", "as in", "published s", "ours s", "ratio", "positions"),
    *("multiply-adds", "largest difference"),
)
WAYS = ("ZIP", "CBBT", "CraFT")
SECONDS = 20  # of timing a published way


def image_features(oracle, pixels):
    return F.normalize(oracle.model.encode_image(pixels.to(oracle.device)), dim=-1)


def published(oracle, way, images, contexts):
    """Logits `[P, B, C]` about contexts `[P, n, D]`; the images are features in CraFT's way."""
    answers = []
    for some in [contexts] if way == "CBBT" else contexts.split(1):
        seen = images if way == "CraFT" else image_features(oracle, images)
        texts = F.normalize(oracle.text.encode_plain(some.to(oracle.device)), dim=-1)
        answers.append(oracle.scale * seen @ texts.transpose(-1, -2))
    return torch.cat(answers)


def multiply_adds(call):
    """Counted by torch from the shapes; nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2


def extended(candidates, first, counted, several):
    """The cost of all candidates, from those of one and of the `counted` first."""
    if counted == 1:
        return first
    return first + (several - first) * (candidates - 1) / (counted - 1)


def cell(oracle, way, n, P, B):
    """One row: the published way and ours on the same pixels and contexts."""
    description, device = oracle.description, oracle.device
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(B, 3, *description.image_size, generator=generator).to(device)
    contexts = torch.randn(P, n, description.width, generator=generator).to(device)
    contexts *= description.token_std
    uploaded = oracle.upload(pixels)
    given = image_features(oracle, pixels) if way == "CraFT" else pixels

    def ours():
        oracle.last = None
        if way == "CraFT":  # the images are known from before
            return oracle.query(uploaded, Prompt(contexts))
        oracle.store = FeatureStore()
        return oracle.query(oracle.upload(pixels), Prompt(contexts))

    def theirs(count):
        return published(oracle, way, given, contexts[:count])

    first = timed(lambda: theirs(1), device)
    count = min(P, max(2, int(SECONDS / (3 * first))))
    their_time = extended(P, first, count, timed(lambda: theirs(count), device))
    our_time = timed(ours, device)
    two = min(P, 2)
    their_sums = extended(
        P, multiply_adds(lambda: theirs(1)), two, multiply_adds(lambda: theirs(two))
    )
    with FlopCounterMode(display=False) as counter:
        answer = ours()
    our_sums, expected = counter.get_total_flops() / 2, theirs(1)
    apart = (expected - answer[:1]).abs().max() / expected.abs().max()
    texts = oracle.text.texts
    positions = P * (n + 1 + sum(len(text) + 1 for text in texts))
    return [
        *(description.name, len(texts), n, P, B, way),
        f"{'≈ ' if count < P else ''}{their_time:.3g}",
        f"{our_time:.3g}",
        f"{their_time / our_time:.1f}",
        f"{P * len(texts) * description.context_length:,} → {positions:,}",
        f"{their_sums / our_sums:.1f} times",
        f"{apart.item():.1e}",
    ]


if __name__ == "__main__":
    made = parser(__doc__)
    models = ["ViT-B/16", "ViT-B/32", "ViT-L/14", "RN50"]
    made.add_argument("--models", nargs="+", default=models, choices=list(OPENAI))
    made.add_argument("--classes", nargs="+", type=int, default=[100])
    made.add_argument("--contexts", nargs="+", type=int, default=[8], help="tokens of a context")
    made.add_argument("--candidates", nargs="+", type=int, default=[10])
    made.add_argument("--batches", nargs="+", type=int, default=[32])
    made.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="whose way of asking")
    args = made.parse_args()
    device, rows = torch.device(args.device), []
    for model in args.models:
        oracle = LocalOracle(random_model(model, device))
        axes = args.classes, args.contexts, args.candidates, args.batches, args.ways
        for C, n, P, B, way in tqdm(list(product(*axes)), desc=model, unit="cell"):
            oracle.set_classes(class_names(C))
            with torch.no_grad():
                rows.append(cell(oracle, way, n, P, B))
    show(HEADERS, rows, device)
