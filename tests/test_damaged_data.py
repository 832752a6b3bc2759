"""Damaged pictures and files: a sentence before anything is paid for, and never a traceback."""

import contextlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
import trees
from dassl_blackbox.datasets.listing import DatasetError
from dassl_blackbox.trainers.blackbox.data import training_images
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from support import REPO, build
from test_datasets import load
from trees import check_lines, said


@pytest.fixture
def pictures(tmp_path):
    """An ImageFolder's root."""
    root = tmp_path / "pictures"
    trees.make("ImageFolder", root)
    return root


# What is no picture, or no folder

NO_PICTURE = {
    "a pipe": lambda path: os.mkfifo(path),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_PICTURE)
@pytest.mark.parametrize("name", ["ImageFolder", "EuroSAT", "FGVCAircraft"])
def test_what_is_no_file_is_a_sentence(kind, name, tmp_path, capsys):
    trees.make(name, tmp_path)
    folder = tmp_path / trees.ROW[name].folder
    image = next(
        iter(sorted((folder / "test" if name == "ImageFolder" else folder).rglob("*.[pj]*g")))
    )
    image.unlink()
    NO_PICTURE[kind](image)
    text = said(capsys, name, tmp_path, tmp_path / "no")
    assert str(image) in text and "no regular file" in text
    if name != "ImageFolder":
        code, lines = check_lines(tmp_path, capsys)
        assert code == 1 and "no regular file" in lines[name]


