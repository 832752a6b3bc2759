"""One way from a file to an RGB picture; what cannot be read is a sentence that names it."""

import io
import json
import os
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from dassl_blackbox.trainers.blackbox.data import (
    CLEAR,
    DEEP,
    DIM,
    TURNED,
    Pictures,
    look,
    ordered_loader,
)
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from PIL import Image
from support import build

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
GREYS = np.repeat(GREY[..., None], 3, 2)


def white(colour, alpha):
    """What is seen of it on white paper."""
    share = alpha[..., None].astype(float) / 255
    return np.rint(share * colour + (1 - share) * 255)


def turned(colour, orientation):
    exif, image = Image.Exif(), Image.fromarray(colour)
    exif[0x0112] = orientation
    return image, {"exif": exif}


def palette(transparency):
    image = Image.fromarray(COLOUR).quantize(16)
    seen = np.asarray(image.convert("RGB")).copy()
    alpha = np.full(GREY.shape, 255, np.uint8)
    if isinstance(transparency, int):
        alpha[np.asarray(image) == transparency] = 0
    else:
        for index, value in enumerate(transparency):
            alpha[np.asarray(image) == index] = value
    return image, {"transparency": transparency}, white(seen, alpha)


def of(array, dtype, scale=1):
    return Image.fromarray((array.astype(np.float64) * scale).astype(dtype))


