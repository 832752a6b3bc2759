"""Data sets on small trees in the real ones' shapes, CoOp's draw, what is refused or noted."""

import hashlib
import json
import os
import random
import re
import shutil
from itertools import islice
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import trees
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.utils import set_random_seed
from dassl_blackbox.datasets import generated
from dassl_blackbox.datasets.base import FewShotDataset, register
from dassl_blackbox.datasets.listing import CODE, DatasetError, Row
from dassl_blackbox.datasets.table import ROWS
from dassl_blackbox.trainers.blackbox.data import training_images
from PIL import Image
from sklearn.datasets import load_digits
from support import REPO
from trees import NAMES, WNIDS, checked, everything, said

# the real Dassl has a CIFAR10 and a CIFAR100 of its own, and what the host has is kept
OURS = [row for row in ROWS if issubclass(DATASET_REGISTRY.get(row.name), FewShotDataset)]
TREES = [row.name for row in OURS if row.default_root == ""]


def load(name, root, shots=-1, seed=1, classes="all"):
    cfg = get_cfg_default()
    cfg.merge_from_file(str(REPO / "configs" / "datasets" / f"{trees.ROW[name].config}.yaml"))
    assert cfg.DATASET.NAME == name
    cfg.SEED, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = seed, str(root), shots
    cfg.DATASET.SUBSAMPLE_CLASSES = classes
    return DATASET_REGISTRY.get(name)(cfg)


def refused(words, *args, **kwargs):
    with pytest.raises(DatasetError, match=words):
        load(*args, **kwargs)


def parts(dataset):
    return dataset.train_x, dataset.val, dataset.test


def sizes(dataset):
    return tuple(items and len(items) for items in parts(dataset))


def content(items):
    return [(item.impath, item.label, item.classname) for item in items]


@pytest.fixture
def tree(tmp_path):
    """`tree(name)`: (DATASET.ROOT, the folder of a data set below it)."""

    def plant(name):
        trees.make(name, tmp_path / "data")
        return tmp_path / "data", tmp_path / "data" / trees.ROW[name].folder

    return plant


@pytest.fixture
def pictures(tree):
    """An ImageFolder's root."""
    return tree("ImageFolder")[0]


def edited(folder, change):
    """Change the JSON split in a folder, by a function that may return another, or bytes."""
    (path,) = folder.glob("split_*.json")
    split = json.loads(path.read_text())
    split = change(split) or split
    path.write_bytes(split if isinstance(split, bytes) else json.dumps(split).encode())


# of the draws that CoOp's own datasets/caltech101.py makes under the real Dassl
CALTECH101_16_SHOTS = {
    1: "227259a57d0da32c948a621166ca4b2f7fe193fa5dcf84d084ac07130d5c3679",
    2: "555bd45b9b099f2b2036ea070c7ad9b3463d1a24861e0dcef77ddc1b520a27ac",
    3: "43acea3b0c7fb11877c684267bf6d3eb5fd526ce7c4ebb7fa26b1f24d3e4b328",
}


@pytest.mark.parametrize("seed", CALTECH101_16_SHOTS)
def test_16_shots_of_caltech101_are_coops(seed):
    data = os.environ.get("DATA", "")
    if not os.path.isdir(os.path.join(data, "caltech-101", "101_ObjectCategories")):
        pytest.skip("Caltech101 is not there: DATA names no folder that holds caltech-101")
    dataset = load("Caltech101", data, shots=16, seed=seed)
    images = os.path.join(dataset.dataset_dir, "101_ObjectCategories")
    paths = [os.path.relpath(item.impath, images) for item in dataset.train_x + dataset.val]
    assert hashlib.sha256("\n".join(paths).encode()).hexdigest() == CALTECH101_16_SHOTS[seed]
    assert sizes(dataset) == (1600, 400, 2465)


@pytest.fixture
def five(tree):
    """A root with five classes of unequal sizes, their labels first seen as 2, 0, 4, 3, 1."""

    def divide(split):
        for items in split.values():
            for item in [item for item in items if item[1] == 3][::2]:
                item[1:] = 4, "pink ring"

    root, folder = tree("EuroSAT")
    edited(folder, divide)
    return root


