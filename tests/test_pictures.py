"""From a file to pixels: one way to an RGB picture, decoded once, augmented from the seed."""

import errno
import os
import pickle
import random
import struct
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from dassl.data.datasets import Datum
from dassl.utils import set_random_seed
from dassl_blackbox.trainers.blackbox import data
from dassl_blackbox.trainers.blackbox.data import (
    CLEAR,
    DEEP,
    DIM,
    TURNED,
    Pictures,
    look,
    training_images,
)
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.rng import rng_state
from PIL import Image
from support import assert_same, build, sentence
from torch.utils.data import DataLoader

RNG = np.random.default_rng(0)
GREY, ALPHA = RNG.integers(0, 256, (2, 20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREYS = np.repeat(GREY[..., None], 3, 2)
RGB, RGBA = Image.fromarray(COLOUR), Image.fromarray(np.dstack([COLOUR, ALPHA]))
EXACT = {"lossless": True, "exact": True}


def white(colour, alpha):
    """What is seen of it on white paper."""
    share = alpha[..., None].astype(float) / 255
    return np.rint(share * colour + (1 - share) * 255)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def palette(transparency):
    image = RGB.quantize(16)
    alpha = np.full(GREY.shape, 255, np.uint8)
    clear = {transparency: 0} if isinstance(transparency, int) else dict(enumerate(transparency))
    for index, value in clear.items():
        alpha[np.asarray(image) == index] = value
    return image, {"transparency": transparency}, white(np.asarray(image.convert("RGB")), alpha)


def of(array, dtype, scale=1):
    return Image.fromarray((array.astype(np.float64) * scale).astype(dtype))


DEEP_GREY, FLOAT = of(GREY, np.uint16, 257), of(GREY / 127.5 - 1, np.float32)
TO_4095 = np.rint((GREYS * (4095 / 255)).astype(int) * (255 / 4095))
GREY_ALPHA = Image.fromarray(np.dstack([GREY, ALPHA]))
ONE_LEVEL, ONE_COLOUR = int(GREY[0, 0]), tuple(map(int, COLOUR[0, 0]))
WITHOUT_LEVEL = np.where(GREYS == GREY[0, 0], 255, GREYS)
WITHOUT_COLOUR = np.where((COLOUR == COLOUR[0, 0]).all(2, keepdims=True), 255, COLOUR)
FROM_WHITE = {"tiffinfo": {262: 0, 340: -1.0, 341: 1.0}}
ODD = {  # name: (format, picture, how it is saved, what is seen of it, the rule)
    "16-bit PNG": ("PNG", DEEP_GREY, {}, GREYS, DEEP),
    "16-bit PNG, dark": ("PNG", of(GREY, np.uint16), {}, np.rint(GREYS / 257), DEEP + DIM),
    "32-bit TIFF to 65,535": ("TIFF", of(GREY, np.int32, 257), {}, GREYS, DEEP),
    "float TIFF to 1": ("TIFF", of(GREY, np.float32, 1 / 255), {}, GREYS, DEEP),
    "16-bit TIFF, white is 0": ("TIFF", DEEP_GREY, {"tiffinfo": {262: 0}}, 255 - GREYS, DEEP),
    "to 4,095": ("TIFF", of(GREY, np.uint16, 4095 / 255), {"tiffinfo": {341: 4095}}, TO_4095, DEEP),
    "float TIFF from -1 to 1, white is -1": ("TIFF", FLOAT, FROM_WHITE, 255 - GREYS, DEEP),
    "one level": ("PNG", DEEP_GREY, {"transparency": ONE_LEVEL * 257}, WITHOUT_LEVEL, DEEP),
    "RGBA": ("PNG", RGBA, {}, white(COLOUR, ALPHA), CLEAR),
    "grey and alpha": ("PNG", GREY_ALPHA, {}, white(GREYS, ALPHA), CLEAR),
    "palette, several": ("PNG", *palette(b"\x00\x80\xf0"), CLEAR),
    "GIF": ("GIF", *palette(3), CLEAR),
    "one colour": ("PNG", RGB, {"transparency": ONE_COLOUR}, WITHOUT_COLOUR, CLEAR),
    "upside down": ("PNG", RGB, turned(3), COLOUR[::-1, ::-1], TURNED),
    "lying, in WebP": ("WEBP", RGB, EXACT | turned(8), np.rot90(COLOUR), TURNED),
}


@pytest.mark.parametrize("name", ODD)
def test_what_an_odd_picture_shows_is_kept(name, tmp_path, capsys):
    form, image, options, seen, rule = ODD[name]
    path = str(tmp_path / "odd")
    image.save(path, form, **options)
    picture, rules = look(path)
    decoded = np.asarray(picture).astype(int)
    assert decoded.shape == seen.shape and np.abs(decoded - seen).max() <= (rule == CLEAR)
    assert "".join(rules) == rule and "".join(look(path, False)[1]) == rule.removesuffix(DIM)
    Pictures(0).check([path], 10**6, "train")
    assert f"Note: train: of 1 images 1 {rules[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "JPEG", "TIFF"])
def test_an_ordinary_picture_is_what_pillow_makes(form, tmp_path):
    path = str(tmp_path / "picture")
    for mode in ("L", "RGB", "CMYK") if form in ("JPEG", "TIFF") else ("1", "L", "P", "RGB"):
        RGB.convert(mode).save(path, form)
        picture, rules = look(path)
        with Image.open(path) as image:
            assert picture.tobytes() == image.convert("RGB").tobytes() and rules == []


def tiff(bits, form, data):
    """A TIFF of two pixels, of which Pillow writes none: of 12 bits a level, or signed."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    ifd = b"".join(struct.pack("<HHII", tag, 3, 1, n) for tag, n in {**tags, 339: form}.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 10)
    return head + ifd + bytes(4)


def test_the_top_of_a_tiffs_levels_is_that_of_its_bits(tmp_path):
    signed = struct.pack("<2h", 2**15 - 1, 0)
    for content in (tiff(12, 1, b"\xff\xf0\x00\x00"), tiff(16, 2, signed)):
        (tmp_path / "deep.tif").write_bytes(content)
        assert np.asarray(look(str(tmp_path / "deep.tif"))[0]).tolist() == [[[255] * 3, [0] * 3]]


def floats(*values):
    return lambda path: Image.fromarray(np.array([values], np.float32)).save(path, "TIFF")


ODD_NAME = b"p\xff\n.png".decode("utf-8", "surrogateescape")
# a picture of 16 bits in a format of stars
CARDS = ["SIMPLE = T", "BITPIX = 16", "NAXIS = 2", "NAXIS1 = 8", "NAXIS2 = 8", "BZERO = 32768"]
CARDS = [f"{card.split()[0]:<8}= {card.split()[2]:>20}".ljust(80) for card in CARDS]
STARS = ("".join(CARDS) + "END").ljust(2880).encode() + bytes(2880)
UNREADABLE = {
    "levels below 0": (floats(-1.0, 3.0), "its levels go from"),
    "no number": (floats(np.nan, 1), "its levels go from"),
    "stars": (lambda path: path.write_bytes(STARS), "more than 8 bits a level in FITS"),
    "narrow": (Image.new("1", (20, 20_020)).save, "20 x 20,020 pixels"),
    "a bomb": (lambda path: path.write_bytes(b"P5 20000 20000 255\n"), "400000000"),
    "cut": (lambda path: path.write_bytes(b"P5 1000 1000 255\n1234"), "truncated"),
    "a pipe": (os.mkfifo, "no regular file"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_named_and_not_waited_for(kind, tmp_path):
    path, (act, words), pictures = tmp_path / ODD_NAME, UNREADABLE[kind], Pictures(10**6)
    act(path)
    pictures.paths.add(str(path))
    for ask in (lambda: pictures.load("train"), lambda: pictures.open(str(path))):
        with pytest.raises(BlackBoxError, match=words) as caught:
            ask()
        named = f"The image {tmp_path}/p\\udcff\\n.png cannot be decoded ("
        assert str(caught.value).startswith(named)


SPACE = OSError(errno.ENOSPC, "No space left on device")
# as torch says it from its handler of signals, whatever is done at that moment
BUS = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's own
def test_worker_processes_that_fail_are_told(data_root, tmp_path, monkeypatch, capsys):
    shared = torch.UntypedStorage, "_new_shared", SPACE
    for of, name, error in (shared, (DataLoader, "__iter__", BUS)):
        with monkeypatch.context() as patch:
            patch.setattr(of, name, Mock(side_effect=error))
            text = sentence(capsys, "ZIP", data_root, tmp_path, "DATALOADER.NUM_WORKERS", 1)
        assert str(error).removesuffix(". It is") in text
        assert "/dev/shm" in text and "DATALOADER.NUM_WORKERS" in text


@pytest.mark.parametrize("limit, kept", [(0, 0), (3 * 4800 + 100, 3), (10**6, 5)])
def test_each_file_is_decoded_once_within_the_bound(limit, kept, tmp_path, monkeypatch):
    """Six JPEGs of 40 x 30 noise, 4,800 bytes each when decoded (Pillow keeps four a pixel)."""
    files, counted = [str(tmp_path / f"{i}.jpg") for i in range(6)], Mock(side_effect=data.to_rgb)
    for path in files:
        Image.fromarray(RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    monkeypatch.setattr(data, "to_rgb", counted)
    pictures, expected = Pictures(limit), training_images([Datum(path) for path in files[:5]])
    pictures.paths.update(files[:5])
    pictures.load("train")
    pictures.check(files[5:], 10**6, "test")
    assert counted.call_count == 6
    for path in files:
        with Image.open(path) as image:
            assert pictures.open(path).tobytes() == image.convert("RGB").tobytes()
    assert set(pictures.decoded) == set(files[:kept]) and counted.call_count == 12 - kept
    monkeypatch.setattr(Path, "read_bytes", None)  # what training knows its images by is read, too
    assert training_images([Datum(path) for path in files[:5]], pictures) == expected


def loaders(trainer):
    """Every loader of training images, and those of val and test."""
    made = trainer.cfg, trainer.pictures, trainer.dm.dataset.train_x, trainer.augmentation, 16
    shuffled, ordered = data.ordered_loader(*made, shuffled=True), data.ordered_loader(*made[:3])
    return trainer.train_loader_x, shuffled, ordered, trainer.val_loader, trainer.test_loader


def test_every_loader_reads_pictures_one_way(data_root, tmp_path, monkeypatch):
    trainer = build("ZIP", data_root, tmp_path)
    monkeypatch.setattr(Pictures, "open", lambda pictures, path: Image.new("RGB", (32, 32), "red"))
    for loader in loaders(trainer):
        for batch in loader:
            assert (batch["img"] == batch["img"][:1, :, :1, :1]).all()


# which draw from torch, Python and NumPy
DRAWN = "random_resized_crop", "random_translation", "cutout", "gaussian_noise", "normalize"
TRANSFORMS = "INPUT.TRANSFORMS", str(DRAWN)


def epochs(trainer, loader, count=2):
    """Indices and pixels of some epochs, and the random states afterwards."""
    set_random_seed(7)
    found = []
    for trainer.augmentation.epoch in range(count):
        for batch in loader:
            found.append((batch["index"], batch["img"]))
    return found, {**rng_state(), "cuda": []}


def test_pixels_and_order_depend_neither_on_workers_nor_on_what_is_kept(data_root, tmp_path):
    ends = []
    for megabytes, workers in ((2048, 0), (0, 2)):
        way = "INPUT.CACHE_MB", megabytes, "DATALOADER.NUM_WORKERS", workers
        trainer = build("ZIP", data_root, tmp_path, *TRANSFORMS, *way)
        trainer.check_training()
        ends.append([epochs(trainer, loader) for loader in loaders(trainer)[:2]])
    assert_same(*ends)


def test_a_negative_seed_is_drawn_once_a_run_and_each_image_has_its_own_draws():
    def draws(augmentation, image=3):
        with augmentation.of(image):
            return random.random(), np.random.rand(), float(torch.rand(1))

    one, other = data.Augmentation(-1), data.Augmentation(-1)
    assert draws(one) == draws(one) != draws(other) and draws(one) != draws(one, image=4)
    other.seed = one.seed  # as a checkpoint gives it
    assert draws(one) == draws(other) == draws(pickle.loads(pickle.dumps(one)))


@pytest.mark.parametrize("turns", [0, 2])
def test_an_image_has_another_view_in_each_epoch_and_of_each_seed(turns, data_root, tmp_path):
    def views(seed):
        """Pixels of the training images by epoch, `[epoch][image]`."""
        options = *TRANSFORMS, "INPUT.VIEWS", turns, "DATALOADER.TRAIN_X.BATCH_SIZE", 30
        trainer = build("ZIP", data_root, tmp_path, *options, seed=seed)
        batches, _ = epochs(trainer, trainer.train_loader_x, 4)
        return [pixels[indices.argsort()] for indices, pixels in batches]

    one, again, other = map(views, (1, 1, 2))
    assert_same(one, again)
    seen = {view.numpy().tobytes() for epoch in (*one, *other) for view in epoch}
    assert len(seen) == 2 * 30 * (turns or 4)
    assert not turns or torch.equal(one[0], one[2])


def test_after_its_views_no_image_is_encoded_again(data_root, tmp_path):
    """30 images in batches of 8: six miss their turn in an epoch, and come later in small lots."""
    options = "ORACLE.MAX_QUERIES", 600, "TEST.NO_TEST", True, "INPUT.VIEWS", 2
    trainer = build("ZIP", data_root, tmp_path, *options)
    encoded = []
    trainer.oracle.inner.model.visual.ln_post.register_forward_hook(
        lambda module, inputs, output: encoded.append(len(output))
    )
    trainer.train()
    assert len(trainer.oracle.inner.store) == 60  # two views of each
    assert trainer.oracle.counts["training"]["image_queries"] == 600 * 8  # all the same
    # a few unknown ones have company, at most seven
    assert sum(encoded) <= 60 + 7 * len(encoded) and len(encoded) < 30  # of sixty steps
