"""Digits: real scans of 8 x 8 pixels.

The 1,797 handwritten digits of the UCI repository that scikit-learn carries.
"""

import numpy as np
from PIL import Image

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def split_indices(labels):
    """Rows of the train (half of each class), val (a tenth) and test split."""
    rng = np.random.RandomState(0)
    out = {"train": [], "val": [], "test": []}
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(labels == label))
        n = len(rows)
        out["train"] += rows[: n // 2].tolist()
        out["val"] += rows[n // 2 : n // 2 + n // 10].tolist()
        out["test"] += rows[n // 2 + n // 10 :].tolist()
    return {k: sorted(v) for k, v in out.items()}


def pictures():
    """The scans as greyscale images of 32 x 32, ink white on black."""
    from sklearn.datasets import load_digits

    source = load_digits()
    for part, rows in split_indices(source.target).items():
        for row in rows:
            scan = (source.images[row] * 255 / 16).round().astype(np.uint8)
            label = int(source.target[row])
            yield part, label, NAMES[label], Image.fromarray(scan).resize((32, 32), Image.BICUBIC)