@pytest.mark.parametrize("shots, seed", [(1, 0), (3, 7), (0, 1), (-1, 1)])
def test_the_draw_is_dassls_label_by_label_in_order_of_appearance(five, shots, seed):
    every, files, state = load("EuroSAT", five), everything(five), random.getstate()
    drawn = load("EuroSAT", five, shots, seed)
    assert random.getstate() == state and everything(five) == files
    if shots < 1:
        assert sizes(drawn) == sizes(every) == (16, 8, 8)
        return
    rng, expected = random.Random(seed), []
    for label in (2, 0, 4, 3, 1):
        of_label = [item for item in content(every.train_x) if item[1] == label]
        expected += rng.sample(of_label, shots) if len(of_label) >= shots else of_label
    assert content(drawn.train_x) == expected
    set_random_seed(seed)
    dassl = DatasetBase(every.train_x).generate_fewshot_dataset
    assert content(dassl(every.train_x, num_shots=shots)) == expected
    assert content(drawn.val) == content(dassl(every.val, num_shots=min(shots, 4)))
    assert content(drawn.test) == content(every.test)


def test_base_and_new_classes_are_disjoint_and_cover_all(five):
    every, base, new = (load("EuroSAT", five, 1, 1, half) for half in ("all", "base", "new"))
    assert base.classnames == NAMES[:3] and new.classnames == [NAMES[3], "pink ring"]
    for whole, one, other in zip(parts(every), parts(base), parts(new)):
        shifted = [(path, label + 3, name) for path, label, name in content(other)]
        assert sorted(content(one) + shifted) == sorted(content(whole))


DIGITS = "7669113d81eacb30daf0ab02285036d32a650e792f47842cb965448dc33d65f1"


@pytest.mark.parametrize("name, count", [("Digits", 1797), ("Letters", 2288), ("Shapes", 2112)])
def test_a_generated_data_set_is_the_same_in_every_generation(name, count, tmp_path):
    dataset = load(name, tmp_path)
    states = random.getstate(), np.random.get_state()[1].tolist()
    saved = [item for items in parts(dataset) for item in items]
    assert len({item.impath for item in saved}) == count
    for item, again in zip(saved, islice(generated.PICTURES[name](), 200)):
        assert (item.label, item.classname) == again[1:3]
        with Image.open(item.impath) as first:
            assert first.size == (32, 32) and first.tobytes() == again[3].tobytes()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    if name == "Digits":  # as the embedded model was trained
        told = json.dumps(generated.split_indices(load_digits().target)).encode()
        assert hashlib.sha256(told).hexdigest() == DIGITS


