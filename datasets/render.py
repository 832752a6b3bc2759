"""Masks (uint8, 255 for ink) of characters, shapes and patterns, decided by the rng passed in."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    **{"red": (210, 30, 35), "green": (35, 150, 55), "blue": (35, 70, 210)},
    **{"yellow": (240, 220, 40), "orange": (245, 140, 25), "purple": (125, 45, 160)},
    **{"pink": (250, 150, 190), "brown": (115, 70, 35), "white": (245, 245, 245)},
    "black": (15, 15, 15),
}
SHAPES = (
    *("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond"),
    *("pentagon", "crescent", "arrow", "rectangle"),
)
PATTERNS = ("stripes", "dots", "checkerboard", "grid")
# Letters alone draws with these; the embedded model was trained on other typefaces.
FONTS = (
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneralItalic", "STIXGeneralBolIta", "cmss10"),
)
SUPERSAMPLE = 4
REGULAR = {  # corners, and the radii that they take turns to have
    **{kind: (72, [1]) for kind in ("circle", "ring", "crescent")},
    **{"triangle": (3, [1]), "pentagon": (5, [1]), "star": (10, [1, 0.42])},
}
CROSS = (-0.28, 0.28, 0.28, 0.9, 0.9, 0.28, 0.28, -0.28, -0.28, -0.9, -0.9, -0.28)
CORNERS = {  # x and y
    "square": ((-0.75, 0.75, 0.75, -0.75), (-0.75, -0.75, 0.75, 0.75)),
    "rectangle": ((-0.95, 0.95, 0.95, -0.95), (-0.45, -0.45, 0.45, 0.45)),
    "diamond": ((0, 0.6, 0, -0.6), (-1, 0, 1, 0)),
    "cross": (CROSS, CROSS[-3:] + CROSS[:-3]),
    "arrow": (
        (-0.95, 0.15, 0.15, 0.95, 0.15, 0.15, -0.95),
        (-0.25, -0.25, -0.7, 0, 0.7, 0.25, 0.25),
    ),
}


def character(char, font, size, height):
    """Mask of a character in the middle, its longer side `height`, in a face of matplotlib's."""
    import matplotlib

    big, faces = size * SUPERSAMPLE, Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    canvas = Image.new("L", (3 * big, 3 * big))
    face = ImageFont.truetype(str(faces / f"{font}.ttf"), big)
    ImageDraw.Draw(canvas).text((big, big), char, font=face, fill=255)
    ink = canvas.crop(canvas.getbbox())
    scale = height / max(ink.size)
    ink = ink.resize([max(1, round(edge * scale)) for edge in ink.size], Image.LANCZOS)
    mask = Image.new("L", (size, size))
    mask.paste(ink, ((size - ink.width) // 2, (size - ink.height) // 2))
    return np.asarray(mask)


def outline(kind, turn):
    """Polygon of a shape inside the unit circle, turned by `turn` radians: a list of (x, y)."""
    if kind in REGULAR:  # the first corner points up
        n, radii = REGULAR[kind]
        turns = [(radii[i % len(radii)], turn + 2 * math.pi * i / n) for i in range(n)]
        return [(r * math.sin(angle), -r * math.cos(angle)) for r, angle in turns]
    if kind == "heart":
        t, cos = [2 * math.pi * i / 72 for i in range(72)], math.cos
        x = [math.sin(a) ** 3 for a in t]
        y = [-(13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a)) / 16 for a in t]
    else:
        x, y = CORNERS[kind]
    c, s = math.cos(turn), math.sin(turn)
    return [(c * x - s * y, s * x + c * y) for x, y in zip(x, y, strict=True)]


def shape(kind, size, radius, rng, stretch=0.15, tilt=0.3):
    """Mask of a filled shape of a radius in pixels, slightly stretched, tilted, off the centre."""
    big = size * SUPERSAMPLE
    canvas = Image.new("L", (big, big))
    draw, free = ImageDraw.Draw(canvas), max(0.0, size / 2 - radius)
    cx, cy = (SUPERSAMPLE * (size / 2 + rng.uniform(-free, free)) for _ in range(2))
    rx, ry = (SUPERSAMPLE * radius * rng.uniform(1 - stretch, 1) for _ in range(2))
    turn = rng.uniform(-tilt, tilt)

    def place(points, scale=1.0, dx=0.0):
        return [(cx + rx * (scale * x + dx), cy + ry * scale * y) for x, y in points]

    draw.polygon(place(outline(kind, turn)), fill=255)
    if kind == "ring":
        draw.polygon(place(outline("circle", 0), rng.uniform(0.5, 0.7)), fill=0)
    if kind == "crescent":
        aside = rng.choice((-1, 1)) * rng.uniform(0.4, 0.5)
        draw.polygon(place(outline("circle", 0), 0.85, aside), fill=0)
    return np.asarray(canvas.resize((size, size), Image.BOX))


def pattern(kind, size, period, rng):
    """Mask of a pattern that fills the frame and repeats every `period` pixels."""
    angle = rng.choice((0, math.pi / 2, math.pi / 4, -math.pi / 4)) + rng.uniform(-0.15, 0.15)
    y, x = np.mgrid[:size, :size] + rng.uniform(0, period)
    u = (math.cos(angle) * x + math.sin(angle) * y) / period % 1
    v = (-math.sin(angle) * x + math.cos(angle) * y) / period % 1
    thin = rng.uniform(0.2, 0.3)
    ink = {
        "stripes": lambda: u < 0.5,
        "grid": lambda: (u < thin) | (v < thin),
        "checkerboard": lambda: (u < 0.5) ^ (v < 0.5),
        "dots": lambda: (u - 0.5) ** 2 + (v - 0.5) ** 2 < rng.uniform(0.08, 0.14),
    }[kind]()
    return (ink * 255).astype(np.uint8)


def scene(mask, ink, grounds, texture, noise, rng):
    """RGB image of the ink (0..255) through a mask, over two grounds that fade into each other;
    `texture` is the deviation of smooth blotches on the ground, `noise` of grain on every pixel.
    """
    size, grain = len(mask), np.random.default_rng(rng.getrandbits(64))
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    fade = np.clip(0.5 + math.cos(angle) * x + math.sin(angle) * y, 0, 1)[..., None]
    blotches = Image.fromarray(grain.normal(0, texture, (6, 6)).astype(np.float32))
    smooth = np.asarray(blotches.resize((size, size), Image.BICUBIC))[..., None]
    ground = (1 - fade) * np.array(grounds[0]) + fade * np.array(grounds[1]) + smooth
    cover = mask[..., None] / 255
    pixels = (1 - cover) * ground + cover * np.array(ink) + grain.normal(0, noise, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def grounds(ink, distance, draw):
    """Two colours from `draw()` at least `distance` away from the ink, as halfway between them."""
    while True:
        one, other = draw(), draw()
        middle = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
        if min(math.dist(ink, colour) for colour in (one, middle, other)) >= distance:
            return one, other
