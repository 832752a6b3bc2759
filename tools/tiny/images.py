"""The images that the tiny CLIP is trained on: drawn, and cut out of photographs."""

import io
import math
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from dassl_blackbox.datasets import render
from open_clip.constants import OPENAI_DATASET_MEAN as MEAN
from open_clip.constants import OPENAI_DATASET_STD as STD
from PIL import Image
from torchvision.transforms.functional import normalize

# None of the typefaces that Letters draws with (FONTS of datasets/render.py).
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmb10",
    "cmtt10",
)
S = 48  # side of the masks and of the stored photographs; the model sees 32 px cut out of it


def mask_bank(
    classes: list[dict], rng: random.Random
) -> tuple[torch.Tensor, dict[int, np.ndarray]]:
    """Masks `[M, S, S]` uint8 and, for every drawn class, the indices of its masks (shared between
    colours).
    """
    masks, index, by_what = [], {}, {}

    def add(new):
        masks.extend(new)
        return np.arange(len(masks) - len(new), len(masks))

    for i, cls in enumerate(classes):
        if "glyphs" in cls:
            index[i] = add(
                [
                    render.character(g, f, S, h)
                    for g in cls["glyphs"]
                    for f in FONTS
                    for h in (24, 30, 36)
                ]
            )
        elif "what" in cls:
            what = cls["what"]
            if what not in by_what:
                by_what[what] = add(
                    [
                        render.pattern(what, S, rng.uniform(5, 14), rng)
                        if what in render.PATTERNS
                        else render.shape(what, S, rng.uniform(8, 18), rng)
                        for _ in range(300)
                    ]
                )
            index[i] = by_what[what]
    return torch.from_numpy(np.stack(masks)), index


def load_photos(folder: str) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    """Photographs `[N, 3, S, S]` uint8, labels `[N]` and class names."""
    images, labels, names = [], [], []
    for path in sorted(Path(folder).glob("tiny-imagenet-pretrain-*.npz")):
        z = np.load(path)
        names = [str(n) for n in z["classnames"]]
        offsets, jpeg = z["offsets"], z["jpeg"]
        for a, b in pairwise(offsets):
            picture = (
                Image.open(io.BytesIO(jpeg[a:b].tobytes()))
                .convert("RGB")
                .resize((S, S), Image.BICUBIC)
            )
            images.append(np.asarray(picture).transpose(2, 0, 1))
        labels.append(z["labels"])
    return torch.from_numpy(np.stack(images)), np.concatenate(labels).astype(int), names


