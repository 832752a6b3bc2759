"""The command line: what a run prints and leaves behind; evaluating, resuming, skipping."""

import json
import re
import subprocess
import sys

import pytest
from support import (
    REPO,
    TRAINED,
    accuracy,
    arguments,
    assert_same,
    bill,
    last_checkpoint,
    printed,
    process,
    random_sources,
    run,
)


def test_a_run_leaves_what_dassls_users_expect(runs):
    folder = runs / "ZIP" / "seed1"
    log = (folder / "log.txt").read_text()
    assert log == (runs / "stdout").read_text()
    lines = log.splitlines()
    for line in (
        "Finish training",
        "=> result",
        "Loading trainer: ZIP",
        "* training queries: 40 (image queries: 320)",
    ):
        assert line in lines
    assert re.search(r"^\* accuracy: \d+\.\d%$", log, re.M)
    assert re.search(r"^Elapsed: 0:00:\d\d$", log, re.M)
    files = {"log.txt", "config.yaml", "queries.json", "metrics.json"}
    assert {path.name for path in folder.iterdir()} == files | {"prompt_learner", "tensorboard"}
    models = {path.name for path in (folder / "prompt_learner").iterdir()}
    assert models == {"checkpoint", "model.pth.tar-500"}
    assert (folder / "prompt_learner" / "checkpoint").read_text() == "model.pth.tar-500\n"


def test_eval_only_in_a_fresh_process_with_another_seed(runs, data_root, tmp_path):
    trained = runs / "ZIP" / "seed1"
    flags = "--eval-only", "--model-dir", trained
    fresh = process("train.py", *arguments("ZIP", data_root, tmp_path, seed=7, flags=flags))
    assert fresh.returncode == 0, fresh.stderr
    assert accuracy(fresh.stdout) == printed(trained) == printed(tmp_path)
    assert re.findall(r"^\* macro_f1: .*", fresh.stdout, re.M) == re.findall(
        r"^\* macro_f1: .*", (trained / "log.txt").read_text(), re.M
    )
    assert bill(tmp_path)["training"]["queries"] == 0
    assert bill(tmp_path)["evaluation"]["queries"] == 2


@pytest.mark.parametrize(
    "name, epoch",
    [
        ("ZIP", ("--load-epoch", 500)),
        ("WhiteBox", ()),
        ("WhiteBox", ("--load-epoch", 2)),
        ("ZeroshotOracle", ()),
    ],
)
def test_eval_only(runs, data_root, tmp_path, name, epoch):
    trained = runs / name / "seed1"
    flags = "--eval-only", "--model-dir", trained, *epoch
    assert run(name, data_root, tmp_path, seed=7, flags=flags) == 0
    assert printed(tmp_path) == printed(trained)


@pytest.mark.parametrize("name", TRAINED)
def test_every_trainer_runs_and_is_evaluated(data_root, budget, tmp_path, name):
    assert run(name, data_root, tmp_path / "run", *budget(name, 2)) == 0
    flags = "--eval-only", "--model-dir", tmp_path / "run"
    assert run(name, data_root, tmp_path / "again", seed=7, flags=flags) == 0
    assert printed(tmp_path / "run") == printed(tmp_path / "again")


def test_no_train_announces_the_cost_and_leaves_nothing(data_root, tmp_path, capsys):
    options = "ORACLE.MAX_QUERIES", 47
    assert run("ZIP", data_root, tmp_path / "out", *options, flags=("--no-train",)) == 0
    assert (
        "This run would cost 4 steps of 10 queries: 40 training queries, 320 image queries; "
        "2 evaluation queries, 61 image queries\n" in capsys.readouterr().out
    )
    assert not (tmp_path / "out").exists()


def test_resume_from_another_folder(runs, data_root, tmp_path):
    source = runs / "ZIP" / "seed1"
    options = "ORACLE.MAX_QUERIES", 60
    assert run("ZIP", data_root, tmp_path, *options, flags=("--resume", source)) == 0
    assert bill(tmp_path)["training"]["queries"] == 60
    assert bill(source)["training"]["queries"] == 40
    steps = [last_checkpoint(folder)["optimizer"]["k"] for folder in (source, tmp_path)]
    assert steps == [5, 7]  # four steps, two more


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_skip_done_skips_a_finished_run_of_the_same_configuration(data_root, tmp_path, capsys):
    folder = tmp_path / "seed1"
    options = "ORACLE.MAX_QUERIES", 20
    # there is nothing to skip yet
    assert run("ZIP", data_root, folder, *options, flags=("--skip-done",)) == 0
    before = snapshot(folder)
    assert run("ZIP", data_root, folder, *options, flags=("--skip-done",)) == 0
    assert "holds a finished run of this configuration: skipped" in capsys.readouterr().out
    for name, then, now in (
        ("ORACLE.MAX_QUERIES", 20, 10),
        ("TRAINER.ZIP.RANK", 5, 3),
        ("TEST.FINAL_MODEL", "last_step", "best_val"),
    ):
        assert run("ZIP", data_root, folder, *options, name, now, flags=("--skip-done",)) == 1
        assert (
            f"finished run of another configuration ({name}: {then} there, {now} here)"
            in capsys.readouterr().err
        )
    assert snapshot(folder) == before
    config = folder / "config.yaml"  # of a version that did not know a key yet
    config.write_text(re.sub(r"\n  VIEWS: 0", "", config.read_text()))
    assert len(config.read_bytes()) < len(before[config])
    assert run("ZIP", data_root, folder, *options, "INPUT.CACHE_MB", 1, flags=("--skip-done",)) == 0
    assert "skipped" in capsys.readouterr().out
    log = folder / "log.txt"
    log.write_text(log.read_text().split("Finish training")[0])  # a crashed run is none
    (folder / "metrics.json").unlink()
    assert run("ZIP", data_root, folder, *options, flags=("--skip-done",)) == 0
    assert "skipped" not in capsys.readouterr().out and "Finish training" in log.read_text()
    assert run("ZIP", data_root, folder, "ORACLE.MAX_QUERIES", 30, flags=("--skip-done",)) == 0
    said = "a smaller budget (ORACLE.MAX_QUERIES: 20 there, 30 here): it goes on"
    assert said in capsys.readouterr().out
    assert json.loads((folder / "queries.json").read_text())["training"]["queries"] == 30


def test_two_processes_that_run_alike_are_alike(runs, data_root, tmp_path):
    assert run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 47) == 0
    here, there = last_checkpoint(tmp_path), last_checkpoint(runs / "ZIP" / "seed1")
    assert_same(here["state_dict"], there["state_dict"])
    assert_same(random_sources(here), random_sources(there))


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_reader_that_goes_away_does_not_end_a_run(gone, data_root, tmp_path):
    command = [sys.executable, "train.py", *arguments("ZIP", data_root, tmp_path / "run")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, gone: subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPO, **pipes) as started:
        getattr(started, gone).close()
        assert started.wait(600) == 0
    assert "Finish training" in (tmp_path / "run" / "log.txt").read_text()
