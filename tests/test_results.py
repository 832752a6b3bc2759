"""What is read from the folders of runs, and printed of them; damage is a note or a sentence."""

import csv
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys

import parse_test_res
import pytest
from dassl_blackbox import results, runs
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from finished import ACCESS, CURVE, DAMAGE, METRICS, OWN, TOOLS, damaged, make, store
from support import REPO, printed, run

import interpret_prompt


def rows_of(call, *args):
    """(headers, rows by their first cell, stderr) of a table as CSV."""
    _, out, err = call(results.main, *args, "--format", "csv")
    headers, *rows = csv.reader(io.StringIO(out))
    return headers, {row[0]: row[1:] for row in rows}, err


# What is read


def test_a_table_has_what_real_runs_left(runs, call):
    _, rows, _ = rows_of(call, runs)
    values = [
        json.loads((runs / "ZIP" / seed / METRICS).read_text())["end_of_training"]["accuracy"]
        for seed in ("seed1", "seed2")
    ]
    mean, error = statistics.mean(values), statistics.stdev(values) / 2**0.5
    assert rows["ZIP"][:9] == [
        *("ZIP", "contexts", "2", f"{mean:.1f} ± {error:.1f}", "40", "0", "320", "2", "1"),
    ]
    white = ["WhiteBox", "weights", "1", printed(runs / "WhiteBox" / "seed1").rstrip("%")]
    assert rows["WhiteBox"][:9] == [*white, *"–––––"]
    assert rows["ZeroshotOracle"][4:9] == ["0", "0", "0", "2", "1"]
    assert all(re.fullmatch(r"\d+", cells[9]) for cells in rows.values())


def test_what_asks_for_least_comes_first(tmp_path, call):
    for trainer in (*reversed(ACCESS), "ZIP"):
        make(tmp_path / trainer / "seed1", trainer=trainer)
    store(tmp_path / "ZIP" / "seed1", access=["logits", "telepathy"])
    _, rows, _ = rows_of(call, tmp_path)
    order = ["words", "words", "features", "weights", "?"]
    assert [cells[1] for cells in rows.values()] == order


def test_what_is_not_told_is_not_known(tmp_path, call):
    store(make(tmp_path / "a" / "seed1"), shots=-1, batches=0, seconds=None, queries=None)
    _, rows, err = rows_of(call, tmp_path)
    assert rows["a"][3:] == ["70.0", *"––––––"] and not err


def test_lost_queries_are_shown_and_marked(tmp_path, call):
    for name, *lost in ("a", 0, 100), ("b", 101), ("c", 0):
        for seed, count in enumerate(lost, start=1):
            make(tmp_path / name / f"seed{seed}", lost=count)
    _, rows, _ = rows_of(call, tmp_path)
    assert [rows[name][3] for name in "abc"] == ["70.0 ± 0.0", "70.0 !", "70.0"]
    assert [rows[name][5] for name in "abc"] == ["50", "101", "0"]
    assert "more than a tenth" in call(results.main, tmp_path)[1]
    assert "more than a tenth" not in call(results.main, tmp_path / "a")[1]
    _, out, _ = call(parse_test_res.main, tmp_path, "--multi-exp")
    for words in ("1,000.", "1,000 (100 lost).", "1,000 (101 lost, more than a tenth)."):
        assert f"queries: {words}\n" in out


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dataset": "Letters"}, "dataset (Digits, Letters)"),
        ({"shots": 2}, "shots (16, 2)"),
        ({"split": "val"}, "split (test, val)"),
    ],
)
def test_runs_of_several_experiments_are_not_averaged(tmp_path, call, changes, words):
    make(tmp_path / "ZIP" / "seed1")
    store(make(tmp_path / "ZIP" / "seed3"), **changes)
    make(tmp_path / "SONAR" / "seed1", trainer="SONAR")
    _, rows, err = rows_of(call, tmp_path)
    assert list(rows) == ["SONAR"]
    assert f"ZIP holds runs that differ in {words}, and is left out" in err


