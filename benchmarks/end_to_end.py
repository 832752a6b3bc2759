"""Whole training runs, ours beside the published way of asking, on generated JPEGs and random
weights: seconds, their ratio, and where ours spends them.

    # ViT-B/16, 100 classes, 16 shots; on a GPU 500 steps of ZIP, on a CPU one
    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --classes 10 --steps 2 --methods ZIP CraFT

Both ways draw the same images and candidates. The published one encodes all 77 positions of every
class, and the images as its authors' code does (ZIP and BPT-VLM: again for every candidate); and it
decodes every JPEG anew. Training alone is timed, without loading the model and without testing.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import numpy as np
import open_clip
import torch
import train
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from dassl_blackbox.trainers.blackbox.openclip.models import OPENAI
from dassl_blackbox.trainers.blackbox.oracle import Images, Oracle
from names import class_names
from oracle import machine, publish
from PIL import Image
from published import STEPS, image_features, logits, text_features

HOME = Path(__file__).resolve().parent.parent
# by label: trainer, options, and steps of a run by kind of device. CraFT's head reads the same
# images in both ways, so its prompt alone is compared.
RUNS = {
    "ZIP": ("ZIP", [], {"cuda": 500, "cpu": 1}),
    "CBBT": ("CBBT", [], {"cuda": 0, "cpu": 1}),  # 0: one epoch
    "CraFT, prompt alone": ("CraFT", ["TRAINER.CRAFT.HEAD", "False"], {"cuda": 10, "cpu": 1}),
    "BPT-VLM": ("BPTVLM", [], {"cuda": 10, "cpu": 1}),
}


class PublishedOracle(Oracle):
    """Answers as the authors' code of one method asks: see `published.py`."""

    def __init__(self, inner, method):
        self.inner, self.method = inner, method
        self.description, self.grants, self.client = inner.description, inner.grants, inner.client
        self.pixels, self.features = {}, {}

    def set_classes(self, names, template="{}."):
        self.inner.set_classes(names, template)

    def embed(self, words):
        return self.inner.embed(words)

    def upload(self, images):
        name = Images(len(images))
        self.pixels, self.features = {name: images}, {}  # the one before is not asked about again
        return name

    @torch.no_grad()
    def query(self, images, prompt):
        pixels, contexts, image_tokens = self.pixels[images], prompt.contexts, prompt.image_tokens
        if image_tokens is not None:
            image = (
                self.inner.hooked(pixels.to(self.inner.device), tokens)
                for tokens in image_tokens.to(self.inner.device)
            )
            return torch.stack(
                [
                    logits(self.inner, features, text_features(self.inner, context[None])[0])
                    for features, context in zip(image, contexts)
                ]
            )
        if self.method == "CraFT":
            if images not in self.features:
                self.features[images] = torch.cat(
                    [image_features(self.inner, part) for part in pixels.split(128)]
                )
            pixels = self.features[images]
        return STEPS[self.method](self.inner, pixels, contexts)

    def image_features(self, images):
        return image_features(self.inner, self.pixels[images])

    def text_features(self, prompt):
        return text_features(self.inner, prompt.contexts)


class Stopwatch:
    """Seconds spent inside an object's method."""

    def __init__(self, owner, method, device):
        self.seconds, self.call, self.device = 0.0, getattr(owner, method), device
        setattr(owner, method, self)

    def __call__(self, *args, **kwargs):
        start = time.perf_counter()
        result = self.call(*args, **kwargs)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return result


