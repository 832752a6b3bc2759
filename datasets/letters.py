"""Letters: a to z in both cases, slanted, turned, coloured and noisy.

In faces that the embedded model was not trained on.
"""

import math
import random
import string

import numpy as np
from PIL import Image

from . import render

COUNTS = {"train": 40, "val": 8, "test": 40}  # images of a class


def any_colour(rng):
    grey = rng.uniform(0, 255)
    return (grey,) * 3 if rng.random() < 0.5 else tuple(rng.uniform(0, 255) for _ in range(3))


def letter(char, rng):
    """One picture of 32 x 32, drawn at twice that size."""
    mask = Image.fromarray(
        render.character(char, rng.choice(render.FONTS), 64, rng.uniform(30, 52))
    )
    slant, turn = rng.uniform(-0.45, 0.45), rng.uniform(-0.4, 0.4)
    c, s, dx, dy = math.cos(turn), math.sin(turn), rng.uniform(-7, 7), rng.uniform(-7, 7)
    # output pixel -> input pixel, about the centre
    a, b, d, e = c, s + slant * c, -s, c - slant * s
    affine = (a, b, 32 - a * (32 + dx) - b * (32 + dy), d, e, 32 - d * (32 + dx) - e * (32 + dy))
    mask = mask.transform((64, 64), Image.AFFINE, affine, Image.BICUBIC).resize((32, 32), Image.BOX)
    ink = any_colour(rng)
    grounds = render.grounds(ink, 130, lambda: any_colour(rng))
    return render.scene(np.asarray(mask), ink, grounds, rng.uniform(0, 25), rng.uniform(5, 30), rng)


def pictures():
    rng = random.Random(0)
    for part, count in COUNTS.items():
        for label, name in enumerate(string.ascii_lowercase):
            for i in range(count):
                yield part, label, name, letter(name.upper() if i % 2 else name, rng)
