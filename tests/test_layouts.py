"""Every data set of the table, on a small tree in the real one's shape."""

import json
import os
import shutil
from pathlib import Path

import pytest
import trees
from dassl_blackbox.datasets import __main__ as check_command
from dassl_blackbox.datasets.listing import DatasetError
from dassl_blackbox.datasets.table import ROWS
from PIL import Image
from support import REPO, accuracy, run
from test_datasets import OURS, content, load

HOSTS = {row.name for row in ROWS if row not in OURS}
TREES = [name for name in (*trees.JSON_SPLITS, *trees.VARIANTS, *trees.OTHERS) if name not in HOSTS]


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """One root with all of them, and what each should hold."""
    root = tmp_path_factory.mktemp("forest")
    pictures = tmp_path_factory.mktemp("pictures")  # an ImageFolder is a root of its own
    return root, {
        name: (
            pictures if name == "ImageFolder" else root,
            *trees.make(name, pictures if name == "ImageFolder" else root),
        )
        for name in TREES
    }


@pytest.fixture
def tree(tmp_path):
    return lambda name: (trees.make(name, tmp_path), tmp_path / trees.ROW[name].folder)[1]


def test_every_row_that_is_not_generated_has_a_tree():
    assert set(TREES) == {row.name for row in ROWS if row.default_root == ""} - HOSTS
    assert HOSTS <= {"CIFAR10", "CIFAR100"}


def everything(root):
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("name", TREES)
def test_it_loads_with_its_classes_in_order(forest, name):
    root, names, sizes = forest[1][name]
    before = everything(root)
    dataset = load(name, root)
    assert dataset.classnames == names
    assert (
        tuple(items and len(items) for items in (dataset.train_x, dataset.val, dataset.test))
        == sizes
    )
    for items in filter(None, (dataset.train_x, dataset.val, dataset.test)):
        assert {(item.label, item.classname) for item in items} == set(enumerate(names))
    assert everything(root) == before


@pytest.mark.parametrize("name", TREES)
def test_a_label_means_the_same_pictures_in_every_part(forest, name):
    root, _, _ = forest[1][name]
    dataset = load(name, root)
    for item in [*dataset.train_x, *(dataset.val or []), *dataset.test]:
        with Image.open(item.impath) as image:
            red, green, blue = image.resize((1, 1), Image.BOX).convert("RGB").getpixel((0, 0))
        drawn = trees.NAMES[item.label] if name == "Svhn" else item.classname.replace("_", " ")
        wanted = {
            picture.tobytes()
            for i in range(60)
            for picture in [trees.picture(drawn, i).resize((1, 1), Image.BOX)]
        }
        near = min(abs(red - w[0]) + abs(green - w[1]) + abs(blue - w[2]) for w in wanted)
        assert near <= 12, (
            f"{item.impath} does not show {item.classname}"
        )  # JPEG shifts a mean by a few levels


@pytest.mark.parametrize("name", [name for name in TREES if name not in trees.VARIANTS])
def test_base_and_new_are_halves_of_all(forest, name):
    root, names, _ = forest[1][name]
    whole, base, new = (load(name, root, classes=which) for which in ("all", "base", "new"))
    assert base.classnames + new.classnames == names and len(base.classnames) == 2
    assert sorted(item.impath for item in base.test + new.test) == sorted(
        item.impath for item in whole.test
    )


@pytest.mark.parametrize("name", TREES)
def test_a_few_shot_run_through_the_command_line(forest, name, tmp_path):
    root, _, sizes = forest[1][name]
    flags = (
        "--dataset-config-file",
        REPO / "configs" / "datasets" / f"{trees.ROW[name].config}.yaml",
    )
    trained = run(
        "ZIP", root, tmp_path / "run", "ORACLE.MAX_QUERIES", 20, "DATASET.NUM_SHOTS", 2, flags=flags
    )
    if name in trees.VARIANTS:  # nothing to train on: evaluation alone
        assert trained == 1 and not (tmp_path / "run").exists()
        assert run("ZeroshotOracle", root, tmp_path / "run", flags=flags) == 0
    else:
        assert trained == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"* total: {sizes[2]:,}\n" in log and accuracy(log)


