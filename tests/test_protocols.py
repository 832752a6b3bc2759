"""The four protocols through the shell scripts, the tables and plots of what they leave, and the
words of a prompt.
"""

import csv
import io
import os
import re
import subprocess
import sys

import pytest
import trees
from dassl_blackbox import results
from finished import CURVE, make, store
from support import REPO, SMALL, accuracy, bill, own, run

import interpret_prompt

OPTIONS = (*SMALL, "ORACLE.MAX_QUERIES", 20)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATASET.ROOT with four data sets of four classes, which the tests of this file leave as they
    are.
    """
    root = tmp_path_factory.mktemp("data")
    for name in ("Caltech101", "EuroSAT", "ImageNet", "ImageNetV2"):
        trees.make(name, root)
    before = {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}
    yield root
    assert {path: path.is_file() and path.read_bytes() for path in root.rglob("*")} == before


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture
def script(root, output):
    """`script(name, *args, **environment)`: a script of ours on that root, for one seed."""

    def call(name, *args, **environment):
        path = f"{sys.prefix}/bin:{os.environ['PATH']}"
        env = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": path, "PYTHONPATH": str(REPO)}
        env |= {"DATA": str(root), "OUTPUT": str(output), "SEEDS": "1", **environment}
        command = ["bash", str(REPO / "scripts" / name), *map(str, args)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)

    return call


def test_base_to_new(script, output):
    given = "ZIP", "caltech101", "tiny", 2
    early = script("base2new_test.sh", *given)
    assert early.returncode == 1
    assert early.stderr.rstrip().endswith("bash scripts/base2new_train.sh ZIP caltech101 tiny 2")
    for name in ("base2new_train.sh", "base2new_test.sh"):
        done = script(name, *given, *OPTIONS)
        assert done.returncode == 0, done.stderr
    for half, queries in (("train_base", 20), ("test_new", 0)):
        folder = output / "base2new" / half / "caltech101" / "shots_2" / "ZIP" / "tiny" / "seed1"
        assert bill(folder)["training"]["queries"] == queries
        assert "* total: 4\n" in (folder / "log.txt").read_text()  # half of the classes each
    skipped = "holds this evaluation: skipped"
    assert skipped in script("base2new_test.sh", *given, *OPTIONS).stdout
    trained = output / "base2new" / "train_base" / folder.relative_to(folder.parents[4])
    os.utime(trained / "prompt_learner" / "checkpoint")  # trained anew since then
    assert skipped not in script("base2new_test.sh", *given, *OPTIONS).stdout


def test_transfer_and_domain_generalisation(script, output):
    options = "CBBT", "tiny", 2, *own("CBBT", Q=6), *OPTIONS
    done = script("xd_train.sh", *options, TAG="small")
    assert done.returncode == 0, done.stderr
    folder = output / "imagenet" / "CBBT" / "tiny_2shots_small" / "seed1"
    assert bill(folder)["training"]["queries"] == 14
    done = script("xd_test.sh", *options, TAG="small", TARGETS="food101 imagenetv2 eurosat")
    assert done.returncode == 1
    assert "error: Food101 has no split file" in done.stderr  # and the others had their turn
    for target in ("imagenetv2", "eurosat"):
        folder = output / "evaluation" / "CBBT" / "tiny_2shots_small" / target / "seed1"
        assert accuracy((folder / "log.txt").read_text())
        assert bill(folder)["training"]["queries"] == 0


def test_zero_shot(script, output):
    assert script("zeroshot.sh", "eurosat", "tiny").returncode == 0
    log = (output / "ZeroshotOracle" / "tiny" / "eurosat" / "log.txt").read_text()
    assert 'Template: "a centered satellite photo of {}."' in log


def test_a_dry_run_prints_what_would_run(script, tmp_path):
    words, dry = own("ZIP", CTX_INIT="a photo of a"), {"OUTPUT": str(tmp_path), "DRY_RUN": "1"}
    done = script("zip/main.sh", "caltech101", "vit_b16", 4, *words, SEEDS="1 5", **dry)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2 and not list(tmp_path.iterdir())
    folder = f"--output-dir {tmp_path}/caltech101/ZIP/vit_b16_4shots/seed5"
    wanted = f"{folder} DATASET.NUM_SHOTS 4 TRAINER.ZIP.CTX_INIT a\\ photo\\ of\\ a"
    assert lines[1].rstrip().endswith(wanted)
    lines = script("xd_test.sh", "CraFT", "rn50", 16, **dry).stdout.splitlines()
    # its training's settings
    assert len(lines) == 14 and all("trainers/CraFT/rn50_imagenet.yaml" in line for line in lines)
    done = script("craft/main.sh", "eurosat", "rn50", 16, **dry)
    assert "configs/trainers/CraFT/rn50_eurosat.yaml" in done.stdout


def test_a_script_without_arguments_says_how_it_is_called(script):
    without = {"setup.sh", "run.sh", "quickstart.sh", "test.sh"}  # sourced, or without arguments
    for path in sorted((REPO / "scripts").rglob("*.sh")):
        if path.name not in without:
            done = script(path.relative_to(REPO / "scripts"))
            assert done.returncode == 2 and "bash scripts/" in done.stderr, path


ACCURACIES = {"caltech101": ("Caltech101", 60.0, 40.0), "eurosat": ("EuroSAT", 70.0, 30.0)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two methods on two data sets in CoOp's layout, one of them with two seeds and two numbers of
    shots; base and new classes of both.
    """
    out = tmp_path_factory.mktemp("tree")

    def finished(path, dataset, accuracy, trainer="ZIP", shots=2, classes="all"):
        folder = make(out / path, accuracy, trainer)
        about = {"trainer": trainer, "dataset": dataset, "shots": shots, "classes": classes}
        store(folder, accuracy=accuracy, **about)
        (folder / CURVE).write_text(f"10,80,{accuracy - 20}\n20,160,{accuracy - 10}\n")

    for config, (name, reached, zero) in ACCURACIES.items():
        finished(f"{config}/ZIP/tiny_2shots/seed1", name, reached)
        finished(f"ZeroshotOracle/tiny/{config}", name, zero, "ZeroshotOracle")
        for half, classes, of in (("train_base", "base", 80.0), ("test_new", "new", reached)):
            finished(f"base2new/{half}/{config}/ZIP/seed1", name, of, classes=classes)
    finished("eurosat/ZIP/tiny_2shots/seed2", "EuroSAT", 74.0)
    finished("eurosat/ZIP/tiny_4shots/seed1", "EuroSAT", 80.0, shots=4)
    (out / "ZeroshotOracle" / "tiny" / "eurosat" / CURVE).unlink()
    return out


