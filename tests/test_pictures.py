"""The data path: pictures are decoded once, within a bound, and augmented from the seed."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.utils import set_random_seed
from dassl_blackbox.trainers.blackbox import data
from dassl_blackbox.trainers.blackbox.data import (
    Augmentation,
    ImageReader,
    Pictures,
    ordered_loader,
    training_images,
)
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.rng import rng_state
from PIL import Image
from support import assert_same, build, last_checkpoint, random_sources, run


@pytest.fixture
def files(tmp_path):
    """Six JPEGs of 40 x 30 noise, 4,800 bytes each when decoded (Pillow keeps four a pixel)."""
    rng, paths = np.random.default_rng(0), []
    for i in range(6):
        paths.append(str(tmp_path / f"{i}.jpg"))
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def read(monkeypatch):
    """Paths of the files that were decoded, in order."""
    seen, to_rgb = [], data.to_rgb
    monkeypatch.setattr(
        data, "to_rgb", lambda image: (seen.append(image.filename), to_rgb(image))[1]
    )
    return seen


def keeper(paths, limit):
    pictures = Pictures(limit)
    pictures.paths.update(paths)
    return pictures


def same(pictures, path):
    with Image.open(path) as image:
        return pictures.open(path).tobytes() == image.convert("RGB").tobytes()


def test_each_file_is_decoded_once(files, read):
    pictures = keeper(files, 10**6)
    for _ in range(3):
        pictures.load("train")
        assert all(same(pictures, path) for path in files)
    assert len(read) == 6


def test_what_training_knows_its_images_by_is_read_with_them(files, monkeypatch):
    items = [Datum(path, classname="a") for path in files]
    pictures, expected = keeper(files, 0), training_images(items)
    pictures.load("train")
    monkeypatch.setattr(Path, "read_bytes", None)
    monkeypatch.setattr("os.stat", None)
    assert training_images(items, pictures) == expected


@pytest.mark.parametrize("limit, kept", [(0, 0), (3 * 4800 + 100, 3), (10**6, 5)])
def test_within_the_bound_and_no_others(limit, kept, files):
    pictures = keeper(files[:5], limit)
    pictures.load("train")
    pictures.check(files[5:], 10**6, "test")
    assert all(same(pictures, path) for path in files)
    assert set(pictures.decoded) == set(files[:kept])


@pytest.mark.parametrize("limit", [0, 10**6])
def test_a_broken_file_is_named_whoever_asks(files, limit):
    with open(files[2], "wb") as file:
        file.write(b"no image")
    pictures = keeper(files, limit)
    for ask in (lambda: pictures.load("train"), lambda: pictures.open(files[2])):
        with pytest.raises(
            BlackBoxError, match=f"The image {files[2]} cannot be decoded .cannot id"
        ):
            ask()


@pytest.mark.parametrize("name", ["ZIP", "CraFT", "WhiteBox"])
def test_a_run_does_not_depend_on_where_pictures_are_kept_and_read(name, data_root, tmp_path):
    """Bit for bit: the augmentation draws the same from the same pictures."""
    ways = [
        ("INPUT.CACHE_MB", 0),
        ("INPUT.CACHE_MB", 2048, "DATALOADER.NUM_WORKERS", 2),
    ]
    ends, limits = [], ("ORACLE.MAX_QUERIES", 60, "OPTIM.MAX_EPOCH", 2)
    for i, way in enumerate(ways):
        assert run(name, data_root, tmp_path / str(i), *limits, *way) == 0
        ends.append(last_checkpoint(tmp_path / str(i)))
    for end in ends[1:]:
        assert_same(ends[0]["state_dict"], end["state_dict"])
        if name != "WhiteBox":
            assert_same(random_sources(ends[0]), random_sources(end))


# Augmentation

TRANSFORMS = {
    "torch": ("random_resized_crop", "random_flip", "normalize"),
    "Python, NumPy and torch": ("random_translation", "cutout", "gaussian_noise", "normalize"),
    "many": ("random_crop", "colorjitter", "randomgrayscale", "gaussian_blur", "normalize"),
}


def two_epochs(trainer, loader):
    """Indices and pixels of two epochs, and the random states afterwards."""
    set_random_seed(7)
    found = []
    for trainer.augmentation.epoch in range(2):
        for batch in loader:
            found.append((batch["index"], batch["img"]))
    return found, {**rng_state(), "cuda": []}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_pixels_and_order_do_not_depend_on_worker_processes(kind, data_root, tmp_path):
    options = "INPUT.TRANSFORMS", str(TRANSFORMS[kind])
    ends = []
    for workers in range(3):
        trainer = build("ZIP", data_root, tmp_path, "DATALOADER.NUM_WORKERS", workers, *options)
        made = trainer.cfg, trainer.dm.dataset.train_x, trainer.pictures, trainer.augmentation, 16
        loaders = trainer.train_loader_x, ordered_loader(*made, shuffled=True)
        ends.append([two_epochs(trainer, loader) for loader in loaders])
    for end in ends[1:]:
        assert_same(ends[0], end)


def test_all_that_dassls_wrapper_makes_is_drawn_so(data_root, tmp_path):
    trainer = build("ZIP", data_root, tmp_path)
    own = trainer.train_loader_x.dataset
    made = trainer.cfg, own.data_source, own.transform, True
    reader = ImageReader(trainer.pictures, trainer.augmentation, *made)
    torch.manual_seed(3)
    first, before = reader[5], rng_state()
    assert_same(reader[5], first)
    assert_same(rng_state(), before)
    with trainer.augmentation.of(5):
        assert_same(DatasetWrapper(*made)[5], first)


def test_an_image_has_another_crop_in_each_epoch_and_of_each_seed(data_root, tmp_path):
    def crops(seed):
        trainer = build("ZIP", data_root, tmp_path, "DATALOADER.TRAIN_X.BATCH_SIZE", 30, seed=seed)
        (first, second), _ = two_epochs(trainer, trainer.train_loader_x)
        for indices, pixels in first, second:
            yield from pixels[indices.argsort()]

    every = [crop for seed in (1, 1, 2) for crop in crops(seed)]
    assert torch.equal(torch.stack(every[:60]), torch.stack(every[60:120]))
    assert len({crop.numpy().tobytes() for crop in every}) == 120


def test_a_negative_seed_is_drawn_once_a_run():
    def draws(augmentation):
        with augmentation.of(3):
            return random.random(), np.random.rand(), float(torch.rand(1))

    one, other = Augmentation(-1), Augmentation(-1)
    assert draws(one) == draws(one) != draws(other)
    other.seed = one.seed  # as a checkpoint gives it
    assert draws(one) == draws(other) == draws(pickle.loads(pickle.dumps(one)))


# A bank of views


def views_of(trainer, epochs):
    """{image: its views by epoch}."""
    views = {}
    for epoch in range(epochs):
        trainer.augmentation.epoch = epoch
        for batch in trainer.train_loader_x:
            for index, image in zip(batch["index"].tolist(), batch["img"]):
                views.setdefault(index, {})[epoch] = image
    return views


@pytest.mark.parametrize(
    "workers, transforms", [(0, "torch"), (2, "torch"), (0, "Python, NumPy and torch")]
)
def test_views_take_turns(data_root, tmp_path, workers, transforms):
    options = (
        "INPUT.TRANSFORMS",
        str(TRANSFORMS[transforms]),
        "INPUT.VIEWS",
        2,
        "DATALOADER.NUM_WORKERS",
        workers,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        30,
    )
    first, second = (views_of(build("ZIP", data_root, tmp_path, *options), 4) for _ in range(2))
    assert len(first) == 30
    for index, views in first.items():
        assert (
            torch.equal(views[0], views[2])
            and torch.equal(views[1], views[3])
            and not torch.equal(views[0], views[1])
        )
        assert all(torch.equal(views[epoch], second[index][epoch]) for epoch in range(4))
    assert not torch.equal(
        first[0][0], views_of(build("ZIP", data_root, tmp_path, *options, seed=2), 1)[0][0]
    )


def test_after_its_views_no_image_is_encoded_again(data_root, tmp_path):
    trainer = build(
        "ZIP",
        data_root,
        tmp_path,
        "INPUT.VIEWS",
        2,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        30,
        "ORACLE.MAX_QUERIES",
        100,
        "TEST.NO_TEST",
        True,
    )
    encoded = []
    trainer.oracle.inner.model.visual.ln_post.register_forward_hook(
        lambda module, inputs, output: encoded.append(len(output))
    )
    trainer.train()
    assert sum(encoded) == 60  # ten steps of 30 images, two views of each
    assert trainer.oracle.counts["training"]["image_queries"] == 3000  # on the bill all the same


def test_with_batches_that_drop_some_images_nothing_is_encoded_twice(data_root, tmp_path):
    """30 images in batches of 8: six miss their turn in an epoch, and come later in small lots."""
    trainer = build(
        "ZIP",
        data_root,
        tmp_path,
        "INPUT.VIEWS",
        2,
        "ORACLE.MAX_QUERIES",
        600,
        "TEST.NO_TEST",
        True,
    )
    encoded = []
    trainer.oracle.inner.model.visual.ln_post.register_forward_hook(
        lambda module, inputs, output: encoded.append(len(output))
    )
    trainer.train()
    assert len(trainer.oracle.inner.store) == 60
    assert sum(encoded) <= 60 + 7 * len(encoded)  # a few unknown ones have company, at most seven
    assert len(encoded) < 30  # of sixty steps