def test_training_on_a_test_set_is_refused(forest, tmp_path, capsys):
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "imagenet_a.yaml"
    for trainer in ("ZIP", "WhiteBox"):
        assert run(trainer, forest[0], tmp_path / "run", flags=flags) == 1
        assert "error: ImageNetA: the training image " in capsys.readouterr().err


# Quirks


def test_imagenetv2s_folders_are_numbers_and_not_words(tree, tmp_path):
    folder = tree("ImageNetV2")
    (folder / "classnames.txt").write_text("".join(f"n{i:08d} thing {i}\n" for i in range(12)))
    images = folder / trees.ROW["ImageNetV2"].images
    for i in range(4, 12):
        shutil.copytree(images / "0", images / str(i))
    dataset = load("ImageNetV2", tmp_path)
    assert dataset.classnames == [f"thing {i}" for i in range(12)]
    assert all(item.impath.split(os.sep)[-2] == str(item.label) for item in dataset.test)


def test_svhns_split_goes_by_two_names(tree, tmp_path):
    folder = tree("Svhn")
    found = content(load("Svhn", tmp_path).train_x)
    (folder / "split_mlai_SVHN.json").rename(folder / "split_SVHN.json")
    assert content(load("Svhn", tmp_path).train_x) == found


def test_a_size_that_is_not_the_published_one_is_noted(forest, capsys):
    load("EuroSAT", forest[0])
    assert "Note: EuroSAT in " in capsys.readouterr().out
    load("Digits", forest[0].parent)
    assert "Note: " not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, folder",
    [
        ("ImageFolder", "train/green_triangle"),
        ("ImageNet", "images/train/n02007558"),
        ("ImageNetV2", "imagenetv2-matched-frequency-format-val/2"),
    ],
)
def test_a_class_without_training_images_would_misnumber_the_others(tree, tmp_path, name, folder):
    for image in (tree(name) / folder).iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match="class . of 4 .counted from 0. has no training image"):
        load(name, tmp_path)


def test_a_test_class_that_is_never_trained(tree, tmp_path):
    path = tree("EuroSAT") / "split_zhou_EuroSAT.json"
    split = json.loads(path.read_text())
    split["train"] = [item for item in split["train"] if item[1] != 3]
    path.write_text(json.dumps(split))
    with pytest.raises(
        DatasetError, match='is of class 3, "yellow star", which has no training image'
    ):
        load("EuroSAT", tmp_path)


def test_a_run_goes_on_only_with_its_own_pictures(forest, tree, tmp_path, capsys):
    folder = tree("ImageFolder")
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "imagefolder.yaml"
    assert (
        run(
            "ZIP",
            forest[1]["ImageFolder"][0],
            tmp_path / "run",
            "ORACLE.MAX_QUERIES",
            20,
            flags=flags,
        )
        == 0
    )
    assert (
        run("ZIP", tmp_path, tmp_path / "run", "ORACLE.MAX_QUERIES", 40, flags=flags) == 0
    )  # the same, elsewhere
    (folder / "train" / "red_circle").rename(folder / "train" / "orange_circle")
    for part in ("val", "test"):
        shutil.rmtree(folder / part / "red_circle")
    assert run("ZIP", tmp_path, tmp_path / "run", "ORACLE.MAX_QUERIES", 60, flags=flags) == 1
    assert "was made with other settings (training images)" in capsys.readouterr().err


def test_without_val_the_best_model_can_be_evaluated_and_not_trained(forest, tmp_path, capsys):
    def flags(config, *more):
        return "--dataset-config-file", REPO / "configs" / "datasets" / f"{config}.yaml", *more

    options = "ORACLE.MAX_QUERIES", 20, "TEST.FINAL_MODEL", "best_val", "ORACLE.VAL_EVERY", 10
    assert run("ZIP", forest[0], tmp_path / "no", *options, flags=flags("imagenet")) == 1
    assert "has no validation split of its own" in capsys.readouterr().err
    assert run("ZIP", forest[0], tmp_path / "run", *options, flags=flags("eurosat")) == 0
    assert (
        run(
            "ZIP",
            forest[0],
            tmp_path / "there",
            *options,
            flags=flags("imagenet_a", "--eval-only", "--model-dir", tmp_path / "run"),
        )
        == 0
    )
    assert (
        run(
            "ZIP",
            forest[0],
            tmp_path / "no",
            *options,
            "TEST.SPLIT",
            "val",
            flags=flags("imagenet_a", "--eval-only", "--model-dir", tmp_path / "run"),
        )
        == 1
    )