def test_a_generated_data_set_is_written_once_and_whole(tmp_path, monkeypatch):
    def six():
        for part in ("train", "val", "test"):
            for label, name in enumerate(("light grey", "black")):
                yield part, label, name, Image.new("L", (4, 4), 200 * (1 - label))

    def failing(then=None):
        yield "train", 0, "black", Image.new("L", (4, 4))
        if not then:
            raise KeyboardInterrupt
        then()

    def read(pictures=failing, version=1):
        row = generated.generated("Tiny", pictures, version=version)
        return row.read(row, str(tmp_path / "tiny"))

    with pytest.raises(KeyboardInterrupt):
        read()
    assert os.listdir(tmp_path) == []
    # another process starts and ends while this one draws
    assert [len(items) for items in read(lambda: failing(lambda: read(six)))] == [2, 2, 2]
    before, image = everything(tmp_path), "images/light_grey/train_0000.png"
    assert read()[0][0] == (str(tmp_path / "tiny" / image), 0, "light grey")  # not drawn again
    assert everything(tmp_path) == before
    with pytest.raises(DatasetError, match="holds version 1 .* but this is version 2: move"):
        read(version=2)
    (tmp_path / "digits" / "mine").mkdir(parents=True)
    refused("Digits cannot be written to .*--root", "Digits", tmp_path)
    assert os.listdir(tmp_path / "digits") == ["mine"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/digits.12345678.tmp/images").mkdir(parents=True)  # of a killed writer
    assert load("Digits", "", shots=1).dataset_dir == str(tmp_path / "data" / "digits")


def test_what_the_host_has_is_kept_and_ours_may_come_twice(capsys):
    before = [DATASET_REGISTRY.get(row.name) for row in OURS]
    host = DATASET_REGISTRY.register()(type("HostsOwn", (), {}))
    for row in (*OURS, Row("HostsOwn", "hosts_own", "folder")):
        register(row)
    assert [DATASET_REGISTRY.get(row.name) for row in OURS] == before
    assert DATASET_REGISTRY.get("HostsOwn") is host
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Data set HostsOwn: keeping the one that")


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """`{name: (root, class names in label order, sizes)}` of all; an ImageFolder is a root."""
    root, own = tmp_path_factory.mktemp("forest"), tmp_path_factory.mktemp("pictures")
    roots = {name: own if name == "ImageFolder" else root for name in TREES}
    return {name: (roots[name], *trees.make(name, roots[name])) for name in TREES}


def mean_colour(image):
    return np.array(image.convert("RGB").resize((1, 1), Image.BOX).getpixel((0, 0)))


@pytest.mark.parametrize("name", TREES)
def test_its_labels_mean_the_same_pictures_in_every_part(forest, name):
    root, names, sizes_of = forest[name]
    before, colours = everything(root), {}
    for class_name in NAMES:
        drawn = [trees.picture(class_name, i) for i in range(40)]
        colours[class_name] = list(map(mean_colour, drawn))
    dataset = load(name, root)
    assert dataset.classnames == names and sizes(dataset) == sizes_of
    for items in filter(None, parts(dataset)):
        assert {(item.label, item.classname) for item in items} == set(enumerate(names))
        for item in items:
            drawn = NAMES[item.label] if name == "Svhn" else item.classname.replace("_", " ")
            with Image.open(item.impath) as image:
                near = min(np.abs(colours[drawn] - mean_colour(image)).sum(1))
            assert near <= 12, item.impath  # JPEG shifts a mean by a few levels
    assert everything(root) == before
    if name == "Svhn":  # whose split goes by two names
        (root / "svhn" / "split_mlai_SVHN.json").rename(root / "svhn" / "split_SVHN.json")
        assert content(load(name, root).train_x) == content(dataset.train_x)


def test_sets_without_val_or_train(forest, tmp_path, capsys):
    root, out = forest["ImageNetA"][0], tmp_path / "no"
    for trainer in ("ZIP", "WhiteBox"):
        text = said(capsys, "ImageNetA", root, out, trainer=trainer)
        assert text.startswith("error: ImageNetA: the training image ") and not out.exists()
    best = "TEST.FINAL_MODEL", "best_val", "ORACLE.VAL_EVERY", 10
    assert "no validation split of its own" in said(capsys, "ImageNet", root, out, *best)
    said(capsys, "EuroSAT", root, tmp_path / "run", *best, code=0)
    evaluate = {"flags": ("--eval-only", "--model-dir", tmp_path / "run")}
    log = said(capsys, "ImageNetA", root, tmp_path / "there", *best, **evaluate, code=0)
    assert "* total: 8\n" in log
    assert said(capsys, "ImageNetA", root, out, *best, "TEST.SPLIT", "val", **evaluate)


def test_imagenetv2s_folders_are_numbers_of_names_in_any_order(tree):
    root, folder = tree("ImageNetV2")
    path, images = folder / "classnames.txt", folder / trees.ROW["ImageNetV2"].images
    lines = [f"n{i:08d} thing {i}" for i in range(12)]
    path.write_text("\ufeff" + "\r\n".join([*lines[::-1], *lines[:2], ""]))
    for i in range(4, 12):
        shutil.copytree(images / "0", images / str(i))
    dataset = load("ImageNetV2", root)
    assert dataset.classnames == [f"thing {i}" for i in range(12)]
    assert all(item.impath.split(os.sep)[-2] == str(item.label) for item in dataset.test)
    path.write_text("\n".join([*lines, "n09999999 absent thing"]))
    refused("12 numbered folders, .* names 13 folders", "ImageNetV2", root)


SHARED = [(("val",), (12, 4, 8)), (("test",), (12, 8, 4)), (("val", "test"), (8, 4, 4))]


@pytest.mark.parametrize("missing, counts", SHARED)
def test_parts_without_a_folder_come_from_train_once(pictures, missing, counts, capsys):
    for part in missing:
        shutil.rmtree(pictures / part)
    split, new = pictures / "split_imagefolder.json", pictures / "train" / "red_circle" / "0_n.png"
    split.with_name(f"{split.name}.1.tmp").write_text("{")  # of a killed writer
    first = load("ImageFolder", pictures, seed=1)
    assert sizes(first) == counts
    assert len({item.impath for items in parts(first) for item in items}) == sum(counts)
    written = split.read_bytes()
    trees.save(new, "red circle", 3)
    again = load("ImageFolder", pictures, seed=2)
    assert content(again.test) == content(first.test) and split.read_bytes() == written
    assert re.search("1 of the images in .* are not used", capsys.readouterr().out)
    split.unlink()
    new.unlink()
    split.mkdir()
    assert content(load("ImageFolder", pictures, seed=3).test) == content(first.test)
    assert "The split could not be written to " in capsys.readouterr().out
    split.rmdir()
    split.write_bytes(written)
    trees.save(pictures / "train" / "pink_ring" / "0.png", "pink ring", 0)
    refused("other classes than the folders.*Move it away", "ImageFolder", pictures)
    for part in {"val", "test"} - {*missing}:
        shutil.rmtree(pictures / part)
        refused(f"made for other folders .{missing[0]} taken from", "ImageFolder", pictures)


def test_what_is_not_used_of_a_users_folder_is_told(pictures, capsys):
    before = content(load("ImageFolder", pictures).train_x)
    assert "Note" not in capsys.readouterr().out
    one, two = sorted((pictures / "train").iterdir())[:2]
    for file in ("a.heic", "b.HEIC", "notes.txt", "bare", ".hidden"):
        (one / file).touch()
    for folder in (two / "more", pictures / "train" / "aaa"):
        folder.mkdir()
    for place in (two / "more" / "a.png", pictures / "train" / "c.png"):
        shutil.copy(two / "0.png", place)
    (two / "more" / "again").symlink_to(two)  # and round in circles
    (pictures / "val").rename(pictures / "valid")
    assert {*before} > {*content(load("ImageFolder", pictures, shots=10_000).train_x)}
    told = capsys.readouterr().out
    for words in (
        "6 files are passed over: 2 .heic",
        "1 without an ending",
        "1 in folders inside class folders",
        "1 beside class folders",
        f"without a picture in {pictures}/train: aaa",
        "what is in valid is not used; the parts are called",
        "4 of 4 classes have fewer than the 10,000 training images of DATASET.NUM_SHOTS",
    ):
        assert words in told


def test_the_check_tells_what_is_there(forest, pictures, capsys):
    root = forest["EuroSAT"][0]
    before = everything(root)
    code, _, table = checked(root, capsys)
    assert code == 1 and set(table) == {row.name for row in ROWS} - {"ImageFolder"}
    words = "4 classes where 10 are published; 16 train images where 13,500 are published"
    assert words in table["EuroSAT"] and everything(root) == before
    load("EuroSAT", root)
    assert f"Note: EuroSAT in {root}/eurosat is not the published one" in capsys.readouterr().out
    (pictures / "train" / "red_circle" / "0.png").unlink()  # and of a folder of one's own
    shutil.rmtree(pictures / "val")
    before = everything(pictures)
    code, text, table = checked(pictures, capsys)
    assert table["ImageFolder"].split()[3:] == ["4", "11", "4", "8", "complete"] and code == 0
    assert ["red_circle", "2", "1", "2"] in [line.split() for line in text.splitlines()]
    assert "no folder for val: taken from" in text and everything(pictures) == before


@pytest.mark.parametrize("on_disk, in_list", [("NFD", "NFC"), ("NFC", "NFD")])
def test_lists_and_disks_may_spell_accents_otherwise(on_disk, in_list, tree, pictures):
    def respell(split):
        for item in (item for items in split.values() for item in items):
            item[0] = normalize(in_list, "/".join(f"é{part}" for part in item[0].split("/")))

    def accented(folder, form):
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rename(path.with_name(normalize(form, f"é{path.name}")))

    root, folder = tree("EuroSAT")
    edited(folder, respell)
    accented(folder / "2750", on_disk)
    assert sizes(load("EuroSAT", root)) == (16, 8, 8)
    for part, form in {"train": on_disk, "val": in_list, "test": in_list}.items():
        accented(pictures / part, form)
    lines = [normalize(in_list, f"é{name.replace(' ', '_')} {name}") for name in NAMES]
    (pictures / "classnames.txt").write_text("\n".join(lines))
    assert set(load("ImageFolder", pictures).classnames) == set(NAMES)


def test_ids_for_names_are_noted_and_a_file_of_names_is_the_cure(pictures, capsys):
    codes = ["0", "c3", "class_12", "cls-a", "A", "707 jet", "labels"]
    assert [name for name in codes if CODE.fullmatch(name)] == codes[:-2]
    named = dict(zip(WNIDS, sorted(NAMES), strict=True))
    for wnid, name in named.items():
        for path in pictures.glob(f"*/{name.replace(' ', '_')}"):
            path.rename(path.with_name(wnid))
    load("ImageFolder", pictures)
    note = "called by ids or numbers, which say little: n01440764, n01443537, n02007558"
    assert note in capsys.readouterr().out
    lines = [f"{wnid} {name}" for wnid, name in named.items()]
    (pictures / "classnames.txt").write_text("\n".join(lines))
    assert load("ImageFolder", pictures).classnames == sorted(NAMES)
    assert "Note" not in capsys.readouterr().out
    (pictures / "classnames.txt").write_text("\n".join(lines[1:]))
    words = f"classnames.txt has no line for the folder {pictures}/train/n01440764"
    refused(words, "ImageFolder", pictures)


def piped(path):  # which is not waited for
    return lambda f: [(f / path).unlink(), os.mkfifo(f / path)]


def misread(words, change):
    return "EuroSAT", lambda folder: edited(folder, change), words


def first(position, value, words, part="train"):
    return misread(words, lambda split: split[part][0].__setitem__(position, value))


def renamed(new, old="red circle"):
    """The split with a class renamed."""
    return lambda split: {
        part: [[image, label, name.replace(old, new)] for image, label, name in items]
        for part, items in split.items()
    }


def without(part, *labels):
    """The split without the images of some labels in a part."""
    return lambda split: {**split, part: [item for item in split[part] if item[1] not in labels]}


NO_ITEM = 'entry 0 of "train" is .*image and class name should be texts, and the label a whole'
NO_SPLIT = "is not a split in CoOp's JSON format"
BROKEN = [
    ("OxfordPets", lambda f: next(f.glob("*.json")).unlink(), "has no split file .*--root"),
    ("OxfordPets", lambda f: shutil.rmtree(f / "images/red_circle"), "8 of the 32 images .*/red_c"),
    (
        "ImageNet",
        lambda f: (f / "images/train/n00000001").mkdir(),
        "no line for the folder",
    ),
    misread("class 2 of 4 .* has no training image", without("train", 2)),
    ("EuroSAT", piped("2750/red_circle/005.jpg"), "no regular file"),
    ("ImageNetV2", piped("classnames.txt"), "cannot be read"),
    ("FGVCAircraft", lambda f: (f / "variants.txt").write_text("red circle"), "variants.txt lacks"),
    ("ImageFolder", lambda f: (f / "test/cat").mkdir(), "test/cat is no class of it"),
    *(first(1, label, NO_ITEM) for label in (1.7, True, -1)),
    first(1, 10**30, "called|has no training image"),
    first(2, "cat", 'class 2 is called "cat" and, for .*, "green triangle"'),
    *(first(2, "cat", '"green triangle" in training and, .*"cat"', p) for p in ("val", "test")),
    misread(NO_ITEM, lambda s: s["train"][0].append(1)),
    misread(
        "Number the classes of all parts alike",
        lambda s: {**s, "test": [[i, 3 - label, name] for i, label, name in s["test"]]},
    ),
    misread('is of class 3, "yellow star", which has no training image', without("train", 3)),
    misread('is " _ ", which is no text', renamed(" _ ")),
    misread("EuroSAT has no test image", without("test", 0, 1, 2, 3)),
    misread("is there twice", lambda s: json.dumps(s).replace('"val"', '"test"').encode()),
    *(misread(NO_SPLIT, lambda s, text=text: text) for text in (b"{", b"[]", b'{"train": []}')),
]


@pytest.mark.parametrize("name, damage, words", BROKEN)
def test_what_is_damaged_or_would_be_misread(tree, name, damage, words, capsys):
    root, folder = tree(name)
    damage(folder)
    refused(words, name, root)
    assert checked(root, capsys)[0] == 1
    refused(f"DATASET.ROOT is empty: pass --root .*{trees.ROW[name].folder}", name, "")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_damaged_picture_shows_before_anything_is_paid(
    part, pictures, tmp_path, capsys, monkeypatch
):
    image = pictures / part / "red_circle" / "1.png"
    image.write_bytes(image.read_bytes()[:-200])
    for trainer in ("ZIP", "WhiteBox"):
        text = said(capsys, "ImageFolder", pictures, tmp_path / "no", trainer=trainer)
        assert text.startswith(f"error: The image {image} cannot be decoded (")
        assert not (tmp_path / "no" / "queries.json").exists()
    zero_shot = {"trainer": "ZeroshotOracle", "code": int(part != "train")}
    out = said(capsys, "ImageFolder", pictures, tmp_path / "z", **zero_shot)
    assert part == "train" or str(image) in out
    if part == "test":  # of many pixels the headers alone are read before: a worker names it
        monkeypatch.setattr(f"{training_images.__module__}.FEW", 0)
        options = "DATALOADER.NUM_WORKERS", 2
        out = said(capsys, "ImageFolder", pictures, tmp_path / "w", *options, **zero_shot)
        assert f"{image} cannot be decoded" in out
        assert "Evaluate on the *test* set" in (tmp_path / "w" / "log.txt").read_text()


LINKED = [
    ("test", "train", "ImageFolder: the training image .* same file"),
    ("val", "train", "no validation split of its own.* would look at the training images"),
    ("val", "test", "no validation split of its own.* would look at the test images"),
]


@pytest.mark.parametrize("part, of, words", LINKED)
def test_a_part_that_is_linked_to_another_is_no_part(part, of, words, pictures, tmp_path, capsys):
    def ask(trainer="ZIP", code=1, options=("TEST.FINAL_MODEL", "best_val")):
        out = tmp_path / f"{trainer}{code}"
        return said(capsys, "ImageFolder", pictures, out, *options, trainer=trainer, code=code)

    for image in list((pictures / part).glob("*/*.png")):
        image.unlink()
        os.link(pictures / of / image.parent.name / image.name, image)
    assert re.search(words, ask())
    if part == "test":
        assert re.search(words, ask("WhiteBox", options=()))
        assert "8 test images are training images" in checked(pictures, capsys)[1]
        assert ask("ZeroshotOracle", 0, ())


@pytest.mark.parametrize("alike", ["RED_Circle", "red&#32; circle"])
def test_names_that_make_one_text_are_noted(alike, tree, capsys):
    root, folder = tree("EuroSAT")
    edited(folder, renamed(alike, "blue heart"))  # and a test part may spell names otherwise
    edited(folder, lambda s: {**s, "test": [[i, n, x.upper()] for i, n, x in s["test"]]})
    assert load("EuroSAT", root).classnames[1] == alike
    note = 'has classes of the same text, which the model cannot tell apart: "red circle" (0, 1)'
    assert f"Note: EuroSAT {note}" in capsys.readouterr().out


def test_too_few_classes_are_no_task(tree):
    root, folder = tree("EuroSAT")
    edited(folder, without("test", 2, 3))
    assert len(load("EuroSAT", root, classes="base").test) == 4
    refused("EuroSAT has no test image among the new half", "EuroSAT", root, classes="new")
    for part in trees.COUNTS:
        edited(folder, without(part, 2, 3))
    words = 'one class only among the new half of its classes, "blue heart": every'
    refused(words, "EuroSAT", root, classes="new")


def test_a_run_is_known_by_its_pictures(pictures, tmp_path, capsys):
    # zero-shot knows them by their folder, what is trained by their content
    def ask(root, trainer="ZIP", code=0, queries=20, flags=("--skip-done",)):
        options = "ORACLE.MAX_QUERIES", queries, "DATASET.NUM_SHOTS", -1
        how = {"trainer": trainer, "code": code, "flags": flags}
        return said(capsys, "ImageFolder", root, tmp_path / trainer, *options, **how)

    moved = shutil.copytree(pictures, tmp_path / "moved")
    other = shutil.copytree(pictures, tmp_path / "other")
    trees.save(other / "train" / "red_circle" / "1.png", "red circle", 7)
    for trainer in ("ZIP", "ZeroshotOracle"):
        ask(pictures, trainer)
        assert "skipped" in ask(pictures, trainer)
    assert f"DATASET.ROOT: {pictures} there" in ask(other, "ZeroshotOracle", 1)
    assert "training images" in ask(other, code=1) and "skipped" in ask(moved)
    assert "training images" in ask(other, code=1, queries=60, flags=())


@pytest.mark.parametrize("whole", [True, False])
def test_training_images_are_known_by_names_labels_and_contents(whole, pictures, monkeypatch):
    if not whole:
        monkeypatch.setattr(f"{training_images.__module__}.WHOLE", 1000)
    items = load("ImageFolder", pictures).train_x
    found, image = training_images(items), Path(items[3].impath)
    assert training_images(items[:-1]) != found != training_images(items[::-1])
    content, status = image.read_bytes(), image.stat()
    os.utime(image, ns=(0, 0))
    assert (training_images(items) == found) == whole
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (training_images(items) == found) != whole
