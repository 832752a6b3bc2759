"""Leaks, labels, names, files that are passed over: a sentence or a note, never a silent number."""

import json
import os
import random
import shutil

import pytest
import trees
from dassl_blackbox.datasets.listing import DatasetError
from test_datasets import content, load
from test_layouts import HOSTS
from trees import check_lines, said


@pytest.fixture
def pictures(tmp_path):
    """An ImageFolder's root."""
    root = tmp_path / "pictures"
    trees.make("ImageFolder", root)
    return root


@pytest.fixture
def eurosat(tmp_path):
    """A root with a JSON split of four classes, and how to change that split."""
    root = tmp_path / "data"
    trees.make("EuroSAT", root)
    path = root / "eurosat" / trees.ROW["EuroSAT"].split

    def change(function):
        split = json.loads(path.read_text())
        split = function(split) or split
        path.write_bytes(split if isinstance(split, bytes) else json.dumps(split).encode())
        return root

    return change


# Leaks


def linked(root, one, other, kind):
    """Make the part `other` of an ImageFolder that of `one`, by links."""
    target = root / other
    if kind == "the part":
        shutil.rmtree(target)
        target.symlink_to(one)
        return
    for folder in target.iterdir():
        if kind == "a class":
            shutil.rmtree(folder)
            folder.symlink_to(root / one / folder.name)
            continue
        for n, image in enumerate(folder.iterdir()):
            image.unlink()
            source = root / one / folder.name / f"{n}.png"
            image.symlink_to(source) if kind == "the files" else os.link(source, image)


@pytest.mark.parametrize("kind", ["the part", "a class", "the files", "the files, hard"])
def test_a_part_that_is_linked_to_another_is_no_part(kind, pictures, tmp_path, capsys):
    linked(pictures, "train", "test", kind)
    for trainer in ("ZIP", "WhiteBox"):
        text = said(capsys, "ImageFolder", pictures, tmp_path / "no", trainer=trainer)
        assert text.startswith("error: ImageFolder: the training image ") and "same file" in text
    assert not (tmp_path / "no").exists()
    assert said(capsys, "ImageFolder", pictures, tmp_path / "yes", trainer="ZeroshotOracle", code=0)


@pytest.mark.parametrize("kind", ["the part", "the files, hard"])
@pytest.mark.parametrize("other", ["train", "test"])
def test_a_val_part_that_is_linked_to_another_is_none(kind, other, pictures, tmp_path, capsys):
    linked(pictures, other, "val", kind)
    options = "TEST.FINAL_MODEL", "best_val"
    text = said(capsys, "ImageFolder", pictures, tmp_path / "no", *options)
    which = {"train": "training", "test": "test"}[other]
    assert "no validation split of its own" in text and f"would look at the {which} images" in text
    assert said(capsys, "ImageFolder", pictures, tmp_path / "yes", code=0)


@pytest.mark.parametrize("spelling", ["./{}", "red_circle/../{}", "{root}/eurosat/2750/{}"])
def test_a_split_that_names_a_file_twice(spelling, eurosat, tmp_path, capsys):
    root = eurosat(
        lambda split: split["test"].append(
            [spelling.format(split["train"][0][0], root=tmp_path / "data"), *split["train"][0][1:]]
        )
    )
    text = said(capsys, "EuroSAT", root, tmp_path / "no", "DATASET.NUM_SHOTS", -1)
    assert "are the same file" in text
    assert "1 test images are training images" in check_lines(root, capsys)[1]["EuroSAT"]


# Labels and names

NO_ITEM = 'entry 0 of "train" is .*image and class name should be texts, and the label a whole'


def first(position, value, part="train"):
    return lambda split: split[part][0].__setitem__(position, value)


def renamed(change):
    """The split with its class names changed."""
    return lambda split: {
        part: [[image, label, change(name)] for image, label, name in items]
        for part, items in split.items()
    }


