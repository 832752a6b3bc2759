"""Whole training runs, ours beside the published way of asking, on generated JPEGs and random
weights: seconds, their ratio, and where ours spends them.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --classes 10 --steps 2 --methods ZIP "CraFT, prompt alone"

Both ways draw the same images and candidates. The published one asks as `oracle.py` says, BPT-VLM's
images again for every candidate, and decodes every JPEG anew. Training alone is timed.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from common import class_names, configuration, parser, show
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from dassl_blackbox.trainers.blackbox.openclip.models import OPENAI
from dassl_blackbox.trainers.blackbox.oracle import Images
from oracle import image_features, published
from PIL import Image

# CraFT's head reads the same images in both ways, so its prompt alone is compared
RUNS = {"ZIP": "ZIP", "CBBT": "CBBT", "CraFT, prompt alone": "CraFT", "BPT-VLM": "BPTVLM"}


class PublishedOracle:
    """Answers as the authors' code of one method asks."""

    def __init__(self, inner, method):
        self.inner, self.method = inner, method

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def upload(self, images):
        name = Images(len(images))
        self.pixels, self.known = {name: images}, {}  # the one before is not asked about again
        return name

    @torch.no_grad()
    def query(self, images, prompt):
        pixels, contexts = self.pixels[images], prompt.contexts
        if prompt.image_tokens is not None:
            answers = []
            for tokens, context in zip(prompt.image_tokens.to(self.inner.device), contexts):
                seen = self.inner.encode_with_tokens(pixels.to(tokens.device), tokens[None])[0]
                answers.append(published(self.inner, "CraFT", seen, context[None]))
            return torch.cat(answers)
        if self.method == "CraFT":
            if images not in self.known:
                parts = [image_features(self.inner, part) for part in pixels.split(128)]
                self.known[images] = torch.cat(parts)
            pixels = self.known[images]
        return published(self.inner, self.method, pixels, contexts)


def write_pictures(folder, names, shots):
    """Smooth noise as JPEGs of 320 x 256 pixels: training pictures, one of val and one of test."""
    rng = np.random.default_rng(0)
    for part, count in (("train", shots), ("val", 1), ("test", 1)):
        for name in names:
            place = folder / part / name.replace("/", " ")
            place.mkdir(parents=True, exist_ok=True)  # ImageNet has a name twice
            for i in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8))
                coarse.resize((320, 256), Image.BICUBIC).save(place / f"{i}.jpg", quality=90)


def run(args, label, root, as_published, steps, *options):
    """(seconds of training, seconds of it inside the oracle, steps made)."""
    method = RUNS[label]
    own = ["TRAINER.CRAFT.HEAD", False] if method == "CraFT" else []
    weights = f"{OPENAI[args.model]}:{root / 'weights.pt'}"
    folder = root / "output" / f"{method} {as_published} {len(options)}"
    line = ["--root", root, "--seed", 1, "--output-dir", folder, *own]
    line += ["DATASET.NUM_SHOTS", args.shots, "MODEL.BACKBONE.NAME", weights]
    line += ["ORACLE.MAX_QUERIES", 0, "ORACLE.SAVE_EVERY", 0, "TEST.NO_TEST", True]
    line += ["USE_CUDA", args.device == "cuda", "INPUT.CACHE_MB", 0 if as_published else 2048]
    line += ["DATALOADER.NUM_WORKERS", 0, "OPTIM.MAX_EPOCH", 1, *args.opts, *options]
    cfg = configuration(method, args.config, "imagefolder", *line)
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if as_published:
        trainer.oracle.inner = PublishedOracle(trainer.oracle.inner, method)
    trainer.max_epoch = steps  # each of an epoch at least
    trainer.oracle.limits["queries"] = steps * trainer.plan.step(0)[0]
    query, inside = trainer.oracle.inner.query, []

    def watched(*asked):
        start = time.perf_counter()
        answer = query(*asked)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        inside.append(time.perf_counter() - start)
        return answer

    trainer.oracle.inner.query, start = watched, time.perf_counter()
    trainer.train()
    taken = time.perf_counter() - start
    return taken, sum(inside), trainer.clock() // trainer.plan.step(0)[0]


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--methods", nargs="+", default=list(RUNS), choices=list(RUNS))
    made.add_argument("--model", default="ViT-B/16", choices=list(OPENAI))
    made.add_argument("--config", default="vit_b16", help="name of the trainers' YAMLs")
    made.add_argument("--classes", type=int, default=100)
    made.add_argument("--shots", type=int, default=16)
    made.add_argument("--steps", type=int, default=1, help="of every method")
    made.add_argument("--opts", nargs="...", default=[], help="KEY VALUE options of every run")
    args = made.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root, class_names(args.classes), args.shots)
        torch.manual_seed(0)
        torch.save(open_clip.create_model(OPENAI[args.model]).state_dict(), root / "weights.pt")
        # untimed: imports, and libraries that are loaded at their first use
        run(args, "ZIP", root, False, 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 2)
        for label in args.methods:
            theirs, _, count = run(args, label, root, True, args.steps)
            ours, inside, _ = run(args, label, root, False, args.steps)
            times = f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.1f}"
            rows.append([label, count, *times, f"{100 * inside / ours:.0f} %"])
    headers = ["method", "steps", "published s", "ours s", "ratio", "ours inside the oracle"]
    show(headers, rows, torch.device(args.device))
