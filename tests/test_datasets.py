import hashlib
import json
import math
import os
import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.utils import set_random_seed
from dassl_blackbox.datasets import base, generated, render
from dassl_blackbox.datasets.base import FewShotDataset, register
from dassl_blackbox.datasets.listing import DatasetError, Row
from dassl_blackbox.datasets.table import ROWS
from PIL import Image

# of the draws that CoOp's own datasets/caltech101.py makes under the real Dassl
CALTECH101_16_SHOTS = {
    1: "227259a57d0da32c948a621166ca4b2f7fe193fa5dcf84d084ac07130d5c3679",
    2: "555bd45b9b099f2b2036ea070c7ad9b3463d1a24861e0dcef77ddc1b520a27ac",
    3: "43acea3b0c7fb11877c684267bf6d3eb5fd526ce7c4ebb7fa26b1f24d3e4b328",
}
GENERATED = {
    "Digits": ((896, 176, 725), generated.DIGITS, "L"),
    "Letters": ((1040, 208, 1040), list("abcdefghijklmnopqrstuvwxyz"), "RGB"),
    "Shapes": ((960, 192, 960), generated.SHAPES, "RGB"),
}

# the real Dassl has a CIFAR10 and a CIFAR100 of its own, and what the host has is kept
OURS = [row for row in ROWS if issubclass(DATASET_REGISTRY.get(row.name), FewShotDataset)]


def load(name, root, shots=-1, seed=1, classes=None):
    cfg = get_cfg_default()
    cfg.SEED, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = seed, str(root), shots
    if classes:
        cfg.DATASET.SUBSAMPLE_CLASSES = classes
    return DATASET_REGISTRY.get(name)(cfg)


def content(items):
    return [(item.impath, item.label, item.classname) for item in items]


@pytest.fixture
def caltech(tmp_path):
    """A small data set in Caltech101's place: five classes of unequal sizes, their labels first
    seen in the order 3, 0, 4, 1, 2.
    """
    folder = tmp_path / "caltech-101"
    images = folder / "101_ObjectCategories"
    images.mkdir(parents=True)
    shuffle, split = random.Random(5), {}
    for part, sizes in {
        "train": (9, 2, 7, 12, 5),
        "val": (6, 1, 3, 8, 4),
        "test": (3, 3, 3, 3, 3),
    }.items():
        items = [
            [f"{label}_{part}_{i}.jpg", label, f"class {label}"]
            for label, size in enumerate(sizes)
            for i in range(size)
        ]
        shuffle.shuffle(items)
        split[part] = (
            sorted(items, key=lambda item: [3, 0, 4, 1, 2].index(item[1]))
            if part == "train"
            else items
        )
        for image, _, _ in items:
            (images / image).touch()
    (folder / "split_zhou_Caltech101.json").write_text(json.dumps(split))
    return tmp_path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("generated")


@pytest.fixture
def tiny(tmp_path):
    """A generated data set of six pictures, the number of times it was drawn, and where it goes."""
    drawn = []

    def pictures():
        drawn.append(1)
        for part in ("train", "val", "test"):
            for label, name in enumerate(("light grey", "black")):
                yield part, label, name, Image.new("L", (4, 4), 200 * (1 - label))

    return generated.generated("Tiny", pictures), drawn, tmp_path / "tiny"


# The few-shot draw


@pytest.mark.parametrize("seed", CALTECH101_16_SHOTS)
def test_16_shots_of_caltech101_are_coops(seed):
    data = os.environ.get("DATA", "")
    if not os.path.isdir(os.path.join(data, "caltech-101", "101_ObjectCategories")):
        pytest.skip(
            "Caltech101 is not there: the environment variable DATA names no folder that holds "
            "caltech-101"
        )
    dataset = load("Caltech101", data, shots=16, seed=seed)
    images = os.path.join(dataset.dataset_dir, "101_ObjectCategories")
    paths = [os.path.relpath(item.impath, images) for item in dataset.train_x + dataset.val]
    assert hashlib.sha256("\n".join(paths).encode()).hexdigest() == CALTECH101_16_SHOTS[seed]
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (1600, 400, 2465)


