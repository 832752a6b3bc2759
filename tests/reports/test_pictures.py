"""Pictures and folders that people have: levels, shapes, names, empty classes, small /dev/shm."""

import errno
import json
import shutil
import struct
import sys
from multiprocessing.synchronize import SemLock
from unicodedata import normalize

import numpy as np
import pytest
import torch
import trees
from dassl_blackbox.datasets import __main__ as check_command
from dassl_blackbox.trainers.blackbox.data import look
from PIL import Image
from support import accuracy, run, sentence
from torch.utils.data import DataLoader
from trees import NAMES, WNIDS, said

ZEROSHOT = {"trainer": "ZeroshotOracle", "code": 0}


@pytest.fixture
def folder(tmp_path):
    """An ImageFolder's root."""
    trees.make("ImageFolder", tmp_path / "own")
    return tmp_path / "own"


def notes(text):
    return [line for line in text.splitlines() if line.startswith("Note: ImageFolder")]


# Levels


def test_16_bits_in_which_white_is_0(data_root, vary_root, tmp_path, capsys):
    def change(split):
        for n, item in enumerate(split["test"]):
            levels = np.asarray(Image.open(data_root / "digits" / "images" / item[0]))
            item[0] = str(tmp_path / f"{n}.tif")
            Image.fromarray((255 - levels).astype(np.uint16) * 257).save(item[0], tiffinfo={262: 0})

    found = []
    for n, root in enumerate((data_root, vary_root(change))):
        assert run("ZeroshotOracle", root, tmp_path / f"{n}") == 0
        found.append(accuracy(capsys.readouterr().out))
    assert found[0] == found[1]


@pytest.mark.parametrize("bits, form, top", [(12, 1, 4095), (16, 2, 2**15 - 1)])
def test_the_top_of_a_tiffs_levels_is_that_of_its_bits(bits, form, top, tmp_path):
    """Which Pillow does not write: 12 bits a level, and signed ones of 16."""
    data = b"\xff\xf0\x00" if bits == 12 else struct.pack("<2h", top, 0)
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    ifd = b"".join(struct.pack("<HHII", tag, 3, 1, n) for tag, n in {**tags, 339: form}.items())
    head = b"II*\0" + struct.pack("<I", 12) + data.ljust(4, b"\0") + struct.pack("<H", 10)
    (tmp_path / "deep.tif").write_bytes(head + ifd + bytes(4))
    assert np.asarray(look(str(tmp_path / "deep.tif"))[0])[0].tolist() == [[255] * 3, [0] * 3]


def test_deep_levels_of_a_format_with_rules_of_its_own_are_refused(folder, tmp_path, capsys):
    cards = ["SIMPLE = T", "BITPIX = 16", "NAXIS = 2", "NAXIS1 = 8", "NAXIS2 = 8", "BZERO = 32768"]
    head = "".join(f"{card.split()[0]:<8}= {card.split()[2]:>20}".ljust(80) for card in cards)
    path = folder / "test" / "red_circle" / "sky.fits"
    path.write_bytes((head + "END").ljust(2880).encode() + bytes(2880))
    text = said(capsys, "ImageFolder", folder, tmp_path / "out")
    assert f"The image {path} cannot be decoded (it has more than 8 bits a level" in text
    assert "FITS" in text


# Shapes


@pytest.mark.parametrize(
    "part, size", [("test", (1, 60_000)), ("train", (60_000, 1)), ("train", (20, 20_020))]
)
def test_a_picture_that_would_take_gigabytes_is_named_before_anything_is_asked(
    part, size, folder, tmp_path, capsys
):
    path = folder / part / "red_circle" / "long.png"
    Image.new("RGB", size).save(path)
    text = said(capsys, "ImageFolder", folder, tmp_path / "out", "DATASET.NUM_SHOTS", -1)
    assert f"{path} cannot be decoded (it is {size[0]:,} x {size[1]:,} pixels" in text
    assert not (tmp_path / "out" / "queries.json").exists()


# Names


def test_ids_for_names_are_noted_and_a_file_of_names_is_the_cure(folder, tmp_path, capsys):
    plain = said(capsys, "ImageFolder", folder, tmp_path / "plain", **ZEROSHOT)
    assert not notes(plain)
    folders = sorted(name.replace(" ", "_") for name in NAMES)
    for part in ("train", "val", "test"):
        for wnid, name in zip(WNIDS, folders, strict=True):
            (folder / part / name).rename(folder / part / wnid)
    (note,) = notes(said(capsys, "ImageFolder", folder, tmp_path / "ids", **ZEROSHOT))
    assert "called by ids or numbers" in note and "n01440764, n01443537, n02007558, and 1" in note
    assert "classnames.txt" in note
    lines = [f"{wnid} {name}" for wnid, name in zip(WNIDS, folders, strict=True)]
    (folder / "classnames.txt").write_text("\n".join(lines))
    cured = said(capsys, "ImageFolder", folder, tmp_path / "cured", **ZEROSHOT)
    assert not notes(cured) and accuracy(cured) == accuracy(plain)
    (folder / "classnames.txt").write_text("\n".join(lines[1:]))
    text = said(capsys, "ImageFolder", folder, tmp_path / "half")
    assert f"classnames.txt has no line for the folder {folder}/train/n01440764. Write one" in text


CODES = "0", "c3", "class_12", "id_17", "cls-a", "A", "001.{}"
WORDS = "707 jet", "labels"