@pytest.fixture
def table(call):
    """`table(*args)`: the rows of a table of results, and what was noted beside it."""

    def rows(*args):
        status, out, err = call(results.main, *args, "--format", "csv")
        assert status == 0
        return list(csv.reader(io.StringIO(out))), err

    return rows


def test_data_sets_across_and_methods_down_and_published_rows_below(tree, table):
    (headers, *rows), noted = table(tree, "--across")
    found = {row[0]: row[1:] for row in rows}
    assert headers == ["method", "Caltech101", "EuroSAT", "mean"]
    assert found["ZIP/tiny_2shots"] == ["60.0", "72.0 ± 2.0", "66.0"]
    assert found["ZIP/tiny_4shots"] == ["–", "80.0", "–"]
    assert found["ZeroshotOracle/tiny"] == ["40.0", "30.0", "35.0"]
    # of zero-shot there is one seed, too
    fewer = re.findall("note: (.*) has (.*) seeds", noted)
    assert {("caltech101/ZIP/tiny_2shots", "1 of 2"), ("eurosat/ZIP/tiny_4shots", "1 of 2")} <= {
        *fewer
    }
    (headers, *rows), _ = table(tree, "--across", "--published")
    found = {row[0]: dict(zip(headers, row)) for row in rows}
    published = found["ZIP (published, ViT-B/16)"]
    assert (published["EuroSAT"], published["mean"]) == ("64.0", "63.1")
    assert found["zero-shot (published, ViT-B/16)"]["mean"] == "–"
    assert found["ZIP/tiny_2shots"]["mean"] == "–"


def test_base_new_and_their_harmonic_mean(tree, table, call):
    (headers, *rows), _ = table(tree / "base2new", "--base2new")
    assert headers == ["method", "data set", "base", "new", "H"]
    assert [row[1:] for row in rows] == [
        ["Caltech101", "80.0", "60.0", "68.6"],
        ["EuroSAT", "80.0", "70.0", "74.7"],
        ["mean", "80.0", "65.0", "71.7"],
    ]
    status, _, err = call(results.main, tree / "eurosat", "--base2new")
    assert status == 1 and "has no experiment in both train_base and test_new" in err


def test_the_words_of_a_prompt_that_starts_from_words(root, tmp_path, call):
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "eurosat.yaml"
    options = "ORACLE.MAX_QUERIES", 20, *own("CBBT", CTX_INIT="a photo of the")
    assert run("CBBT", root, tmp_path / "run", *options, flags=flags) == 0
    status, out, err = call(interpret_prompt.main, tmp_path / "run", 2)
    assert status == 0, err
    lines = [line for line in out.splitlines() if re.match(r"\d+: ", line)]
    assert [line.split()[1] for line in lines] == ["a", "photo", "of", "the"]
    assert all(line.count("(") == 2 for line in lines)
