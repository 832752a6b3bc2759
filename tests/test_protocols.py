"""The four protocols through the shell scripts, and the tables, plots and words that are read from
what they leave.
"""

import os
import re
import subprocess
import sys

import pytest
import torch
import trees
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from support import REPO, SMALL, accuracy, bill, process, run
from trees import everything

import interpret_prompt

OPTIONS = (*SMALL, "ORACLE.MAX_QUERIES", "20")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATASET.ROOT with four data sets of four classes."""
    root = tmp_path_factory.mktemp("data")
    for name in ("Caltech101", "EuroSAT", "ImageNet", "ImageNetV2"):
        trees.make(name, root)
    before = everything(root)
    yield root
    assert (
        everything(root) == before
    )  # whatever the tests of this file ran, the data are as they were


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


def script(name, *args, root, output, **environment):
    """A script of ours in the environment of these tests."""
    env = {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "DATA": str(root),
        "OUTPUT": str(output),
        "SEEDS": "1",
        **environment,
    }
    return subprocess.run(
        ["bash", str(REPO / "scripts" / name), *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


# The scripts


def test_base_to_new(root, output):
    early = script("base2new_test.sh", "ZIP", "caltech101", "tiny", 2, root=root, output=output)
    assert early.returncode == 1
    assert early.stderr.splitlines()[-1].endswith(
        "and options: bash scripts/base2new_train.sh ZIP caltech101 tiny 2"
    )
    for name in ("base2new_train.sh", "base2new_test.sh"):
        done = script(name, "ZIP", "caltech101", "tiny", 2, *OPTIONS, root=root, output=output)
        assert done.returncode == 0, done.stderr
    folders = [
        output / "base2new" / half / "caltech101" / "shots_2" / "ZIP" / "tiny" / "seed1"
        for half in ("train_base", "test_new")
    ]
    assert (
        bill(folders[0])["training"]["queries"] == 20
        and bill(folders[1])["training"]["queries"] == 0
    )
    assert all(
        "* total: 4\n" in (folder / "log.txt").read_text() for folder in folders
    )  # half of the classes each
    again = script(
        "base2new_test.sh", "ZIP", "caltech101", "tiny", 2, *OPTIONS, root=root, output=output
    )
    assert "holds this evaluation: skipped" in again.stdout
    os.utime(folders[0] / "prompt_learner" / "checkpoint")  # trained anew since then
    again = script(
        "base2new_test.sh", "ZIP", "caltech101", "tiny", 2, *OPTIONS, root=root, output=output
    )
    assert again.returncode == 0 and "skipped" not in again.stdout


def test_transfer_and_domain_generalisation(root, output):
    for name, targets in (("xd_train.sh", ""), ("xd_test.sh", "food101 imagenetv2 eurosat")):
        done = script(
            name,
            "CBBT",
            "tiny",
            2,
            "TRAINER.CBBT.Q",
            6,
            *OPTIONS,
            root=root,
            output=output,
            TARGETS=targets,
            TAG="small",
        )
        assert done.returncode == (1 if targets else 0), done.stderr
    assert "error: Food101 has no split file" in done.stderr  # and the others had their turn
    assert (
        bill(output / "imagenet" / "CBBT" / "tiny_2shots_small" / "seed1")["training"]["queries"]
        == 14
    )
    for target in ("imagenetv2", "eurosat"):
        folder = output / "evaluation" / "CBBT" / "tiny_2shots_small" / target / "seed1"
        assert (
            accuracy((folder / "log.txt").read_text()) and bill(folder)["training"]["queries"] == 0
        )


def test_zero_shot(root, output):
    assert script("zeroshot.sh", "eurosat", "tiny", root=root, output=output).returncode == 0
    assert (
        'Template: "a centered satellite photo of {}."'
        in (output / "ZeroshotOracle" / "tiny" / "eurosat" / "log.txt").read_text()
    )


def test_a_dry_run_prints_what_would_run(root, tmp_path):
    done = script(
        "zip/main.sh",
        "caltech101",
        "vit_b16",
        4,
        "TRAINER.ZIP.CTX_INIT",
        "a photo of a",
        root=root,
        output=tmp_path,
        SEEDS="1 5",
        DRY_RUN="1",
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2 and not list(tmp_path.iterdir())
    assert (
        lines[1]
        .rstrip()
        .endswith(
            f"--output-dir {tmp_path}/caltech101/ZIP/vit_b16_4shots/seed5 DATASET.NUM_SHOTS 4 "
            "TRAINER.ZIP.CTX_INIT a\\ photo\\ of\\ a"
        )
    )
    done = script("xd_test.sh", "CraFT", "rn50", 16, root=root, output=tmp_path, DRY_RUN="1")
    assert (
        len(done.stdout.splitlines()) == 14
        and done.stdout.count("configs/trainers/CraFT/rn50_imagenet.yaml") == 14
    )  # its training's settings
    done = script("craft/main.sh", "eurosat", "rn50", 16, root=root, output=tmp_path, DRY_RUN="1")
    assert "configs/trainers/CraFT/rn50_eurosat.yaml" in done.stdout


@pytest.mark.parametrize(
    "name",
    sorted(str(path.relative_to(REPO / "scripts")) for path in (REPO / "scripts").rglob("*.sh")),
)
def test_a_script_without_arguments_says_how_it_is_called(name, tmp_path):
    if name in ("setup.sh", "run.sh", "quickstart.sh", "test.sh"):
        assert (
            (REPO / "scripts" / name).read_text().splitlines()[-1]
        )  # sourced, or without arguments
        return
    done = script(name, root=tmp_path, output=tmp_path)
    assert done.returncode == 2 and "bash scripts/" in done.stderr


def test_a_head_cannot_move_to_other_classes(root, tmp_path, capsys):
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "caltech101.yaml"
    assert run("CraFT", root, tmp_path / "run", "ORACLE.MAX_QUERIES", 10, flags=flags) == 0
    flags += "--eval-only", "--model-dir", tmp_path / "run"
    assert (
        run("CraFT", root, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", flags=flags) == 1
    )
    assert "It cannot move to others" in capsys.readouterr().err
    assert run("CraFT", root, tmp_path / "same", flags=flags) == 0


# Words


def test_the_words_of_a_prompt_that_starts_from_words(root, tmp_path, capsys):
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "eurosat.yaml"
    assert (
        run(
            "CBBT",
            root,
            tmp_path / "run",
            "ORACLE.MAX_QUERIES",
            20,
            "TRAINER.CBBT.CTX_INIT",
            "a photo of the",
            flags=flags,
        )
        == 0
    )
    shown = process(REPO / "interpret_prompt.py", tmp_path / "run", 2)
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if re.match(r"\d+: ", line)]
    assert [line.split()[1] for line in lines] == ["a", "photo", "of", "the"] and all(
        line.count("(") == 2 for line in lines
    )


def test_nearest_words_are_nearest():
    torch.manual_seed(0)
    table = {}

    def embed(text):
        return torch.stack([table.setdefault(word, torch.randn(4)) for word in text.split(" ")])

    words = interpret_prompt.nearest_words(torch.zeros(1, 4), embed, 3)[0]
    assert [word for word, _ in words] == sorted(table, key=lambda word: table[word].norm().item())[
        :3
    ]
    assert [distance for _, distance in words] == pytest.approx(
        [table[word].norm().item() for word, _ in words], rel=1e-4
    )


def test_interpreting_what_is_no_run(root, tmp_path):
    with pytest.raises(BlackBoxError, match="There is no .*config.yaml. Give the output folder"):
        interpret_prompt.main([str(tmp_path)])
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "eurosat.yaml"
    assert run("ZeroshotOracle", root, tmp_path / "run", flags=flags) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(BlackBoxError, match="ZeroshotOracle puts no context in front of"):
        interpret_prompt.main([str(tmp_path / "run")])
