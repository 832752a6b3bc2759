"""The comparison of methods: its order, its arguments, what its runs said, its plot."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from dassl_blackbox import results
from dassl_blackbox.runs import read_result
from finished import make, store
from support import REPO

sys.path[:0] = [str(REPO / "scripts")]
compare = import_module("compare")


def test_a_comparison_is_ordered_by_access(tmp_path):
    needs = {
        "white-box": ["weights"],
        "features": ["logits", "features"],
        "image tokens": ["contexts", "image_tokens", "logits"],
        "contexts": ["contexts", "logits"],
        "words": ["logits"],
        "nothing": [],
    }
    labels = ["old", *needs]
    for label in labels:
        make(tmp_path / label)
        if label in needs:
            store(tmp_path / label, access=needs[label])
    groups = [results.Group(Path(label), [read_result(tmp_path / label)]) for label in labels]
    rows = [line.split("|")[1:3] for line in compare.table_of(groups).splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["words", "words"],
        ["words", "nothing"],
        ["contexts", "contexts"],
        ["image tokens", "image tokens"],
        ["features", "features"],
        ["weights", "white-box"],
        ["?", "old"],
    ]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dataset", "digit"], "Unknown data set (--dataset) 'digit': did you mean digits"),
        (["--cfg", "tinny"], "Unknown --cfg of zero-shot 'tinny': did you mean tiny"),
        (["--queries", "0"], "argument --queries: invalid positive value: '0'"),
        (["--shots", "-1"], "argument --shots: invalid positive value: '-1'"),
        (["--jobs", "0"], "argument --jobs: invalid positive value: '0'"),
        (["--seeds", "1", "1"], "--seeds takes whole numbers"),
        (["--seeds", "-1"], "--seeds takes whole numbers"),
        (["--seeds", str(2**32)], "--seeds takes whole numbers"),
        (["--root", ""], "--root is empty"),
        (["--opts", "DATASET.NUM_SHOTS", "4"], "--opts may not set DATASET.NUM_SHOTS"),
        (["--opts", "ORACLE.TOP_K", "4", "TRAINER.SONAR.VIEWS", "4"], "head alone has it fixed"),
    ],
)
def test_a_comparison_that_cannot_be(tmp_path, call, arguments, words):
    status, _, err = call(compare.main, "--output", tmp_path / "out", *arguments)
    assert status and words in err and not (tmp_path / "out").exists()


def test_a_comparison_reports_what_its_runs_said(tmp_path, data_root, call):
    options = "--methods", "zero-shot", "--seeds", "1", "--opts", "TEST.SPLIT", "foo"
    status, _, err = call(compare.main, "--root", data_root, "--output", tmp_path, *options)
    assert status == 1 and "zero-shot, seed 1: error: TEST.SPLIT is 'foo'; 'test' or 'val'" in err


def test_a_method_that_fails_leaves_the_table_to_the_others(tmp_path, data_root, call):
    options = "--queries", 2, "--seeds", 1, "--shots", 1, "--methods", "zero-shot", "CraFT"
    status, out, err = call(compare.main, "--root", data_root, "--output", tmp_path, *options)
    (table,) = (path.read_text() for path in tmp_path.rglob("table.md"))
    assert status == 1 and "| zero-shot |" in table and "| CraFT |" not in table
    assert "\nzero-shot  words " in out and "\nCraFT" not in out
    assert "Not in the table:\nCraFT, seed 1: error: " in err


@pytest.mark.parametrize("cfg, gone", [("photo", {"BPT-VLM", "BPT-VLM, from words"}), ("x", set())])
def test_a_comparison_is_of_the_methods_that_have_settings(cfg, gone, capsys):
    assert set(compare.with_settings(cfg)) == compare.METHODS.keys() - gone
    printed = capsys.readouterr().out
    assert all(label in printed for label in gone) and bool(printed) == bool(gone)


def test_a_comparison_of_a_few_queries_has_its_plot(tmp_path, data_root, call):
    options = ["--root", data_root, "--output", tmp_path, "--seeds", 1, "--shots", 1]
    options += ["--queries", 10, "--methods"]
    status, out, _ = call(compare.main, *options, "zero-shot")
    assert not status and "table.md" in out and "plot" not in out
    status, out, _ = call(compare.main, *options, "zero-shot", "ZIP")
    (plot,) = tmp_path.rglob("val_curves.png")
    assert not status and f"against queries is {plot}" in out