@pytest.mark.parametrize("shots", [1, 4, 8])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_draw_is_dassls_after_set_random_seed(caltech, shots, seed):
    everything, drawn = load("Caltech101", caltech), load("Caltech101", caltech, shots, seed)
    set_random_seed(seed)
    dassl = DatasetBase(everything.train_x)
    assert content(drawn.train_x) == content(
        dassl.generate_fewshot_dataset(everything.train_x, num_shots=shots)
    )
    assert content(drawn.val) == content(
        dassl.generate_fewshot_dataset(everything.val, num_shots=min(shots, 4))
    )
    assert content(drawn.test) == content(everything.test)


def test_the_draw_goes_label_by_label_in_order_of_appearance(caltech):
    everything, drawn = load("Caltech101", caltech), load("Caltech101", caltech, shots=6, seed=3)
    rng, expected = random.Random(3), []
    for label in (3, 0, 4, 1, 2):
        of_label = [item for item in content(everything.train_x) if item[1] == label]
        expected += rng.sample(of_label, 6) if len(of_label) >= 6 else of_label
    assert content(drawn.train_x) == expected
    assert Counter(item.label for item in drawn.val) == {0: 4, 1: 1, 2: 3, 3: 4, 4: 4}


def test_the_draw_leaves_the_global_generator_and_the_folder_alone(caltech):
    before, files = random.getstate(), sorted(caltech.rglob("*"))
    load("Caltech101", caltech, shots=4)
    assert random.getstate() == before
    assert sorted(caltech.rglob("*")) == files


def test_a_negative_seed_draws_anew_each_time(caltech):
    draws = {
        tuple(content(load("Caltech101", caltech, shots=4, seed=-1).train_x)) for _ in range(5)
    }
    assert len(draws) > 1


@pytest.mark.parametrize("shots", [0, -1])
def test_below_one_shot_everything_is_taken(caltech, shots):
    dataset = load("Caltech101", caltech, shots)
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (35, 22, 15)
    assert dataset.classnames == [f"class {label}" for label in range(5)]


def test_a_data_set_without_val_has_none(tmp_path):
    (tmp_path / "a.png").touch()
    items = [(str(tmp_path / "a.png"), label, name) for label, name in enumerate("abc")]
    cls = type(
        "NoVal",
        (FewShotDataset,),
        {"row": Row("NoVal", "no_val", "", read=lambda row, folder: (items, None, items))},
    )
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = (
        str(tmp_path),
        1,
        "base",
    )
    assert cls(cfg).val is None


# Base and new classes


def test_base_and_new_classes_are_disjoint_and_cover_all(caltech):
    every, base_half, new_half = (
        load("Caltech101", caltech, 4, 1, which) for which in ("all", "base", "new")
    )
    assert base_half.classnames == ["class 0", "class 1", "class 2"]
    assert new_half.classnames == ["class 3", "class 4"]
    for part in ("train_x", "val", "test"):
        halves = [content(getattr(half, part)) for half in (base_half, new_half)]
        shifted = [(path, label + 3, name) for path, label, name in halves[1]]
        assert sorted(halves[0] + shifted) == sorted(content(getattr(every, part)))


def test_base_gets_the_odd_class():
    items = [("", label, "") for label in (7, 2, 5)]
    assert base.choose_classes("base", items) == [[("", 0, ""), ("", 1, "")]]
    assert len(base.choose_classes("base", items)[0]) == math.ceil(3 / 2)
    assert base.choose_classes("new", items) == [[("", 0, "")]]


# Generated data sets


@pytest.mark.parametrize("name", GENERATED)
def test_generated_data_set(name, root):
    sizes, names, mode = GENERATED[name]
    dataset = load(name, root)
    assert tuple(len(part) for part in (dataset.train_x, dataset.val, dataset.test)) == sizes
    assert dataset.classnames == names
    assert dataset.num_classes == len(names)
    paths = [item.impath for part in (dataset.train_x, dataset.val, dataset.test) for item in part]
    assert len(set(paths)) == len(paths)
    with Image.open(paths[0]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (32, 32))
    few = load(name, root, shots=16)
    assert set(Counter(item.label for item in few.train_x).values()) == {16}
    assert set(Counter(item.label for item in few.val).values()) == {4}


