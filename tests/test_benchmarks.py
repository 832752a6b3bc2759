"""The benchmarks start, and `groups.py` tells the accuracies of two groups of classes."""

import subprocess
import sys
from importlib import import_module

import pytest
from dassl_blackbox.results import read_result
from support import REPO, run

sys.path[:0] = [str(REPO / "benchmarks")]
groups = import_module("groups")


def test_all_of_them_can_be_imported():
    for path in (REPO / "benchmarks").glob("*.py"):
        import_module(path.stem)


SMALL = [
    "oracle.py --models ViT-B/32 --classes 2 --contexts 1 --candidates 1 --batches 1",
    "image_tower.py --models photo --batch 2",
    "prompt.py curvature --datasets digits --seeds 1 --queries 150 --root {} --output {}",
    "prompt.py head --datasets digits --seeds 1 --queries 150 --shots 5 --root {} --output {}",
]


@pytest.mark.long
@pytest.mark.parametrize("command", SMALL)
def test_a_small_one_ends_in_a_table(command, data_root, tmp_path):
    script, *options = command.format(data_root, tmp_path).split()
    line = [sys.executable, REPO / "benchmarks" / script, *options]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert ended.returncode == 0 and "|--" in ended.stdout, ended.stderr


def test_groups_are_of_a_finished_result_on_test(data_root, call, tmp_path):
    folder, listed = tmp_path / "runs" / "zero-shot" / "seed1", tmp_path / "list.txt"
    options = "TEST.PER_CLASS_RESULT", True, "TRAINER.ZEROSHOT.TEMPLATE", "a {}."
    assert not run("ZeroshotOracle", data_root, folder, *options)
    counts = groups.read_classes(folder / "log.txt")
    flags = "--eval-only", "--model-dir", folder
    assert not run("ZeroshotOracle", data_root, folder, *options, "TEST.SPLIT", "val", flags=flags)
    assert groups.read_classes(folder / "log.txt") == counts  # a look at val changes nothing
    listed.write_text(" zero \n\none\n")
    status, out, err = call(groups.main, tmp_path / "runs", "--list", listed)
    few = [row for row in counts if row[0] in ("zero", "one")]
    expected = 100 * sum(row[2] for row in few) / sum(row[1] for row in few)
    cells = out.splitlines()[-1].split("|")
    assert not status and not err and len(counts) == 10
    assert float(cells[3]) == round(read_result(folder)["accuracy"], 1)
    assert float(cells[4]) == round(expected, 1)
    listed.write_text("zero\ncat\n")
    assert "knows no class 'cat'" in call(groups.main, tmp_path / "runs", "--list", listed)[2]
    log = folder / "log.txt"
    log.write_text(log.read_text().replace(groups.TEST, "Evaluate on the *val* set"))
    assert "no per-class result on test" in call(groups.main, tmp_path / "runs")[2]
    (folder / "metrics.json").unlink()
    assert "it is not finished" in call(groups.main, tmp_path / "runs")[2]