def test_an_evaluation_of_unfinished_training_is_no_result(tmp_path, call):
    """In its own folder; elsewhere it is one. On val, it is told."""
    for name in ("ZIP", "evaluation"):
        store(make(tmp_path / name / "seed1"), "evaluation", split="val")
    (tmp_path / "ZIP" / "seed1" / "prompt_learner").mkdir()
    _, rows, err = rows_of(call, tmp_path)
    assert list(rows) == ["evaluation"] and rows["evaluation"][3] == "70.0 (val)"
    assert "ZIP/seed1 has no result in metrics.json: it is not finished. The run is left out" in err


# The shapes of tables


def test_data_sets_across_and_methods_down(tmp_path, call):
    for name, config, accuracies in (("EuroSAT", "eurosat", (60.0, 62.0)), ("DTD", "DTD", (40.0,))):
        for seed, accuracy in enumerate(accuracies, start=1):
            folder = make(tmp_path / config / "ZIP" / "a_16shots" / f"seed{seed}")
            store(folder, dataset=name, accuracy=accuracy)
    store(make(tmp_path / "eurosat" / "ZIP" / "b" / "seed1"), dataset="EuroSAT", accuracy=9.0)
    headers, rows, err = rows_of(call, tmp_path, "--across")
    assert headers == ["method", "EuroSAT", "DTD", "mean"]
    assert rows["ZIP/a_16shots"] == ["61.0 ± 1.0", "40.0", "50.5"]
    assert rows["ZIP/b"] == ["9.0", "–", "–"]
    assert "eurosat/ZIP/b has 1 of 2 seeds, and its mean is of these" in err
    headers, rows, _ = rows_of(call, tmp_path, "--across", "--published")
    shown = dict(zip(headers[1:], rows["ZIP (published, ViT-B/16)"]))
    assert shown["EuroSAT"] == "64.0" and shown["DTD"] == shown["mean"] == "–"
    figures = results.PUBLISHED.mean(axis=1, skipna=False)
    assert f"{figures['ZIP']:.1f}" == "63.1" and figures["zero-shot"] != figures["zero-shot"]


def test_both_halves_of_a_protocol_are_of_the_same_seeds(tmp_path, call):
    for half, seeds in (("train_base", (1, 2, 3)), ("test_new", (2, 3, 4))):
        for seed in seeds:
            for name, accuracy in (("Digits", 10.0 * seed), ("Letters", 5.0 * seed)):
                folder = make(tmp_path / half / name.lower() / "ZIP" / f"seed{seed}")
                store(folder, dataset=name, accuracy=accuracy, classes=half[-4:].strip("_"))
    _, out, err = call(results.main, tmp_path, "--base2new", "--format", "csv")
    assert "ZIP,Digits,25.0 ± 5.0,25.0 ± 5.0,25.0\n" in out and "ZIP,mean,18.8,18.8,18.8\n" in out
    assert "ZIP has seed1, seed4 of one half alone on Digits, which is left out" in err
    status, _, err = call(results.main, tmp_path / "test_new", "--base2new")
    assert status == 1 and "has no experiment in both train_base and test_new" in err


def test_two_folders_of_pictures_are_two_data_sets(tmp_path, call):
    for name in ("cats", "cars"):
        store(make(tmp_path / name / "ZIP" / "seed1"), dataset="ImageFolder", root=f"/{name}")
    headers, _, _ = rows_of(call, tmp_path, "--across")
    assert headers[1:3] == ["ImageFolder (/cars)", "ImageFolder (/cats)"]


# Damage


@pytest.mark.parametrize(
    "name, file", [(name, file) for name, (files, _) in TOOLS.items() for file in files]
)
def test_damage_is_a_note_or_a_sentence(sound, tmp_path, call, name, file):
    tool_of = TOOLS[name][1]
    assert call(*tool_of(sound))[0] == 0
    for what, how in {**DAMAGE, **OWN[file]}.items():
        one, every = tmp_path / f"one {what}", tmp_path / f"every {what}"
        for root in (one, every):
            shutil.copytree(sound, root)
            for path in [one / "ZIP_16shots" / "seed1" / file] if root == one else root.rglob(file):
                damaged(path, how)
            status, out, err = call(*tool_of(root))
            assert status in ((0,) if root == one and file != CURVE else (0, 1)), (what, err)
            assert "Traceback" not in out + err and err.count("error: ") == status
            assert f"{file} " in err or f"{file}:" in err, (what, err)