def warp(
    images: torch.Tensor,
    scale: tuple[float, float],
    turn: float,
    shear: float,
    bend: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Random zoom, rotation, shear, shift and smooth bending.

    Args:
        images: `[B, C, S, S]` floats; the result is `[B, C, 32, 32]`.
        scale: bounds of the zoom's logarithm.
        turn, shear, bend: the largest angle in radians, slant, and shift in halves of a side.
    """
    n = len(images)

    def u(low, high):
        return low + (high - low) * torch.rand(n, generator=generator)

    zoom_x = torch.exp(u(*scale))
    zoom_y = zoom_x * torch.exp(u(-0.2, 0.2))
    angle, slant = u(-turn, turn), u(-shear, shear)
    c, s = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([c / zoom_x, (slant * c - s) / zoom_x, u(-0.15, 0.15)], 1),
            torch.stack([s / zoom_y, (slant * s + c) / zoom_y, u(-0.15, 0.15)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    if bend:
        field = torch.randn(n, 2, 4, 4, generator=generator) * (
            bend * torch.rand(n, 1, 1, 1, generator=generator)
        )
        grid = grid + F.interpolate(field, (32, 32), mode="bicubic", align_corners=False).permute(
            0, 2, 3, 1
        )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def paint(masks: torch.Tensor, colours: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Ink on a contrasting background, in 0..1: `[B, 1, 32, 32]` -> `[B, 3, 32, 32]`.

    Args:
        colours: `[B, 3]` of the ink; NaN: any.
    """
    n = len(masks)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    free = torch.isnan(colours[:, :1])
    grey = rand(n, 1).expand(n, 3)
    ink = torch.where(
        free, torch.where(rand(n, 1) < 0.6, grey, rand(n, 3)), colours + 0.12 * (rand(n, 3) - 0.5)
    )
    choices = torch.where(rand(n, 8, 1) < 0.6, rand(n, 8, 1).expand(n, 8, 3), rand(n, 8, 3))
    contrast = (choices - ink[:, None]).norm(dim=-1) > 0.6
    ground = choices[torch.arange(n), contrast.float().argmax(1)]
    # white on black, as scans often are, for a quarter of the free ones
    scan = free & (rand(n, 1) < 0.25)
    ink, ground = (
        torch.where(scan, torch.ones_like(ink), ink),
        torch.where(scan, torch.zeros_like(ground), ground),
    )
    shade = 1 + 0.3 * (rand(n, 1, 1, 1) - 0.5) * torch.linspace(-1, 1, 32)[None, None, None]
    return (ground[:, :, None, None] * shade + masks * (ink - ground)[:, :, None, None]).clamp(0, 1)


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Low resolution for a third of the images, noise for all; then the model's normalisation."""
    n = len(images)
    pick = torch.rand(n, generator=generator)
    for side, low, high in ((8, 0.0, 0.15), (12, 0.15, 0.33)):
        rows = (pick >= low) & (pick < high)
        if rows.any():
            small = F.interpolate(images[rows], (side, side), mode="area")
            images[rows] = F.interpolate(small, (32, 32), mode="bicubic", align_corners=False)
    noise = (
        0.08
        * torch.rand(n, 1, 1, 1, generator=generator)
        * torch.randn(images.shape, generator=generator)
    )
    images = (images + noise).clamp(0, 1)
    return normalize(images, MEAN, STD)


def thicken(masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Bolder strokes for a part of the characters: handwriting is thicker than type."""
    pick = torch.rand(len(masks), generator=generator)
    for kernel, low, high in ((3, 0.0, 0.3), (5, 0.3, 0.5)):
        rows = (pick >= low) & (pick < high)
        if rows.any():
            masks[rows] = F.max_pool2d(masks[rows], kernel, 1, kernel // 2)
    return masks


def draw_batch(
    ids: list[int],
    classes: list[dict],
    masks: torch.Tensor,
    index: dict[int, np.ndarray],
    rng: random.Random,
    generator: torch.Generator,
) -> torch.Tensor:
    """Drawn images of the given classes, normalised, `[B, 3, 32, 32]`."""
    picked = torch.stack([masks[rng.choice(index[i])] for i in ids])[:, None].float() / 255
    character = torch.tensor(["glyphs" in classes[i] for i in ids])
    colours = torch.tensor(
        [
            [math.nan] * 3
            if "glyphs" in classes[i]
            else [v / 255 for v in render.COLOURS[classes[i]["colour"]]]
            for i in ids
        ]
    )
    out = torch.empty(len(ids), 1, 32, 32)
    if character.any():
        out[character] = warp(
            thicken(picked[character], generator), (-0.1, 0.55), 0.25, 0.35, 0.09, generator
        )
    if (~character).any():
        out[~character] = warp(picked[~character], (-0.2, 0.3), 0.15, 0.1, 0.0, generator)
    return degrade(paint(out, colours, generator), generator)


def photo_batch(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """`[B, 3, S, S]` uint8, normalised to `[B, 3, 32, 32]`; without a generator unchanged."""
    images = images.float() / 255
    if generator is not None:
        flip = torch.rand(len(images), generator=generator) < 0.5
        images[flip] = images[flip].flip(-1)
        images = warp(images, (0.0, 0.5), 0.1, 0.05, 0.0, generator)
    else:
        images = F.interpolate(images, (32, 32), mode="area")
    return normalize(images, MEAN, STD)
