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

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

CLASSES, PARTS = 20, {"train": (0, 16), "val": (16, 20), "test": (20, 50)}
PHOTOGRAPHS = 50  # of a class


def contours(image):
    return ImageOps.grayscale(image).filter(ImageFilter.CONTOUR).convert("RGB")


def rendition(image):
    red, green, blue = ImageOps.posterize(image, 2).split()
    return Image.merge("RGB", (green, blue, red))


def photographs(archive):
    """{class name: its unseen photographs} of classes that the model knows: every ninth of the 180,
    by label.
    """
    known = [
        label
        for label in range(len(archive["classnames"]))
        if label not in set(archive["novel"].tolist())
    ]
    if len(known) < CLASSES:
        raise SystemExit(f"error: the archive has {len(known)} known classes of {CLASSES}.")
    jpeg, offsets, chosen = archive["jpeg"], archive["offsets"], {}
    for label in known[:: len(known) // CLASSES][:CLASSES]:
        name = str(archive["classnames"][label]).split(",")[0].strip()
        if name in chosen:
            raise SystemExit(f"error: two classes of the archive are called '{name}'.")
        chosen[name] = [
            jpeg[offsets[i] : offsets[i + 1]].tobytes()
            for i in np.flatnonzero(archive["labels"] == label)[:PHOTOGRAPHS]
        ]
        if len(chosen[name]) < PHOTOGRAPHS:
            raise SystemExit(
                f"error: '{name}' has {len(chosen[name])} photographs of {PHOTOGRAPHS}."
            )
    return chosen


def save(folder, images, change=None):
    folder.mkdir(parents=True)
    for i, data in enumerate(images):
        if change is None:
            (folder / f"{i:02d}.jpg").write_bytes(data)
        else:
            change(Image.open(io.BytesIO(data)).convert("RGB")).save(folder / f"{i:02d}.png")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", help="the .npz of held-out photographs")
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    args = parser.parse_args()
    if args.folder.exists():
        raise SystemExit(
            f"error: {args.folder} is there already. Move it away, or give another folder."
        )
    with np.load(args.archive) as archive:
        chosen = photographs(archive)
    numbered = args.folder / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    for label, (name, images) in enumerate(chosen.items()):
        wnid, first = f"n{label:08d}", images[20:35]
        for part, (start, stop) in PARTS.items():
            save(args.folder / part / name.replace(" ", "_"), images[start:stop])
        save(args.folder / "imagenet" / "images" / "train" / wnid, images[:16])
        save(args.folder / "imagenet" / "images" / "val" / wnid, first)
        save(numbered / str(label), images[35:50])
        save(args.folder / "imagenet-sketch" / "images" / wnid, first, contours)
        save(args.folder / "imagenet-rendition" / "imagenet-r" / wnid, first, rendition)
    for folder in ("imagenet", "imagenetv2", "imagenet-sketch", "imagenet-rendition"):
        lines = [f"n{label:08d} {name}" for label, name in enumerate(chosen)]
        (args.folder / folder / "classnames.txt").write_text(
            "\n".join(lines) + "\n", encoding="utf-8"
        )
    print(f"{args.folder}: {', '.join(chosen)}")


if __name__ == "__main__":
    main()