@pytest.mark.parametrize("name, noted", [*((n, True) for n in CODES), *((n, False) for n in WORDS)])
def test_a_number_for_a_name_is_noted(name, noted, folder, capsys):
    """Of one class; before the name of every class, where there are braces."""
    for path in list(folder.glob("*/*")):
        if "{}" in name or path.name == "red_circle":
            path.rename(path.with_name(name.format(path.name)))
    assert ("called by ids or numbers" in checked(folder, capsys)) == noted


def accented(folder, form):
    """Put an accent before the name of everything in a folder, in a form of Unicode."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rename(path.with_name(normalize(form, f"é{path.name}")))


@pytest.mark.parametrize("on_disk, in_split", [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_split_and_a_disk_may_spell_accents_otherwise(on_disk, in_split, tmp_path, capsys):
    trees.make("EuroSAT", tmp_path)
    accented(tmp_path / "eurosat" / trees.ROW["EuroSAT"].images, on_disk)
    path = tmp_path / "eurosat" / trees.ROW["EuroSAT"].split
    split = json.loads(path.read_text())
    for items in split.values():
        for item in items:
            item[0] = normalize(in_split, "/".join(f"é{part}" for part in item[0].split("/")))
    path.write_text(json.dumps(split))
    assert said(capsys, "EuroSAT", tmp_path, tmp_path / "out", **ZEROSHOT)
    next((tmp_path / "eurosat").rglob("*012.jpg")).unlink()
    text = said(capsys, "EuroSAT", tmp_path, tmp_path / "gone")
    assert "1 of the 32 images that" in text


def test_class_folders_may_spell_accents_otherwise(folder, tmp_path, capsys):
    plain = said(capsys, "ImageFolder", folder, tmp_path / "plain", **ZEROSHOT)
    for part, form in {"train": "NFD", "val": "NFC", "test": "NFC"}.items():
        accented(folder / part, form)
    assert said(capsys, "ImageFolder", folder, tmp_path / "accents", **ZEROSHOT)
    (folder / "classnames.txt").write_text(
        "\n".join(f"é{name.replace(' ', '_')} {name}" for name in NAMES)
    )
    text = said(capsys, "ImageFolder", folder, tmp_path / "named", **ZEROSHOT)
    assert accuracy(text) == accuracy(plain)


# What is not there


def test_empty_class_folders_and_missing_shots_are_noted(folder, tmp_path, capsys):
    for name in ("aaa", "zzz"):
        (folder / "train" / name).mkdir()
    text = said(capsys, "ImageFolder", folder, tmp_path, "DATASET.NUM_SHOTS", 10_000, **ZEROSHOT)
    empty, shots = notes(text)
    assert empty == f"Note: ImageFolder: without a picture in {folder}/train: aaa, zzz"
    assert shots == (
        "Note: ImageFolder: 4 of 4 classes have fewer than the 10,000 training images of "
        "DATASET.NUM_SHOTS, and all of theirs are taken: 16 images in all"
    )


def checked(root, capsys, status=0):
    """What `python -m dassl_blackbox.datasets check` prints about a folder of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["check", "check", "--root", str(root)])
        capsys.readouterr()
        assert check_command.main() == status
        return capsys.readouterr().out


def test_the_check_tells_what_a_folder_of_ones_own_holds(folder, capsys):
    (folder / "train" / "aaa").mkdir()
    (folder / "train" / "red_circle" / "notes.txt").touch()
    (folder / "train" / "red_circle" / "0.png").unlink()
    shutil.rmtree(folder / "val")
    before = sorted(folder.rglob("*"))
    text = checked(folder, capsys)
    rows = [line.split() for line in text.splitlines()]
    assert rows[2] == ["ImageFolder", "imagefolder.yaml", "./", "4", "11", "4", "8", "complete"]
    assert ["red_circle", "2", "1", "2"] in rows and ["blue_heart", "3", "1", "2"] in rows
    assert f"without a picture in {folder}/train: aaa" in text
    assert "1 file is passed over: 1 .txt" in text and "no folder for val: taken from" in text
    assert sorted(folder.rglob("*")) == before
    assert f"the folder {folder}/train/train cannot be read" in checked(
        folder / "train", capsys, status=1
    )


# Worker processes


def without_shared_memory(monkeypatch):
    def allocate(*args, **kwargs):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", allocate)


def killed(monkeypatch):
    """As torch says it from its handler of signals, whatever is done at that moment."""

    def begin(loader):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is")

    monkeypatch.setattr(DataLoader, "__iter__", begin)


def without_semaphores(monkeypatch):
    def make(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SemLock, "__init__", make)


FAILURES = {
    without_shared_memory: "No space left on device (28)",
    killed: "killed by signal: Bus error",
    without_semaphores: "[Errno 28] No space left on device",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's own
@pytest.mark.parametrize(
    "fail, trainer",
    [*((fail, "ZeroshotOracle") for fail in FAILURES), (without_shared_memory, "ZIP")],
)
def test_worker_processes_that_fail_are_told(
    fail, trainer, data_root, tmp_path, monkeypatch, capsys
):
    fail(monkeypatch)
    text = sentence(capsys, trainer, data_root, tmp_path, "DATALOADER.NUM_WORKERS", 1)
    assert FAILURES[fail] in text and "/dev/shm" in text and "DATALOADER.NUM_WORKERS" in text