DAMAGE = {
    "no image": lambda path: path.write_bytes(b"no image"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_damaged_picture_shows_before_anything_is_paid(kind, part, pictures, tmp_path, capsys):
    image = pictures / part / "red_circle" / "1.png"
    DAMAGE[kind](image)
    for trainer in ("ZIP", "WhiteBox"):
        text = said(capsys, "ImageFolder", pictures, tmp_path / "no", trainer=trainer)
        assert text.startswith(f"error: The image {image} cannot be decoded (")
        assert not (tmp_path / "no" / "queries.json").exists()
    out = said(
        *(capsys, "ImageFolder", pictures, tmp_path / "z"),
        trainer="ZeroshotOracle",
        code=part != "train",
    )
    assert part == "train" or str(image) in out


def test_of_many_pixels_only_the_headers_are_read(pictures, tmp_path, capsys, monkeypatch):
    DAMAGE["cut"](pictures / "test" / "red_circle" / "1.png")
    monkeypatch.setattr(f"{training_images.__module__}.FEW", 0)
    assert "cannot be decoded" in said(
        capsys, "ImageFolder", pictures, tmp_path / "out", trainer="ZeroshotOracle"
    )
    assert "Evaluate on the *test* set" in (tmp_path / "out" / "log.txt").read_text()


def test_a_picture_that_is_damaged_later_is_named_by_worker_processes(pictures, tmp_path):
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "imagefolder.yaml"
    options = "DATALOADER.NUM_WORKERS", 2
    trainer = build("ZeroshotOracle", pictures, tmp_path / "out", *options, flags=flags)
    image = pictures / "test" / "red_circle" / "1.png"
    DAMAGE["cut"](image)
    with pytest.raises(BlackBoxError) as caught:
        list(trainer.test_loader)
    assert f"The image {image} cannot be decoded (" in str(caught.value).splitlines()[-1]


def test_names_of_any_bytes(pictures, tmp_path, capsys):
    odd = b"\xff\x1b[31m\n.png".decode("utf-8", "surrogateescape")
    shutil.rmtree(pictures / "test")
    for folder in (pictures / "train").iterdir():
        (folder / "0.png").rename(folder / odd)
    for out in ("one", "two"):  # the split is made, and read
        assert said(capsys, "ImageFolder", pictures, tmp_path / out, code=0)
    (pictures / "train" / "red_circle" / odd).write_bytes(b"no image")
    text = said(capsys, "ImageFolder", pictures, tmp_path / "no", "DATASET.NUM_SHOTS", -1)
    assert "red_circle/\\udcff\\x1b[31m\\n.png cannot be decoded" in text
    for part in "train", "val":
        (pictures / part / "red_circle").rename(pictures / part / odd)
    (pictures / "split_imagefolder.json").unlink()
    assert "is not UTF-8" in said(capsys, "ImageFolder", pictures, tmp_path / "no")


@pytest.mark.parametrize("part", ["train", "test"])
def test_empty_parts(part, pictures, tmp_path, capsys):
    for folder in (pictures / part).iterdir():
        shutil.rmtree(folder)
    text = said(capsys, "ImageFolder", pictures, tmp_path / "no")
    assert f"there are no images in {pictures / part}" in text or "no class of it" in text
    (pictures / part).rmdir()
    (pictures / part).symlink_to(part)
    if part == "train":
        assert "train cannot be read" in said(capsys, "ImageFolder", pictures, tmp_path / "no")


# What a run is known by


def test_a_picture_that_changes_between_two_lives_of_a_run(pictures, tmp_path, capsys):
    assert said(capsys, "ImageFolder", pictures, tmp_path / "run", code=0)
    image = pictures / "train" / "red_circle" / "1.png"
    status = image.stat()
    trees.save(image, "red circle", 7)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    options = "ORACLE.MAX_QUERIES", 40, "DATASET.NUM_SHOTS", -1
    text = said(capsys, "ImageFolder", pictures, tmp_path / "run", *options)
    assert "training images" in text


@pytest.mark.parametrize("whole", [True, False])
def test_training_images_are_known_by_names_labels_and_contents(
    whole, pictures, tmp_path, monkeypatch
):
    if not whole:
        monkeypatch.setattr(f"{training_images.__module__}.WHOLE", 1000)
    items = load("ImageFolder", pictures).train_x
    found, image = training_images(items), Path(items[3].impath)
    shutil.copytree(pictures, tmp_path / "elsewhere")  # with its times
    assert training_images(load("ImageFolder", tmp_path / "elsewhere").train_x) == found
    assert training_images(items[:-1]) != found != training_images(items[::-1])
    data, status = image.read_bytes(), image.stat()
    os.utime(image, ns=(0, 0))
    assert (training_images(items) == found) == whole
    image.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (training_images(items) == found) != whole
    image.unlink()
    with pytest.raises(OSError, match=f"No such file or directory: '{image}'"):
        training_images(items)


# The check


NO_FILE = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "bytes": lambda path: path.write_bytes(b"\xff\x00"),
    "nested": lambda path: path.write_text("[" * 10**5),
    "a number": lambda path: path.write_text("3"),
    "empty": lambda path: path.write_text(""),
}
LISTS = ["Caltech101", "ImageNet", "ImageNetV2", "FGVCAircraft", "Svhn", "Digits"]


@pytest.mark.parametrize("kind", NO_FILE)
@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_no_list(kind, name, tmp_path, capsys):
    """Of every layout, each file that is no picture; and its folder."""
    row = trees.ROW[name]
    if name == "Digits":
        (tmp_path / "digits").mkdir()
        (tmp_path / "digits" / "split_digits.json").touch()
    else:
        trees.make(name, tmp_path)
    folder = tmp_path / row.folder
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        if kind == "empty" and path.name == "images_variant_val.txt":
            continue  # a data set may have no val part
        path.rename(tmp_path / "aside")
        NO_FILE[kind](path)
        if (path, kind) != (tmp_path / "digits", "a folder"):  # where it is written
            with pytest.raises(DatasetError):
                load(name, tmp_path)
        check_lines(tmp_path, capsys)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (tmp_path / "aside").rename(path)


def test_the_check_tells_of_all_that_is_broken(tmp_path, capsys, monkeypatch):
    for name in trees.JSON_SPLITS:
        trees.make(name, tmp_path)
        path = tmp_path / trees.ROW[name].folder / trees.ROW[name].split
        path.write_text(path.read_text().replace("red circle", "\\udcff"))
    code, lines = check_lines(tmp_path, capsys)
    assert code == 1
    assert all("is not UTF-8" in lines[name] for name in trees.JSON_SPLITS)


# What is written


def limited(root, ends):
    """Load two data sets where no file may grow beyond 200 bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for name in ("Digits", "ImageFolder"):
            try:
                load(name, root)
                ends.send((name, out.getvalue()))
            except DatasetError as error:
                ends.send((type(error).__name__, str(error)))


def test_a_full_disk(pictures):
    shutil.rmtree(pictures / "test")
    before = sorted(pictures.rglob("*"))
    here, there = multiprocessing.Pipe()
    writer = multiprocessing.get_context("fork").Process(target=limited, args=(pictures, there))
    writer.start()
    kind, text = here.recv()
    assert kind == "DatasetError" and text.startswith("Digits cannot be written to ")
    kind, text = here.recv()
    assert kind == "ImageFolder" and "The split could not be written to " in text
    writer.join()
    assert sorted(pictures.rglob("*")) == before


def test_what_killed_writers_left_is_harmless(pictures, tmp_path):
    shutil.rmtree(pictures / "test")
    (pictures / "split_imagefolder.json.1.tmp").write_text("{")
    (pictures / "digits.12345678.tmp" / "images").mkdir(parents=True)
    assert len(load("ImageFolder", pictures).test) == 4
    assert len(load("Digits", pictures, shots=1).train_x) == 10
    assert (pictures / "split_imagefolder.json").is_file()


@pytest.mark.parametrize("version", [None, 0, "1", float("nan"), [1]])
def test_generated_pictures_of_an_odd_version(version, data_root, tmp_path):
    shutil.copytree(data_root / "digits", tmp_path / "digits")
    path = tmp_path / "digits" / "split_digits.json"
    split = {**json.loads(path.read_text()), "version": version}
    if version is None:
        del split["version"]
    path.write_text(json.dumps(split))
    words = "no version" if version is None else f"version {version!r}"
    with pytest.raises(DatasetError, match=re.escape(f"holds {words} of the generated data set")):
        load("Digits", tmp_path)


# Templates


@pytest.mark.parametrize(
    "template",
    ["{} {", "{} }", "{0}", "{!r}", "{} {}", "{{}}", "{} {name}", "a photo", "{}\udcff", "{"],
)
def test_a_template_that_cannot_be_filled(template, pictures, tmp_path, capsys):
    options = "TRAINER.ZEROSHOT.TEMPLATE", template
    text = said(
        capsys, "ImageFolder", pictures, tmp_path / "no", *options, trainer="ZeroshotOracle"
    )
    assert text.startswith("error: TRAINER.ZEROSHOT.TEMPLATE is ")


def test_a_finished_run_on_other_pictures_is_not_skipped(pictures, tmp_path, capsys):
    """Zero-shot knows them by their folder, what is trained by their content."""
    moved = shutil.copytree(pictures, tmp_path / "moved")
    other = shutil.copytree(pictures, tmp_path / "other")
    for image in (other / "train").glob("*/*.png"):
        image.write_bytes((other / "train" / "red_circle" / "0.png").read_bytes())
    for trainer in ("ZIP", "ZeroshotOracle"):
        out = tmp_path / trainer

        def ask(root, code, trainer=trainer, out=out):
            return said(capsys, "ImageFolder", root, out, trainer=trainer, code=code, done=True)

        ask(pictures, 0)
        assert "skipped" in ask(pictures, 0)
        words = "training images" if trainer == "ZIP" else f"DATASET.ROOT: {pictures} there"
        assert words in ask(other, 1)
        assert "skipped" in ask(tmp_path / "gone", 0)
        if trainer == "ZIP":
            assert "skipped" in ask(moved, 0)