def write_pictures(folder, names, shots):
    """Smooth noise as JPEGs of 320 x 256 pixels, `train` and one test picture a class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", shots), ("val", 1), ("test", 1)):
        for name in names:
            place = folder / part / name.replace("/", " ")
            place.mkdir(parents=True, exist_ok=True)  # ImageNet has a name twice
            for i in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8))
                coarse.resize((320, 256), Image.BICUBIC).save(place / f"{i}.jpg", quality=90)


def configuration(args, label, root, weights, published):
    """The resolved configuration of one run: the method's published settings on that backbone."""
    method, own, _ = RUNS[label]
    config = HOME / "configs" / "trainers" / method / f"{args.config}.yaml"
    options = [
        "DATASET.NUM_SHOTS",
        args.shots,
        "MODEL.BACKBONE.NAME",
        weights,
        "ORACLE.PREC",
        args.precision,
        "ORACLE.MAX_QUERIES",
        0,
        "ORACLE.SAVE_EVERY",
        0,
        "TEST.NO_TEST",
        True,
        "USE_CUDA",
        args.device == "cuda",
        "DATALOADER.NUM_WORKERS",
        args.workers,
        "INPUT.CACHE_MB",
        0 if published else 2048,
        "OPTIM.MAX_EPOCH",
        1,
        *own,
        *args.opts,
    ]
    if args.batch:
        options += ["DATALOADER.TRAIN_X.BATCH_SIZE", args.batch]
    arguments = [
        "--root",
        root,
        "--seed",
        1,
        "--trainer",
        method,
        "--dataset-config-file",
        HOME / "configs/datasets/imagefolder.yaml",
        "--config-file",
        config,
        "--output-dir",
        root / "output" / method / str(published),
        *options,
    ]
    return train.setup_cfg(train.parse_args([str(a) for a in arguments]))


def run(cfg, steps, method, published):
    """(seconds of training, seconds of it inside the oracle, steps made)."""
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if published:
        trainer.oracle.inner = PublishedOracle(
            trainer.oracle.inner, "CBBT" if method == "BPTVLM" else method
        )
    if steps:  # a budget in steps
        trainer.max_epoch = steps
        trainer.oracle.limits["queries"] = steps * trainer.plan.step(0)[0]
    watch = Stopwatch(trainer.oracle.inner, "query", trainer.device)
    start = time.perf_counter()
    trainer.train()
    taken = time.perf_counter() - start
    return taken, watch.seconds, trainer.clock() // trainer.plan.step(0)[0]


def warm_up(args, root, weights):
    """One untimed step: imports, and libraries that are loaded at their first use."""
    cfg = configuration(args, "ZIP", root, weights, False).clone()
    cfg.merge_from_list(
        ["DATALOADER.TRAIN_X.BATCH_SIZE", 2, "OUTPUT_DIR", str(root / "output" / "warm-up")]
    )
    run(cfg, 1, "ZIP", False)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--model", default="ViT-B/16", choices=list(OPENAI))
    parser.add_argument("--config", default="vit_b16", help="name of the trainers' YAMLs")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--batch", type=int, help="of training, in place of the method's own")
    parser.add_argument(
        "--steps", type=int, help="steps of every method, in place of its own number"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"]
    )
    parser.add_argument("--out", help="a Markdown file to write besides")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE options for every run, at the end",
    )
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root, class_names(args.classes), args.shots)
        torch.manual_seed(0)
        torch.save(open_clip.create_model(OPENAI[args.model]).state_dict(), root / "weights.pt")
        weights = f"{OPENAI[args.model]}:{root / 'weights.pt'}"
        warm_up(args, root, weights)
        for label in args.methods:
            method, steps = (
                RUNS[label][0],
                RUNS[label][2][args.device] if args.steps is None else args.steps,
            )
            (theirs, _, made), (ours, inside, _) = (
                run(configuration(args, label, root, weights, published), steps, method, published)
                for published in (True, False)
            )
            rows.append(
                [
                    label,
                    made,
                    f"{theirs:.1f}",
                    f"{ours:.1f}",
                    f"{theirs / ours:.1f}",
                    f"{100 * inside / ours:.0f} %",
                ]
            )
    publish(
        ("method", "steps", "published s", "ours s", "ratio", "ours inside the oracle"),
        rows,
        f"{args.model}, {args.classes} classes, {args.shots} shots, {args.precision}; "
        f"{machine(torch.device(args.device))}.",
        args.out,
    )


if __name__ == "__main__":
    main()
