"""The four protocols through the shell scripts, and the words of a prompt."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import train
import trees
from support import REPO, SMALL, bill, own, printed, run

import interpret_prompt

OPTIONS = (*SMALL, "ORACLE.MAX_QUERIES", 20)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATASET.ROOT with four data sets of four classes, which scripts leave as they are."""
    root = tmp_path_factory.mktemp("data")
    for name in ("Caltech101", "EuroSAT", "ImageNet", "ImageNetV2"):
        trees.make(name, root)
    before = trees.everything(root)
    yield root
    assert trees.everything(root) == before


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


@pytest.fixture
def done(script, monkeypatch):
    """`done(name, *args)`: exit statuses of the runs of a script, made in this process."""
    monkeypatch.chdir(REPO)

    def runs(name, *args):
        lines = script(name, *args, DRY_RUN="1").stdout.splitlines()
        return [train.main(train.parse_args(shlex.split(line)[2:])) for line in lines]

    return runs


def test_base_to_new(script, done, output, capsys):
    given = "ZIP", "caltech101", "tiny", 2
    early = script("base2new_test.sh", *given)
    assert early.returncode == 1
    assert early.stderr.rstrip().endswith("bash scripts/base2new_train.sh ZIP caltech101 tiny 2")
    for name in ("base2new_train.sh", "base2new_test.sh"):
        assert done(name, *given, *OPTIONS) == [0]
    for half, queries in (("train_base", 20), ("test_new", 0)):
        folder = output / "base2new" / half / "caltech101" / "shots_2" / "ZIP" / "tiny" / "seed1"
        assert bill(folder)["training"]["queries"] == queries
        assert "* total: 4\n" in (folder / "log.txt").read_text()  # half of the classes each
    trained = output / "base2new" / "train_base" / folder.relative_to(folder.parents[4])
    for skipped in (True, False):
        capsys.readouterr()
        assert done("base2new_test.sh", *given, *OPTIONS) == [0]
        assert ("holds this evaluation: skipped" in capsys.readouterr().out) == skipped
        os.utime(trained / "prompt_learner" / "checkpoint")  # trained anew since then
    assert done("zeroshot.sh", "eurosat", "tiny") == [0]
    log = (output / "ZeroshotOracle" / "tiny" / "eurosat" / "log.txt").read_text()
    assert 'Template: "a centered satellite photo of {}."' in log


def test_transfer_and_domain_generalisation(script, done, output):
    options = "CBBT", "tiny", 2, *own("CBBT", Q=6), *OPTIONS
    assert done("xd_train.sh", *options) == [0]
    folder = output / "imagenet" / "CBBT" / "tiny_2shots" / "seed1"
    assert bill(folder)["training"]["queries"] == 14
    tested = script("xd_test.sh", *options, TARGETS="food101 imagenetv2")
    assert tested.returncode == 1
    assert "error: Food101 has no split file" in tested.stderr  # and the other had its turn
    folder = output / "evaluation" / "CBBT" / "tiny_2shots" / "imagenetv2" / "seed1"
    assert printed(folder) and bill(folder)["training"]["queries"] == 0


def test_a_dry_run_prints_what_would_run(script, tmp_path):
    words, dry = own("ZIP", CTX_INIT="a photo of a"), {"OUTPUT": str(tmp_path), "DRY_RUN": "1"}
    done = script("main.sh", "ZIP", "caltech101", "vit_b16", 4, *words, SEEDS="1 5", **dry)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2 and not list(tmp_path.iterdir())
    folder = f"--output-dir {tmp_path}/caltech101/ZIP/vit_b16_4shots/seed5"
    wanted = f"{folder} DATASET.NUM_SHOTS 4 TRAINER.ZIP.CTX_INIT a\\ photo\\ of\\ a"
    assert lines[1].rstrip().endswith(wanted)
    lines = script("xd_test.sh", "CraFT", "rn50", 16, **dry).stdout.splitlines()
    # its training's settings
    assert len(lines) == 14 and all("trainers/CraFT/rn50_imagenet.yaml" in line for line in lines)
    done = script("main.sh", "CraFT", "eurosat", "rn50", 16, **dry)
    assert "configs/trainers/CraFT/rn50_eurosat.yaml" in done.stdout


def test_the_words_of_a_prompt_that_starts_from_words(root, tmp_path, call):
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "eurosat.yaml"
    options = "ORACLE.MAX_QUERIES", 20, *own("CBBT", CTX_INIT="a photo of the")
    assert run("CBBT", root, tmp_path / "run", *options, flags=flags) == 0
    status, out, err = call(interpret_prompt.main, tmp_path / "run", 2)
    assert status == 0, err
    lines = [line for line in out.splitlines() if re.match(r"\d+: ", line)]
    assert [line.split()[1] for line in lines] == ["a", "photo", "of", "the"]
    assert all(line.count("(") == 2 for line in lines)