def test_every_class_of_letters_and_shapes_has_the_same_size(root):
    for name in ("Letters", "Shapes"):
        dataset = load(name, root)
        for items, count in ((dataset.train_x, 40), (dataset.val, 8), (dataset.test, 40)):
            assert set(Counter(item.label for item in items).values()) == {count}


@pytest.mark.parametrize("name", GENERATED)
def test_a_second_generation_has_the_same_pixels(name, root):
    dataset, states = load(name, root), (random.getstate(), np.random.get_state()[1].tolist())
    saved = [item for items in (dataset.train_x, dataset.val, dataset.test) for item in items]
    again = list(generated.PICTURES[name]())
    assert [(item.label, item.classname) for item in saved] == [
        (label, name) for _, label, name, _ in again
    ]
    for item, (_, _, _, picture) in zip(saved, again):
        with Image.open(item.impath) as first:
            assert first.mode == picture.mode and first.tobytes() == picture.tobytes()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_the_saved_digits_are_the_scans(root):
    from sklearn.datasets import load_digits

    source = load_digits()
    row = generated.split_indices(source.target)["train"][0]
    scan = Image.fromarray((source.images[row] * 255 / 16).round().astype(np.uint8)).resize(
        (32, 32), Image.BICUBIC
    )
    first = load("Digits", root).train_x[0]
    assert first.label == source.target[row]
    with Image.open(first.impath) as picture:
        assert picture.tobytes() == scan.tobytes()


def test_digits_are_split_as_the_embedded_model_was_trained():
    from sklearn.datasets import load_digits

    split = generated.split_indices(load_digits().target)
    assert sorted(chain.from_iterable(split.values())) == list(range(1797))
    assert (
        hashlib.sha256(json.dumps(split).encode()).hexdigest()
        == "7669113d81eacb30daf0ab02285036d32a650e792f47842cb965448dc33d65f1"
    )


def test_shapes_cover_all_colours_and_most_kinds():
    colours, kinds = (set(words) for words in zip(*(name.split() for name in generated.SHAPES)))
    assert len(set(generated.SHAPES)) == 24
    assert colours == set(render.COLOURS)
    assert len(kinds) >= 12 and kinds <= set(render.SHAPES + render.PATTERNS)


def test_a_generated_data_set_is_written_once(tiny):
    row, drawn, folder = tiny
    first = row.read(row, str(folder))
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert row.read(row, str(folder)) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    assert len(drawn) == 1
    assert first[0][0] == (
        str(folder / "images" / "light_grey" / "train_0000.png"),
        0,
        "light grey",
    )
    assert os.listdir(folder.parent) == ["tiny"]


def test_a_failure_midway_leaves_nothing(tiny):
    row, _, folder = tiny

    def pictures():
        yield "train", 0, "black", Image.new("L", (4, 4))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generated.write(row, str(folder), pictures(), 1)
    assert os.listdir(folder.parent) == []
    assert len(row.read(row, str(folder))[0]) == 2


def test_two_writers_at_once_do_not_break_each_other(tiny):
    row, drawn, folder = tiny

    def pictures():
        yield "train", 0, "black", Image.new("L", (4, 4))
        row.read(row, str(folder))  # another process starts and ends while this one draws

    generated.write(row, str(folder), pictures(), 1)
    assert [len(items) for items in row.read(row, str(folder))] == [2, 2, 2]
    assert len(drawn) == 1
    assert os.listdir(folder.parent) == ["tiny"]


def test_without_a_root_generated_data_go_to_data_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = load("Digits", "", shots=1)
    assert dataset.dataset_dir == str(tmp_path / "data" / "digits")
    assert os.listdir(tmp_path) == ["data"] and os.listdir(tmp_path / "data") == ["digits"]


# The registry


