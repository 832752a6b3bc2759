"""Accuracies of two groups of classes, out of what a finished run says of every class."""

import shutil
import sys
from importlib import import_module

import pytest
from dassl_blackbox.runs import read_result
from support import REPO, run

sys.path[:0] = [str(REPO / "benchmarks")]
groups = import_module("groups")


@pytest.fixture(scope="module")
def by_class(data_root, tmp_path_factory):
    """A finished run with an accuracy of every class."""
    folder = tmp_path_factory.mktemp("groups") / "zero-shot" / "seed1"
    options = "TEST.PER_CLASS_RESULT", True, "TRAINER.ZEROSHOT.TEMPLATE", "a {}."
    assert not run("ZeroshotOracle", data_root, folder, *options)
    return folder


def test_accuracies_of_two_groups_of_classes(by_class, call, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(" zero \n\none\n")
    status, out, err = call(groups.main, by_class.parent.parent, "--list", listed)
    counts = groups.read_classes(by_class / "log.txt")
    few = [row for row in counts if row[0] in ("zero", "one")]
    expected = 100 * sum(row[2] for row in few) / sum(row[1] for row in few)
    cells = out.splitlines()[-1].split("|")
    assert not status and not err and len(counts) == 10
    assert float(cells[3]) == round(read_result(by_class)["accuracy"], 1)
    assert float(cells[4]) == round(expected, 1)
    listed.write_text("zero\ncat\n")
    status, _, err = call(groups.main, by_class.parent.parent, "--list", listed)
    assert status == 1 and "knows no class 'cat'" in err
    status, _, err = call(groups.main, by_class.parent.parent, "--list", tmp_path / "none")
    assert status == 1 and "cannot be read" in err


def test_what_is_not_a_result_on_test_is_no_group(by_class, data_root, call, tmp_path):
    folder = shutil.copytree(by_class, tmp_path / "runs" / "seed1")
    log, before = folder / "log.txt", groups.read_classes(folder / "log.txt")
    options = "TEST.PER_CLASS_RESULT", True, "TEST.SPLIT", "val"
    flags = "--eval-only", "--model-dir", folder
    assert not run("ZeroshotOracle", data_root, folder, *options, flags=flags)
    assert groups.read_classes(log) == before  # a look at val afterwards changes nothing
    log.write_text(log.read_text().replace(groups.TEST, "Evaluate on the *val* set"))
    status, _, err = call(groups.main, tmp_path / "runs")
    assert status == 1 and "no per-class result on test" in err
    (folder / "metrics.json").unlink()
    status, _, err = call(groups.main, tmp_path / "runs")
    assert status == 1 and "it is not finished" in err
