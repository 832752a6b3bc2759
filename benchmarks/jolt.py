"""What JOLT itself costs beside the model that it asks: seconds of one step outside the oracle and
inside, on random weights.

    # around ViT-B/16, m = 64, B = 128, C = 100, d = 4 x 512: one thing varied at a time
    python benchmarks/jolt.py
    python benchmarks/jolt.py --model ViT-B/32 --classes 10 100

Outside: both rounds of the optimiser (directions, slopes, Gauss-Newton matrix, proposals) and the
head's steps, on logits that were answered before. Inside: the queries of the step, the images being
new. The better of two steps after one to warm up.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import torch
from dassl_blackbox.trainers.blackbox.config import defaults
from dassl_blackbox.trainers.blackbox.openclip.local import FeatureStore, LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import OPENAI
from dassl_blackbox.trainers.blackbox.optimizers import SubspaceGaussNewton
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from dassl_blackbox.trainers.blackbox.search import Answer
from dassl_blackbox.trainers.jolt import CrossFitted, HeadLearner
from names import class_names
from oracle import machine, publish, random_model, timed
from tqdm import tqdm

CENTRE = {"directions": 64, "batch": 128, "classes": 100, "contexts": 4}


def inside(oracle, optimizer, B, n):
    """Seconds of the step's queries."""
    D, generator = oracle.description.width, torch.Generator().manual_seed(1)
    pixels = torch.randn(B, 3, *oracle.description.image_size, generator=generator).to(
        oracle.device
    )
    contexts = (
        torch.randn(optimizer.population, n, D, generator=generator) * oracle.description.token_std
    ).to(oracle.device)
    first = optimizer.population - optimizer.m

    def step():
        oracle.last, oracle.store = None, FeatureStore()
        images = oracle.upload(pixels)
        oracle.query(images, Prompt(contexts[:first]))
        oracle.query(images, Prompt(contexts[first:]))

    return timed(step, oracle.device)


def outside(optimizer, node, head, B, C, device):
    """Seconds of both rounds and of the head's steps."""
    generator = torch.Generator().manual_seed(2)
    labels, folds = (
        torch.randint(below, (B,), generator=generator).to(device) for below in (C, len(head.mlps))
    )
    answers = [
        Answer(torch.randn(P, B, C, generator=generator).to(device), labels, torch.arange(B))
        for P in (optimizer.population - optimizer.m, optimizer.m)
    ]
    learner = HeadLearner(head, folds, node)
    for _ in range(-(-node.HEAD_MEMORY // B)):
        learner.see(answers[0], 0)

    def step():
        for answer in answers:
            optimizer.ask()
            with torch.no_grad():
                refined = head(answer.logits, folds)
            optimizer.tell(refined, labels)
        learner.see(answers[0], 0)
        learner.learn()

    return timed(step, device)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B/16", choices=list(OPENAI))
    parser.add_argument(
        "--directions", nargs="+", type=int, default=[64, 16, 256], help="m, 8 or more"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[128, 32], help="B")
    parser.add_argument("--classes", nargs="+", type=int, default=[100, 10, 1000], help="C")
    parser.add_argument(
        "--contexts", nargs="+", type=int, default=[4, 16], help="n context tokens, d = n x width"
    )
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="a Markdown file to write besides")
    args = parser.parse_args()
    device = torch.device(args.device)
    oracle = LocalOracle(random_model(args.model, args.precision, device))
    values = {key: getattr(args, key) for key in CENTRE}
    centre = {key: CENTRE[key] if CENTRE[key] in values[key] else values[key][0] for key in CENTRE}
    cells = [
        centre,
        *(
            {**centre, key: value}
            for key in CENTRE
            for value in values[key]
            if value != centre[key]
        ),
    ]
    rows, node = [], defaults().TRAINER.JOLT
    for cell in tqdm(cells, unit="cell"):
        m, B, C, n = cell.values()
        oracle.set_classes(class_names(C))
        d = n * oracle.description.width
        optimizer, head = (
            SubspaceGaussNewton(torch.randn(d, device=device), directions=m),
            CrossFitted(C, node.HEAD_WIDTH, node.HEAD_FOLDS).to(device),
        )
        mine, theirs = outside(optimizer, node, head, B, C, device), inside(oracle, optimizer, B, n)
        rows.append(
            [
                m,
                B,
                C,
                f"{d:,}",
                f"{mine:.3g}",
                f"{theirs:.3g}",
                f"{100 * mine / (mine + theirs):.1f} %",
            ]
        )
    publish(
        ("m", "B", "C", "d", "outside s", "in the oracle s", "share outside"),
        rows,
        f"{args.model}, {args.precision}; {machine(device)}.",
        args.out,
    )


if __name__ == "__main__":
    main()