# A user's own pictures


@pytest.mark.parametrize(
    "missing, sizes",
    [(("val",), (12, 4, 8)), (("test",), (12, 8, 4)), (("val", "test"), (8, 4, 4))],
)
def test_parts_without_a_folder_come_from_train_once(tree, tmp_path, missing, sizes):
    folder = tree("ImageFolder")
    for part in missing:
        shutil.rmtree(folder / part)
    first = load("ImageFolder", tmp_path, seed=1)
    assert tuple(len(items) for items in (first.train_x, first.val, first.test)) == sizes
    paths = [item.impath for items in (first.train_x, first.val, first.test) for item in items]
    assert len(set(paths)) == len(paths)
    split = folder / "split_imagefolder.json"
    written = split.read_bytes()
    trees.save(folder / "train" / "red_circle" / "0_new.png", "red circle", 3)
    again = load("ImageFolder", tmp_path, seed=2)
    assert content(again.test) == content(first.test) and split.read_bytes() == written
    split.unlink()
    (folder / "train" / "red_circle" / "0_new.png").unlink()
    assert content(load("ImageFolder", tmp_path, seed=3).test) == content(first.test)


def test_the_shares_are_those_of_the_whole_class(tree, tmp_path):
    folder = tree("ImageFolder")
    for part in ("val", "test"):
        shutil.rmtree(folder / part)
    for i in range(4, 10):
        for name in trees.NAMES:
            trees.save(folder / "train" / name.replace(" ", "_") / f"{i}.png", name, i)
    dataset = load("ImageFolder", tmp_path)
    assert [len(items) for items in (dataset.train_x, dataset.val, dataset.test)] == [20, 8, 12]
    trees.save(folder / "train" / "pink_ring" / "0.png", "pink ring", 0)
    with pytest.raises(DatasetError, match="has other classes than the folders.*Move it away"):
        load("ImageFolder", tmp_path)
    shutil.rmtree(folder / "train" / "pink_ring")
    Path(dataset.test[0].impath).unlink()
    with pytest.raises(DatasetError, match="or move the split file away"):
        load("ImageFolder", tmp_path)


def test_a_folder_that_was_added_after_the_split(tree, tmp_path):
    folder = tree("ImageFolder")
    shutil.move(folder / "test", tmp_path / "aside")
    load("ImageFolder", tmp_path)
    shutil.move(tmp_path / "aside", folder / "test")
    assert content(load("ImageFolder", tmp_path).test)[0][0].startswith(
        str(folder / "test")
    )  # nothing is missing: the split has no part in it
    shutil.rmtree(folder / "val")
    with pytest.raises(
        DatasetError,
        match="was made for other folders .test taken from train, now val.*Move it away",
    ):
        load("ImageFolder", tmp_path)


def test_what_is_no_picture_is_passed_over(tree, tmp_path):
    folder = tree("ImageFolder")
    (folder / "train" / "red_circle" / "notes.txt").touch()
    assert len(load("ImageFolder", tmp_path).train_x) == 16


def test_a_class_that_is_too_small_to_share(tree, tmp_path):
    folder = tree("ImageFolder")
    shutil.rmtree(folder / "test")
    for image in sorted((folder / "train" / "red_circle").iterdir())[1:]:
        image.unlink()
    with pytest.raises(
        DatasetError, match='the class "red_circle" has too few images to take test from'
    ):
        load("ImageFolder", tmp_path)


# The check


