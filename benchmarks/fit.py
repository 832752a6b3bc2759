"""Seconds and memory of the fit of SONAR's head, at three sizes, on random features.

    python benchmarks/fit.py

A process for each size, on as many threads as a run takes: one, where OMP_NUM_THREADS names no
other number.
"""

import resource
import subprocess
import sys
import time

import torch
from common import parser, show
from dassl_blackbox.trainers.blackbox.heads.scores import ScoreHead
from dassl_blackbox.trainers.blackbox.heads.selection import Gathered
from dassl_blackbox.trainers.sonar import kept_texts
from torch.nn.functional import normalize

SIZES = {"Digits": (160, 10, 500), "Caltech101": (1600, 100, 500), "ImageNet": (16000, 1000, 2000)}
DIM, SCALE = 512, 100.0


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fit(images, classes, further):
    """Print the seconds and megabytes of one fit."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    texts = normalize(torch.randn(classes + further, DIM, generator=g), dim=1)
    means = texts[:classes] + 0.1 * torch.randn(classes, DIM, generator=g)
    pictures = means[labels] + 0.1 * torch.randn(images, DIM, generator=g)
    scores = SCALE * normalize(pictures, dim=1) @ texts.T
    head = ScoreHead(list(map(str, range(classes))), further, kept_texts(classes, further))
    before, start = megabytes(), time.time()
    head.fit(Gathered(scores, labels, torch.arange(images)), torch.arange(images) // classes % 5)
    print(f"{time.time() - start:.1f} {megabytes() - before:.0f} {megabytes():.0f}")


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--size", choices=SIZES, help="this one alone, without a table")
    args = made.parse_args()
    if args.size:
        fit(*SIZES[args.size])
        sys.exit()
    rows = []
    for size, shape in SIZES.items():
        command = [sys.executable, __file__, "--size", size]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        rows.append([size, *(f"{number:,}" for number in shape), *found])
    show(["size of", "images", "classes", "further texts", "seconds", "MB more", "MB in all"], rows)
