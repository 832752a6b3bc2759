"""Shapes: two dozen phrases such as "red circle".

Smaller, more turned and on busier grounds than what the embedded model was trained on.
"""

import random

import numpy as np
from PIL import Image

from . import render
from .letters import COUNTS

NAMES = (
    "red circle",
    "red star",
    "red stripes",
    "green triangle",
    "green square",
    "green dots",
    "blue circle",
    "blue heart",
    "blue checkerboard",
    "yellow star",
    "yellow diamond",
    "yellow ring",
    "orange pentagon",
    "orange cross",
    "purple heart",
    "purple triangle",
    "purple grid",
    "pink crescent",
    "pink ring",
    "brown square",
    "brown arrow",
    "white cross",
    "white crescent",
    "black arrow",
)


def drawing(name, rng):
    """One picture of 32 x 32."""
    colour, kind = name.split()
    shade = rng.uniform(0.72, 1.12)
    ink = [min(255, shade * value + rng.uniform(-14, 14)) for value in render.COLOURS[colour]]
    if kind in render.PATTERNS:
        large = Image.fromarray(render.pattern(kind, 64, rng.uniform(5, 11), rng))
        mask = large.rotate(rng.uniform(0, 180), Image.BICUBIC).crop((16, 16, 48, 48))
        # which of two colours is the pattern's must be plain: the ground is nearly grey
        distance, tint = 110, 20
    else:
        mask = render.shape(kind, 32, rng.uniform(5, 9), rng, stretch=0.25, tilt=0.8)
        distance, tint = 120, 90

    def ground():
        grey = rng.uniform(0, 255)
        return [min(255, max(0, grey + rng.uniform(-tint, tint))) for _ in range(3)]

    return render.scene(
        np.asarray(mask),
        ink,
        render.grounds(ink, distance, ground),
        rng.uniform(5, 25),
        rng.uniform(4, 24),
        rng,
    )


def pictures():
    rng = random.Random(0)
    for part, count in COUNTS.items():
        for label, name in enumerate(NAMES):
            for _ in range(count):
                yield part, label, name, drawing(name, rng)