def test_the_check_tells_what_is_there(forest, tmp_path, monkeypatch, capsys):
    def lines(root):
        monkeypatch.setattr("sys.argv", ["check", "check", "--root", str(root)])
        code = check_command.main()
        return code, {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}

    before = everything(forest[0])
    code, table = lines(forest[0])
    assert code == 1 and set(table) == {row.name for row in ROWS} - {"ImageFolder"}
    assert (
        table["EuroSAT"].split()[3:7] == ["4", "16", "8", "8"]
        and "10 classes are published" not in table["EuroSAT"]
    )
    assert (
        "4 classes where 10 are published; 16 train images where 13,500 are published"
        in table["EuroSAT"]
    )
    assert table["Digits"].endswith("not here: written when it is first used")
    (forest[0] / "caltech-101" / "101_ObjectCategories" / "red_circle").rename(tmp_path / "aside")
    broken = lines(forest[0])[1]["Caltech101"]
    (tmp_path / "aside").rename(forest[0] / "caltech-101" / "101_ObjectCategories" / "red_circle")
    assert "8 of the 32 images" in broken
    assert everything(forest[0]).keys() == before.keys()
    assert lines(tmp_path)[0] == 0
    (tmp_path / "digits").mkdir()
    assert lines(tmp_path)[0] == 0 and not list((tmp_path / "digits").iterdir())
    load("Shapes", tmp_path)
    assert lines(tmp_path)[1]["Shapes"].endswith("complete")
    monkeypatch.setattr("sys.argv", ["check", "check", "--root", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="error: .*nowhere is not a folder"):
        check_command.main()


# Errors are sentences

BREAK = {
    "ImageNet without names": (
        "ImageNet",
        lambda f: (f / "classnames.txt").unlink(),
        "ImageNet: .*classnames.txt cannot be read .No such file",
    ),
    "ImageNet without val": (
        "ImageNet",
        lambda f: shutil.rmtree(f / "images" / "val"),
        "the folder .*images/val cannot be read",
    ),
    "a folder without a name": (
        "ImageNet",
        lambda f: (f / "images" / "train" / "n00000001").mkdir(),
        "no line for the folder .*n00000001",
    ),
    "a val class that train lacks": (
        "ImageNet",
        lambda f: (f / "images" / "val" / "n00000001").mkdir(),
        "n00000001 is no class of it",
    ),
    "no images": (
        "ImageNetA",
        lambda f: [shutil.rmtree(p) for p in (f / "imagenet-a").iterdir() if p.is_dir()],
        "there are no images in .*imagenet-a",
    ),
    "Aircraft without a list": (
        "FGVCAircraft",
        lambda f: (f / "images_variant_val.txt").unlink(),
        "images_variant_val.txt cannot be read",
    ),
    "an unknown variant": (
        "FGVCAircraft",
        lambda f: (f / "variants.txt").write_text("red circle\n"),
        "which variants.txt lacks",
    ),
    "an absent plane": (
        "FGVCAircraft",
        lambda f: (f / "images" / "0000003.jpg").unlink(),
        "1 of the 16 images that .*variant_train.txt names are missing, .*0000003.jpg",
    ),
    "Svhn without a split": (
        "Svhn",
        lambda f: (f / "split_mlai_SVHN.json").unlink(),
        "Svhn has no split file .*split_SVHN.json",
    ),
    "Svhn without test": (
        "Svhn",
        lambda f: shutil.rmtree(f / "test"),
        "the folder .*svhn/test cannot be read",
    ),
    "CIFAR without test": (
        "CIFAR10",
        lambda f: shutil.rmtree(f / "test"),
        "the folder .*cifar10/test cannot be read",
    ),
    "no train": (
        "ImageFolder",
        lambda f: shutil.rmtree(f / "train"),
        "the folder .*train cannot be read .*Put the class folders there, or pass --root .DATA",
    ),
    "a test class that train lacks": (
        "ImageFolder",
        lambda f: (f / "test" / "cat").mkdir(),
        "test/cat is no class of it",
    ),
    "no JSON": (
        "OxfordPets",
        lambda f: (f / "split_zhou_OxfordPets.json").write_text("{"),
        "is not a split in CoOp's JSON format",
    ),
}


@pytest.mark.parametrize(
    "name, damage, words", [case for case in BREAK.values() if case[0] not in HOSTS]
)
def test_a_damaged_tree(tree, tmp_path, name, damage, words):
    damage(tree(name))
    with pytest.raises(DatasetError, match=words):
        load(name, tmp_path)


def test_a_split_of_svhn_needs_no_test_part(tree, tmp_path):
    folder = tree("Svhn")
    split = json.loads((folder / "split_mlai_SVHN.json").read_text())
    del split["val"]
    (folder / "split_mlai_SVHN.json").write_text(json.dumps(split))
    with pytest.raises(DatasetError, match='expected "train" and "val", lists of'):
        load("Svhn", tmp_path)