def test_registering_our_own_twice_is_silent(capsys):
    before = [DATASET_REGISTRY.get(row.name) for row in OURS]
    for row in OURS:
        register(row)
    assert [DATASET_REGISTRY.get(row.name) for row in OURS] == before
    assert capsys.readouterr() == ("", "")


def test_the_hosts_data_set_is_kept(capsys):
    class HostsOwn:
        pass

    DATASET_REGISTRY.register(HostsOwn)
    register(Row("HostsOwn", "hosts_own", "folder"))
    assert DATASET_REGISTRY.get("HostsOwn") is HostsOwn
    told = f"Data set HostsOwn: keeping the one that {__name__} registered\n"
    assert capsys.readouterr() == ("", told)


def test_every_row_has_its_config():
    configs = os.path.join(os.path.dirname(__file__), os.pardir, "configs", "datasets")
    for row in ROWS:
        cfg = get_cfg_default()
        cfg.merge_from_file(os.path.join(configs, f"{row.config}.yaml"))
        assert cfg.DATASET.NAME == row.name
        assert issubclass(DATASET_REGISTRY.get(row.name), FewShotDataset) == (row in OURS)


# Errors are sentences


def message(*args, **kwargs):
    with pytest.raises(DatasetError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_no_root():
    assert message("Caltech101", "") == (
        "DATASET.ROOT is empty: pass --root with the folder that holds caltech-101 (Caltech101; "
        "see DATASETS.md)."
    )


def test_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = message("Caltech101", "somewhere")
    path = tmp_path / "somewhere" / "caltech-101" / "split_zhou_Caltech101.json"
    assert text.startswith(f"Caltech101 has no split file {path}.")
    assert "DATASETS.md" in text and "--root" in text


def test_no_split_file(tmp_path):
    (tmp_path / "caltech-101").mkdir()
    text = message("Caltech101", tmp_path)
    assert text.startswith(
        f"Caltech101 has no split file {tmp_path / 'caltech-101' / 'split_zhou_Caltech101.json'}."
    )
    assert "DATASETS.md" in text


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"<html>not found</html>",
        b"\xff\xfe",
        b"[]",
        b'{"train": []}',
        b'{"train": 3, "val": [], "test": []}',
        b'{"train": [["a.jpg", 0]], "val": [], "test": []}',
        b'{"train": [["a.jpg", "x", "a"]], "val": [], "test": []}',
    ],
)
def test_a_split_of_another_shape(caltech, text):
    path = caltech / "caltech-101" / "split_zhou_Caltech101.json"
    path.write_bytes(text)
    assert message("Caltech101", caltech).startswith(
        f"{path} is not a split in CoOp's JSON format ("
    )


def test_absent_images(caltech):
    images = caltech / "caltech-101" / "101_ObjectCategories"
    for name in ("3_train_4.jpg", "1_val_0.jpg"):
        (images / name).unlink()
    text = message("Caltech101", caltech, shots=1)
    assert text.startswith("2 of the 72 images that ")
    assert f"are missing, the first of them {images / '3_train_4.jpg'}." in text


def test_unknown_classes(caltech):
    assert (
        message("Caltech101", caltech, classes="old")
        == 'DATASET.SUBSAMPLE_CLASSES is "old", but must be "all", "base" or "new".'
    )


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    text = message("Digits", tmp_path / "file")
    assert text.startswith(f"Digits cannot be written to {tmp_path / 'file' / 'digits'} (")
    assert "--root" in text


def test_a_foreign_folder_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").touch()
    assert "a folder of that name without split_digits.json must be moved away first" in message(
        "Digits", tmp_path
    )
    assert os.listdir(tmp_path) == ["digits"] and os.listdir(tmp_path / "digits") == ["mine.txt"]


def test_pictures_of_another_version(tiny):
    row, _, folder = tiny
    row.read(row, str(folder))
    newer = generated.generated("Tiny", None, version=2)
    with pytest.raises(
        DatasetError,
        match=(
            "holds version 1 of the generated data set Tiny, but this is version 2: move that "
            "folder away"
        ),
    ):
        newer.read(newer, str(folder))
