"""The command line: what a run prints and leaves behind; evaluating, resuming, skipping."""

import json
import re
import subprocess
import sys

import pytest
from support import (
    REPO,
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
    told = {"Finish training", "=> result", "Loading trainer: ZIP"}
    assert told | {"* training queries: 40 (image queries: 320)"} <= {*log.splitlines()}
    assert re.search(r"^\* accuracy: \d+\.\d%$", log, re.M)
    assert re.search(r"^Elapsed: 0:00:\d\d$", log, re.M)
    files = {"log.txt", "config.yaml", "queries.json", "metrics.json"}
    assert {path.name for path in folder.iterdir()} == files | {"prompt_learner", "tensorboard"}
    models = {path.name for path in (folder / "prompt_learner").iterdir()}
    assert models == {"checkpoint", "model.pth.tar-500"}


def test_eval_only_in_a_fresh_process_with_another_seed(runs, data_root, tmp_path):
    flags = "--eval-only", "--model-dir", runs / "ZIP" / "seed1", "--load-epoch", 500
    fresh = process("train.py", *arguments("ZIP", data_root, tmp_path, seed=7, flags=flags))
    assert fresh.returncode == 0, fresh.stderr
    log = (runs / "ZIP" / "seed1" / "log.txt").read_text()
    figures = r"^\* (?:accuracy|macro_f1): .*"
    assert re.findall(figures, fresh.stdout, re.M) == re.findall(figures, log, re.M)
    assert [bill(tmp_path)[of]["queries"] for of in ("training", "evaluation")] == [0, 2]


@pytest.mark.parametrize("name, epoch", [("WhiteBox", 2), ("ZeroshotOracle", 1)])
def test_eval_only(runs, data_root, tmp_path, name, epoch):
    trained = runs / name / "seed1"
    flags = "--eval-only", "--model-dir", trained, "--load-epoch", epoch
    assert run(name, data_root, tmp_path, seed=7, flags=flags) == 0
    assert printed(tmp_path) == printed(trained)


def test_no_train_announces_the_cost_and_leaves_nothing(data_root, tmp_path, capsys):
    options = "ORACLE.MAX_QUERIES", 47
    assert run("ZIP", data_root, tmp_path / "out", *options, flags=("--no-train",)) == 0
    told = "4 steps of 10 queries: 40 training queries, 320 image queries; 2 evaluation queries, 61"
    assert f"This run would cost {told} image queries\n" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_resume_from_another_folder(runs, data_root, tmp_path):
    source = runs / "ZIP" / "seed1"
    options = "ORACLE.MAX_QUERIES", 60
    assert run("ZIP", data_root, tmp_path, *options, flags=("--resume", source)) == 0
    assert bill(tmp_path)["training"]["queries"] == 60
    assert bill(source)["training"]["queries"] == 40
    steps = [last_checkpoint(folder)["optimizer"]["k"] for folder in (source, tmp_path)]
    assert steps == [5, 7]  # four steps, two more


def test_skip_done_skips_a_finished_run_of_the_same_configuration(data_root, tmp_path, capsys):
    folder = tmp_path / "seed1"

    def again(queries, *options):
        given = "ORACLE.MAX_QUERIES", queries, "OPTIM.MAX_EPOCH", 1, *options
        status = run("ZIP", data_root, folder, *given, flags=("--skip-done",))
        return status, "".join(capsys.readouterr())

    assert again(20)[0] == 0  # there is nothing to skip yet
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "holds a finished run of this configuration: skipped" in again(20)[1]
    assert "skipped" in again(20, "INPUT.CACHE_MB", 1)[1]
    for queries, key, there, here in (
        (10, "ORACLE.MAX_QUERIES", 20, 10),
        (20, "TRAINER.ZIP.RANK", 5, 3),
        (20, "TEST.FINAL_MODEL", "last_step", "best_val"),
    ):
        status, said = again(queries, key, here)
        words = f"finished run of another configuration ({key}: {there} there, {here} here)"
        assert status == 1 and words in said
    assert all(path.read_bytes() == content for path, content in before.items())
    metrics = folder / "metrics.json"  # of a version that did not know a key yet
    told = json.loads(metrics.read_text())
    del told["end_of_training"]["settings"]["INPUT.VIEWS"]
    metrics.write_text(json.dumps(told))
    assert "skipped" in again(20)[1]
    metrics.unlink()  # a crashed run is none
    status, said = again(20)
    assert status == 0 and "skipped" not in said and "Finish training" in said
    said = again(0)[1]
    assert "a smaller budget (ORACLE.MAX_QUERIES: 20 there, 0 here): it goes on" in said
    metrics.write_text("{")
    status, said = again(0)
    assert status == 1 and f"error: {metrics} is damaged" in said


def test_two_processes_that_run_alike_are_alike(runs, data_root, tmp_path):
    assert run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 47) == 0
    here, there = last_checkpoint(tmp_path), last_checkpoint(runs / "ZIP" / "seed1")
    assert_same(here["state_dict"], there["state_dict"])
    assert_same(random_sources(here), random_sources(there))


def test_a_reader_that_goes_away_does_not_end_a_run(data_root, tmp_path):
    line = arguments("ZIP", data_root, tmp_path / "run", "ORACLE.MAX_QUERIES", 20)
    command = [sys.executable, "train.py", *line]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPO, **pipes) as started:
        started.stdout.close()
        started.stderr.close()
        assert started.wait(600) == 0
    assert "Finish training" in (tmp_path / "run" / "log.txt").read_text()
