"""Unseen photographs of 20 classes that the embedded model knows, as folders:

    python tools/unpack_photos.py tiny-imagenet-heldout.npz data/photos

Writes `train`, `val` and `test` (16 / 4 / 30 a class) for the data set ImageFolder, whose root is
that folder. Beside them, in ImageNet's layout, the same classes for the protocol of domain
generalisation: `imagenet` (train 16, val the first 15 test photographs), `imagenetv2` (the other
15), `imagenet-sketch` (contours of the first 15) and `imagenet-rendition` (the first 15 posterised,
their colours turned).

The archive holds `jpeg` (bytes, one after the other), `offsets` [N + 1], `labels` [N], `classnames`
and `novel` (classes that the model never saw).
"""

import io
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

CLASSES = 20


def contours(image):
    return ImageOps.grayscale(image).filter(ImageFilter.CONTOUR).convert("RGB")


def rendition(image):
    red, green, blue = ImageOps.posterize(image, 2).split()
    return Image.merge("RGB", (green, blue, red))


def photographs(archive):
    """{class name: its 50 photographs} of every ninth of the 180 classes that the model knows."""
    jpeg, offsets, chosen = archive["jpeg"], archive["offsets"], {}
    known = np.setdiff1d(np.arange(len(archive["classnames"])), archive["novel"])
    for label in known[:: len(known) // CLASSES][:CLASSES]:
        rows = np.flatnonzero(archive["labels"] == label)[:50]
        name = str(archive["classnames"][label]).split(",")[0].strip()
        chosen[name] = [jpeg[offsets[i] : offsets[i + 1]].tobytes() for i in rows]
    if sorted(map(len, chosen.values())) != [50] * CLASSES:
        raise SystemExit(f"error: the archive lacks {CLASSES} known classes of 50 photographs.")
    return chosen


def save(folder, images, change=None):
    folder.mkdir(parents=True)
    for i, data in enumerate(images):
        if change is None:
            (folder / f"{i:02d}.jpg").write_bytes(data)
        else:
            change(Image.open(io.BytesIO(data)).convert("RGB")).save(folder / f"{i:02d}.png")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="the .npz of held-out photographs")
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    with np.load(args.archive) as archive:
        chosen = photographs(archive)
    variants = {  # a folder each: where its pictures lie, which they are, and what is made of them
        "imagenet/images/train": (slice(16), None),
        "imagenet/images/val": (slice(20, 35), None),
        "imagenetv2/imagenetv2-matched-frequency-format-val": (slice(35, 50), None),
        "imagenet-sketch/images": (slice(20, 35), contours),
        "imagenet-rendition/imagenet-r": (slice(20, 35), rendition),
    }
    parts = {"train": slice(16), "val": slice(16, 20), "test": slice(20, 50)}
    for label, (name, images) in enumerate(chosen.items()):
        for part, which in parts.items():
            save(args.folder / part / name.replace(" ", "_"), images[which])
        for place, (which, change) in variants.items():
            numbered = str(label) if place.startswith("imagenetv2") else f"n{label:08d}"
            save(args.folder / place / numbered, images[which], change)
    lines = [f"n{label:08d} {name}\n" for label, name in enumerate(chosen)]
    for variant in {place.partition("/")[0] for place in variants}:
        (args.folder / variant / "classnames.txt").write_text("".join(lines), encoding="utf-8")
    print(f"{args.folder}: {', '.join(chosen)}")