ODD = {  # name: (format, picture, how it is saved, what is seen of it, the rule)
    "16-bit PNG": ("PNG", of(GREY, np.uint16, 257), {}, GREYS, DEEP),
    "16-bit PGM": ("PPM", of(GREY, np.uint16, 257), {}, GREYS, DEEP),
    "16-bit TIFF": ("TIFF", of(GREY, np.uint16, 257), {}, GREYS, DEEP),
    "16-bit PNG, dark": ("PNG", of(GREY, np.uint16), {}, np.rint(GREYS / 257), DEEP + DIM),
    "32-bit TIFF to 255": ("TIFF", of(GREY, np.int32), {}, GREYS, DEEP),
    "32-bit TIFF to 65,535": ("TIFF", of(GREY, np.int32, 257), {}, GREYS, DEEP),
    "float TIFF to 1": ("TIFF", of(GREY, np.float32, 1 / 255), {}, GREYS, DEEP),
    "float TIFF to 255": ("TIFF", of(GREY, np.float32), {}, GREYS, DEEP),
    "16-bit TIFF, white is 0": (
        *("TIFF", of(GREY, np.uint16, 257), {"tiffinfo": {262: 0}}, 255 - GREYS),
        DEEP,
    ),
    "16-bit TIFF to 4,095": (
        *("TIFF", of(GREY, np.uint16, 4095 / 255), {"tiffinfo": {340: 0, 341: 4095}}),
        *(np.rint((GREYS * (4095 / 255)).astype(int) * (255 / 4095)), DEEP),
    ),
    "float TIFF from -1 to 1, white is -1": (
        *("TIFF", of(GREY / 127.5 - 1, np.float32)),
        *({"tiffinfo": {262: 0, 340: -1.0, 341: 1.0}}, 255 - GREYS, DEEP),
    ),
    "16-bit PNG, one level clear": (
        *("PNG", of(GREY, np.uint16, 257), {"transparency": int(GREY[0, 0]) * 257}),
        np.where(GREYS == GREY[0, 0], 255, GREYS),
        DEEP,
    ),
    "RGBA": ("PNG", Image.fromarray(np.dstack([COLOUR, ALPHA])), {}, white(COLOUR, ALPHA), CLEAR),
    "RGBA WebP": (
        *("WEBP", Image.fromarray(np.dstack([COLOUR, ALPHA])), {"lossless": True, "exact": True}),
        white(COLOUR, ALPHA),
        CLEAR,
    ),
    "grey and alpha": (
        *("PNG", Image.fromarray(np.dstack([GREY, ALPHA])), {}),
        white(GREYS, ALPHA),
        CLEAR,
    ),
    "palette, one clear": ("PNG", *palette(3), CLEAR),
    "palette, several": ("PNG", *palette(b"\x00\x80\xf0"), CLEAR),
    "GIF": ("GIF", *palette(3), CLEAR),
    "RGB, one colour clear": (
        *("PNG", Image.fromarray(COLOUR), {"transparency": tuple(map(int, COLOUR[0, 0]))}),
        np.where((COLOUR == COLOUR[0, 0]).all(2, keepdims=True), 255, COLOUR),
        CLEAR,
    ),
    "grey, one level clear": (
        *("PNG", Image.fromarray(GREY), {"transparency": int(GREY[0, 0])}),
        np.where(GREYS == GREY[0, 0], 255, GREYS),
        CLEAR,
    ),
    "upside down": ("PNG", *turned(COLOUR, 3), COLOUR[::-1, ::-1], TURNED),
    "mirrored": ("PNG", *turned(COLOUR, 2), COLOUR[:, ::-1], TURNED),
    "lying": ("PNG", *turned(COLOUR, 6), np.rot90(COLOUR, -1), TURNED),
    "lying, in WebP": (
        *("WEBP", Image.fromarray(COLOUR), {"lossless": True, **turned(COLOUR, 8)[1]}),
        np.rot90(COLOUR),
        TURNED,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_an_odd_picture_shows_is_kept(name, tmp_path):
    form, image, options, seen, rule = ODD[name]
    path = str(tmp_path / "odd")
    image.save(path, form, **options)
    picture, rules = look(path)
    decoded = np.asarray(picture).astype(int)
    assert decoded.shape == seen.shape and np.abs(decoded - seen).max() <= (rule == CLEAR)
    assert "".join(rules) == rule and "".join(look(path, False)[1]) == rule.removesuffix(DIM)


@pytest.mark.parametrize(
    "mode, form", [(m, f) for f in ("PNG", "GIF", "BMP") for m in ("1", "L", "P", "RGB")]
    + [(m, f) for f in ("JPEG", "TIFF") for m in ("L", "RGB", "CMYK")]
    + [("RGBA", "PNG")],
)  # fmt: skip
def test_an_ordinary_picture_is_what_pillow_makes(mode, form, tmp_path):
    path = str(tmp_path / "picture")
    Image.fromarray(COLOUR).convert(mode).save(path, form)  # RGBA: all of it opaque
    picture, rules = look(path)
    with Image.open(path) as image:
        assert picture.tobytes() == image.convert("RGB").tobytes()
    assert rules == ([CLEAR] if mode == "RGBA" else [])


@pytest.mark.parametrize("levels", [[-1.0, 3.0], [0, 7e4], [np.nan, 1], [0, np.inf]])
def test_levels_of_no_known_range_are_refused(levels, tmp_path):
    Image.fromarray(np.array([levels], np.float32)).save(tmp_path / "odd.tif")
    with pytest.raises(BlackBoxError, match="odd.tif cannot be decoded .its levels go from"):
        Pictures(0).open(str(tmp_path / "odd.tif"))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height):
    """A PNG of a few bytes that claims so many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def damaged(seed):
    """Files of several formats, cut, with bytes changed, or with others' bytes in them."""
    rng = random.Random(seed)
    for form in (
        "PNG",
        "JPEG",
        "GIF",
        "TIFF",
        "WEBP",
        "BMP",
        "PPM",
        "JPEG2000",
        "ICO",
        "TGA",
        "PCX",
    ):
        file, (image, exif) = io.BytesIO(), turned(COLOUR, 5)
        image.save(file, form, **(exif if form in ("JPEG", "WEBP") else {}))
        whole = file.getvalue()
        for _ in range(12):
            data = bytearray(whole)
            for _ in range(rng.choice((0, 1, 8, 64))):
                data[rng.randrange(len(data) if rng.random() < 0.5 else 64)] = rng.randrange(256)
            yield bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
    yield from (
        b"",
        b"no image",
        b"\x00" * 99,
        png(0, 0),
        png(10**4, 10**4),
        png(2**31 - 1, 2**31 - 1),
    )


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_picture_is_a_picture_or_a_sentence(tmp_path):
    path, refused = str(tmp_path / "p"), 0
    for data in damaged(0):
        with open(path, "wb") as file:
            file.write(data)
        for decoding in (False, True):
            try:
                look(path, decoding)
            except BlackBoxError as error:
                text, refused = str(error), refused + 1
                assert text.startswith(f"The image {path} cannot be decoded (") and "\n" not in text
    assert refused > 100


@pytest.mark.parametrize("pixels", [(10**4, 10**4), (2 * 10**4, 2 * 10**4)])
@pytest.mark.filterwarnings("ignore")  # Pillow's, about the smaller one
def test_a_decompression_bomb_is_named(pixels, tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(*pixels))
    pictures = Pictures(0)
    pictures.paths.add(str(tmp_path / "bomb.png"))
    with pytest.raises(BlackBoxError, match="bomb.png cannot be decoded .*(truncated|400000000)"):
        pictures.load("train")


def no_file(path, kind):
    {
        "a pipe": lambda: os.mkfifo(path),
        "a folder": lambda: path.mkdir(),
        "a link to itself": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to("nowhere"),
        "nothing": lambda: None,
    }[kind]()


@pytest.mark.parametrize(
    "kind", ["a pipe", "a folder", "a link to itself", "a link to nothing", "nothing"]
)
def test_what_is_no_file_is_named_and_not_waited_for(kind, tmp_path):
    path = tmp_path / b"p\xff\n.png".decode("utf-8", "surrogateescape")
    no_file(path, kind)
    with pytest.raises(BlackBoxError) as caught:
        Pictures(0).open(str(path))
    assert str(caught.value).startswith(f"The image {tmp_path}/p\\udcff\\n.png cannot be decoded (")


# Every read of a run


def remade(data_root, root, change):
    """Digits with every image changed: `change(path of an image, array [H, W])` writes it."""
    split = json.loads((data_root / "digits" / "split_digits.json").read_text())
    for part in split:
        for image, *_ in split[part] if part != "version" else ():
            path = root / "digits" / "images" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            change(path, np.asarray(Image.open(data_root / "digits" / "images" / image)))
    (root / "digits" / "split_digits.json").write_text(json.dumps(split))
    return root


def sixteen(path, array):
    of(array, np.uint16, 257).save(path)


def inverse_alpha(path, array):
    """Black ink on nothing: white paper shows through."""
    Image.fromarray(np.dstack([0 * array, 255 - array])).save(path)


def lying(path, array):
    image, options = turned(np.ascontiguousarray(np.rot90(array)), 6)
    image.save(path, **options)


def loaders(trainer):
    """Pixels of every loader that a run reads, by image."""
    items = trainer.dm.dataset.train_x
    every = {"test": trainer.test_loader, "val": trainer.val_loader, "x": trainer.train_loader_x}
    every["set"] = ordered_loader(trainer.cfg, items, trainer.pictures)
    made = trainer.cfg, items, trainer.pictures, trainer.augmentation, 16
    every["head"] = ordered_loader(*made, shuffled=True)
    for name, loader in every.items():
        torch.manual_seed(0)
        for batch in loader:
            for path, pixels in zip(batch["impath"], batch["img"]):
                yield name, os.path.basename(path), pixels


@pytest.mark.parametrize(
    "change, words",
    [
        (sixteen, "of more than 8 bits (scaled to 8"),
        (inverse_alpha, "with transparency (composited on white"),
        (lying, "with an EXIF orientation (applied"),
    ],
)
def test_odd_pictures_are_seen_by_every_loader(change, words, data_root, tmp_path, capsys):
    trainers = [
        build("ZIP", root, tmp_path / "out", "DATASET.NUM_SHOTS", 1, "INPUT.CACHE_MB", 0)
        for root in (data_root, remade(data_root, tmp_path, change))
    ]
    trainers[1].check_training()
    notes = [line for line in capsys.readouterr().out.splitlines() if "CoOp's results" in line]
    assert len(notes) == 2
    assert notes[0].startswith(f"Note: Digits, val and test: of 71 images 71 {words}")
    assert notes[1].startswith(f"Note: Digits, train: of 10 images 10 {words}")
    for plain, odd in zip(*(loaders(trainer) for trainer in trainers), strict=True):
        assert plain[:2] == odd[:2] and torch.equal(plain[2], odd[2])