def test_an_unfinished_run_is_left_out_with_a_note(sound, call):
    log = sound / "ZIP_16shots" / "seed1" / "log.txt"
    log.write_text(log.read_text().replace("Finish", "Begin"))
    (log.parent / METRICS).unlink()
    for main, root in ((results.main, sound), (parse_test_res.main, sound / "ZIP_16shots")):
        status, out, err = call(main, root)
        assert status == 0 and "72.0" in out and f"note: {log.parent}" in err
    with pytest.raises(BlackBoxError, match="it is not finished"):
        runs.read_result(log.parent)


def test_words_of_runs_that_are_damaged_or_asked_too_much(data_root, tmp_path, call):
    out = tmp_path / "run"
    assert run("ZIP", data_root, out, "ORACLE.MAX_QUERIES", 10) == 0
    main, path = interpret_prompt.main, out / "config.yaml"
    for number in (-1, 10**30):
        status, _, err = call(main, out, number)
        assert status == 1 and re.match(rf"error: {number} words .* from 1 to \d+,\d+ is", err)
    text = path.read_text()
    for content in (b"- DATASET\n", b"{a: " * 5000, b"", b"\xff", text[:900].encode()):
        path.write_bytes(content)
        status, _, err = call(main, out)
        assert status == 1 and err.startswith("error: ") and "Traceback" not in err
    for name, other in (("ZIP", "Zap"), ("Digits", "Digit")):
        path.write_text(text.replace(f"NAME: {name}\n", f"NAME: {other}\n"))
        assert f"config.yaml '{other}': did you mean {name}" in call(main, out)[2]


# CoOp's parser of logs


def test_parse_test_res(runs, call):
    values = [float(printed(runs / "ZIP" / seed).rstrip("%")) for seed in ("seed1", "seed2")]
    mean, std, error = statistics.mean(values), statistics.pstdev(values), statistics.stdev(values)
    for flags, spread in (((), std), (("--ci95",), 1.96 * std / 2**0.5)):
        _, out, _ = call(parse_test_res.main, runs / "ZIP", *flags)
        for seed, value in zip((1, 2), values):
            line = f"file: {runs}/ZIP/seed{seed}/log.txt. accuracy: {value:.2f}%. queries: 40.\n"
            assert line in out
        assert f"* accuracy: {mean:.2f}% +- {spread:.2f}%\n" in out
        line = f"* accuracy, standard error over 2 seeds: {mean:.2f}% +- {error / 2**0.5:.2f}%\n"
        assert line in out
    _, out, _ = call(parse_test_res.main, runs, "--multi-exp")
    assert "Average performance\n* accuracy: " in out
    assert "queries: –." in out and "queries: 0." in out  # no count is not a count of 0


def test_parse_test_res_of_logs_of_several_lives(runs, tmp_path, call):
    log = (runs / "ZIP" / "seed1" / "log.txt").read_text()
    evaluated = log.replace("eval_only: False", "eval_only: True").replace("Finish training\n", "")
    crashed = log[: log.index("Finish training")]
    main, folder = parse_test_res.main, tmp_path / "a" / "seed1"
    folder.mkdir(parents=True)
    for text, flags, known in (
        (log + evaluated, (), True),
        (log + crashed, (), False),
        (evaluated, (), False),
        (evaluated, ("--test-log", "--keyword", "macro_f1"), True),
    ):
        (folder / "log.txt").write_text(text)
        status, out, _ = call(main, tmp_path / "a", *flags)
        assert status == (not known) and ("standard error over 1 seeds: –" in out) == known
    for args, words in (
        ([tmp_path / "nowhere"], "is not a directory"),
        ([tmp_path], "no log at .*--multi-exp"),
        ([folder], "Nothing found"),
    ):
        status, _, err = call(main, *args)
        assert status == 1 and re.match(f"error: .*{words}", err)


# Terminals


def test_output_that_is_closed_early(sound):
    for seed in range(3, 400):
        shutil.copytree(sound / "ZIP_16shots" / "seed1", sound / "ZIP_16shots" / f"seed{seed}")
    pipe = '"$1" parse_test_res.py "$2" | head -n 1; echo ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", pipe, "bash", sys.executable, str(sound / "ZIP_16shots")],
        cwd=REPO,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == f"Parsing files in {sound}/ZIP_16shots\n141\n", done.stderr
    assert not re.search("Error|Exception|Traceback", done.stderr)