LABELS = {
    "fractional": (first(1, 1.7), NO_ITEM),
    "whole, as a float": (first(1, 2.0), NO_ITEM),
    "boolean": (first(1, True), NO_ITEM),
    "negative": (first(1, -1), NO_ITEM),
    "text": (first(1, "2"), NO_ITEM),
    "null": (first(1, None), NO_ITEM),
    "NaN": (first(1, float("nan")), NO_ITEM),
    "infinite": (first(1, float("inf")), NO_ITEM),
    "huge": (
        first(1, 10**30),
        'class 2 is called|is called "green triangle"|has no training image',
    ),
    "a list": (first(1, [2]), NO_ITEM),
    "a name that is a number": (first(2, 7), NO_ITEM),
    "a name that is null": (first(2, None), NO_ITEM),
    "no image": (first(0, ""), NO_ITEM),
    "an image that is a number": (first(0, 3), NO_ITEM),
    "an image that is a folder": (first(0, "red_circle"), "first of them .*is no regular file"),
    "a NUL in the image": (first(0, "a\0b"), "are missing, the first of them .*a.x00b"),
    "a long entry": (lambda s: s["train"][0].append(1), NO_ITEM),
    "a short entry": (lambda s: s["train"].__setitem__(0, ["a", 2]), NO_ITEM),
    "an entry that is a text": (lambda s: s["train"].__setitem__(0, "abc"), NO_ITEM),
    "a part that is a dictionary": (lambda s: {**s, "train": {}}, '"train" is no list'),
    "two names": (first(2, "cat"), 'class 2 is called "cat" and, for .*, "green triangle"'),
    "another name in test": (
        first(2, "cat", "test"),
        'called "green triangle" in training and, .*"cat"',
    ),
    "another name in val": (
        first(2, "cat", "val"),
        'called "green triangle" in training and, .*"cat"',
    ),
    "another numbering in test": (
        lambda s: {**s, "test": [[i, 3 - label, name] for i, label, name in s["test"]]},
        "Number the classes of all parts alike",
    ),
    "a name that is empty": (
        renamed(lambda n: n.replace("red circle", "")),
        'is "", which is no text',
    ),
    "blank": (renamed(lambda n: n.replace("red circle", " _ ")), 'is " _ ", which is no text'),
    "an entity": (renamed(lambda n: n.replace("red circle", "&nbsp;")), "which is no text"),
    "not UTF-8": (renamed(lambda n: n.replace("red circle", "\udcff")), "udcff., is not UTF-8"),
    "no training image": (lambda s: {**s, "train": []}, "EuroSAT has no training image"),
    "no test image": (lambda s: {**s, "test": []}, "EuroSAT has no test image"),
    "nested": (lambda s: b"[" * 10**5 + b"]" * 10**5, "not a split in CoOp's JSON format"),
    "digits": (lambda s: b'{"train": [["a", ' + b"1" * 5000 + b', "a"]]}', "not a split in CoOp's"),
    "a part twice": (
        lambda s: json.dumps(s).replace('"val"', '"test"').encode(),
        '"test" is there twice',
    ),
    "UTF-16": (lambda s: json.dumps(s).encode("utf-16"), "not a split in CoOp's JSON format"),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_split_that_would_be_misread(name, eurosat, capsys):
    change, words = LABELS[name]
    root = eurosat(change)
    with pytest.raises(DatasetError, match=words):
        load("EuroSAT", root)
    code, lines = check_lines(root, capsys)
    assert code == 1 and "EuroSAT" in lines


@pytest.mark.parametrize("alike", ["RED_Circle", " red  circle", "red&#32;circle"])
def test_names_that_make_one_text_are_noted(alike, eurosat, capsys):
    root = eurosat(renamed(lambda name: name.replace("blue heart", alike)))
    assert load("EuroSAT", root).classnames[1] == alike
    note = 'has classes of the same text, which the model cannot tell apart: "red circle" (0, 1)'
    assert f"Note: EuroSAT {note}" in capsys.readouterr().out


def test_a_test_part_may_spell_names_otherwise(eurosat):
    root = eurosat(lambda s: {**s, "test": [[i, n, x.upper()] for i, n, x in s["test"]]})
    assert load("EuroSAT", root).classnames == trees.NAMES


@pytest.mark.parametrize("half", ["base", "new"])
def test_one_class_is_no_task(half, eurosat, tmp_path, capsys):
    def classes(count):
        return lambda s: {part: [item for item in s[part] if item[1] < count] for part in s}

    options = "DATASET.SUBSAMPLE_CLASSES", half
    name = {"base": "red circle", "new": "blue heart"}[half]
    text = said(capsys, "EuroSAT", eurosat(classes(2)), tmp_path / "no", *options)
    assert text.startswith(
        f'error: EuroSAT has one class only among the {half} half of its classes, "{name}": every '
    )
    text = said(capsys, "EuroSAT", eurosat(classes(1)), tmp_path / "no", *options)
    assert text.startswith('error: EuroSAT has one class only, "red circle": every answer would be')
    assert text.endswith("that are none of it.")


def test_a_half_that_is_never_tested(eurosat):
    root = eurosat(lambda s: {**s, "test": [item for item in s["test"] if item[1] < 2]})
    assert len(load("EuroSAT", root, classes="base").test) == 4
    with pytest.raises(DatasetError, match="EuroSAT has no test image among the new half"):
        load("EuroSAT", root, classes="new")


def test_classnames_in_any_order(tmp_path):
    trees.make("ImageNetV2", tmp_path)
    path = tmp_path / "imagenetv2" / "classnames.txt"
    ordered, lines = content(load("ImageNetV2", tmp_path).test), path.read_text().splitlines()
    random.Random(1).shuffle(lines)
    path.write_text("\ufeff" + "\r\n".join([*lines, *lines[:2], ""]))
    assert content(load("ImageNetV2", tmp_path).test) == ordered
    for more, words in {
        "n09999999 absent thing": "4 numbered folders, .* names 5 folders",
        "n01440764 other name": 'has the line "n01440764 other name", and "red circle" elsewhere',
        "n01440765": 'has the line "n01440765" without a class name',
    }.items():
        path.write_text("\n".join([*lines, more]))
        with pytest.raises(DatasetError, match=words):
            load("ImageNetV2", tmp_path)
    path.write_text("\n".join([*lines[1:], "comment about it"]))
    with pytest.raises(DatasetError, match='names "comment"'):
        load("ImageNetV2", tmp_path)


# What is passed over


FOLDERS = {"ImageFolder": "train", "ImageNet": "images/train", "CIFAR10": "test", "Svhn": "test"}


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in HOSTS])
def test_files_that_are_passed_over_are_counted(name, tmp_path, capsys):
    trees.make(name, tmp_path)
    folder = tmp_path / trees.ROW[name].folder / FOLDERS[name]
    before = content(load(name, tmp_path).train_x)
    assert "passed over" not in capsys.readouterr().out
    one, two = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")[
        :2
    ]
    for file in ("a.heic", "b.HEIC", "notes.txt", "bare", ".hidden"):
        (one / file).touch()
    (two / "more").mkdir()
    for i, place in enumerate((two / "more", two / "more", folder)):
        shutil.copy(next(p for p in two.iterdir() if p.is_file()), place / f"n{i}.png")
    (two / "more" / "again").symlink_to(two)  # and round in circles
    assert content(load(name, tmp_path).train_x) == before
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "passed over" in line]
    for words in (
        "7 files are passed over",
        "2 .heic",
        "1 .txt",
        "1 without an ending",
        "2 in folders inside class folders",
        "1 beside class folders",
    ):
        assert words in line


def test_what_is_not_used_of_a_users_folder_is_told(pictures, capsys):
    (pictures / "val").rename(pictures / "valid")
    load("ImageFolder", pictures)
    assert (
        "what is in valid is not used; the parts are called train, val, test"
        in capsys.readouterr().out
    )
    shutil.copy(
        pictures / "train" / "red_circle" / "0.png", pictures / "train" / "red_circle" / "9.png"
    )
    load("ImageFolder", pictures)
    assert "1 of the images in" in (out := capsys.readouterr().out) and "are not used" in out
