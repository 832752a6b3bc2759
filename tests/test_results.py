"""What is read from the folders of runs, and printed of them; damage is a note or a sentence."""

import io
import os
import re
import shutil
import subprocess
import sys

import parse_test_res
import pytest
from dassl_blackbox import plots, results
from dassl_blackbox.runs import is_finished, read_run
from dassl_blackbox.textlog import LIFE, is_evaluated
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from finished import CURVE, DAMAGE, OWN, TOOLS, YAML, damaged, make, store
from support import REPO, run

import interpret_prompt

# What is read


@pytest.mark.parametrize(
    "elapsed, seconds",
    [
        ("0:00:07", 7),
        ("1 day, 2:03:04", 93_784),
        ("2 days, 0:00:01", 172_801),
        (f"0:01:00\n{LIFE}\nFinish training\n* accuracy: 71.0%\nElapsed: 1 day, 0:00:00", 86_460),
        ("soon", None),
    ],
)
def test_how_long_a_run_took(tmp_path, elapsed, seconds):
    assert read_run(make(tmp_path / "run", elapsed=elapsed)).seconds == seconds


def test_the_method_is_that_of_the_configuration(tmp_path, data_root):
    make(tmp_path / "run", trainer="CraFT")
    assert read_run(tmp_path / "run").trainer == "CraFT"
    (tmp_path / "run" / "config.yaml").unlink()  # as beside a log of CoOp's
    assert read_run(tmp_path / "run").trainer == "?"
    with open(tmp_path / "run" / "log.txt", "a") as log:
        log.write("Loading trainer: CoOp\n")
    assert read_run(tmp_path / "run").trainer == "CoOp"
    assert run("ZeroshotOracle", data_root, tmp_path / "quiet", "VERBOSE", False) == 0
    found = read_run(tmp_path / "quiet")
    assert (found.trainer, found.dataset, found.shots) == ("ZeroshotOracle", "Digits", 3)


def test_lost_queries_are_shown_and_marked(tmp_path, call):
    for seed, lost in enumerate((0, 100), start=1):
        make(tmp_path / "a" / f"seed{seed}", lost={"queries": lost, "image_queries": 8 * lost})
    make(
        tmp_path / "b" / "seed1", lost={"queries": 101, "image_queries": 0, "of": "a newer version"}
    )
    make(tmp_path / "c" / "seed1")
    _, out, _ = call(results.main, tmp_path, "--format", "csv")
    rows = {line.split(",")[0]: line.split(",") for line in out.splitlines()[1:]}
    assert [rows[name][4] for name in "abc"] == ["70.0 ± 0.0", "70.0 !", "70.0"]
    assert rows["a"][5:7] == ['"1', '000"'] and [row[7] for row in rows.values()] == [
        "50",
        "101",
        "0",
    ]
    assert "more than a tenth" in call(results.main, tmp_path)[1]
    assert "more than a tenth" not in call(results.main, tmp_path / "a")[1]
    _, out, _ = call(parse_test_res.main, tmp_path, "--multi-exp")
    for words in ("1,000.", "1,000 (100 lost).", "1,000 (101 lost, more than a tenth)."):
        assert f"queries: {words}\n" in out


# Damage


@pytest.mark.parametrize(
    "name, file", [(name, file) for name, (files, _) in TOOLS.items() for file in files]
)
def test_damage_is_a_note_or_a_sentence(sound, tmp_path, call, name, file):
    tool_of = TOOLS[name][1]
    status, _, err = call(*tool_of(sound))
    assert (status, err) == (0, "")
    for what, how in {**DAMAGE, **OWN[file]}.items():
        one, every = tmp_path / f"one {what}", tmp_path / f"every {what}"
        for root in (one, every):
            shutil.copytree(sound, root)
            for path in [one / "ZIP_16shots" / "seed1" / file] if root == one else root.rglob(file):
                damaged(path, how)
            status, out, err = call(*tool_of(root))
            assert status in ((0,) if root == one and file != CURVE else (0, 1)), (what, err)
            assert "Traceback" not in out + err and err.count("error: ") == status
            if (file, what) != (YAML, "of other types"):
                assert f"{file} " in err or f"{file}:" in err, (what, err)


def test_a_damaged_bill_and_a_damaged_log_are_no_numbers(sound, call):
    (sound / "ZIP_16shots" / "seed1" / "queries.json").write_text("{}")
    (sound / "ZeroshotOracle" / "seed1" / "log.txt").write_bytes(b"\xff")
    _, out, err = call(results.main, sound, "--format", "csv")
    (row,) = out.splitlines()[1:]
    assert row == "ZIP_16shots,ZIP,?,2,71.0 ± 1.0,?,?,?,?,?,60" and err.count("note: ") == 2
    assert "queries: ?." in call(parse_test_res.main, sound / "ZIP_16shots")[1]


def test_an_unfinished_run_is_left_out_with_a_note(sound, call):
    log = sound / "ZIP_16shots" / "seed1" / "log.txt"
    log.write_text(log.read_text().replace("Finish", "Begin"))
    for arguments in ((results.main, sound), (parse_test_res.main, sound / "ZIP_16shots")):
        status, out, err = call(*arguments)
        assert status == 0 and "72.0" in out and err.startswith(f"note: {log} has no ")


def test_a_damaged_log_is_no_unfinished_run(sound):
    folder = sound / "ZIP_16shots" / "seed1"
    assert is_finished(folder) and not is_evaluated(folder, "another header", "")
    damaged(folder / "log.txt", b"\xff")
    for ask in (is_finished, lambda folder: is_evaluated(folder, "", "")):
        with pytest.raises(BlackBoxError, match="log.txt cannot be read"):
            ask(folder)


# Words


def test_words_of_runs_that_are_damaged_or_asked_too_much(data_root, tmp_path, call):
    out = tmp_path / "run"
    assert run("ZIP", data_root, out, "ORACLE.MAX_QUERIES", 10) == 0
    main = interpret_prompt.main
    for number in (-1, 10**30):
        status, _, err = call(main, out, number)
        assert status == 1 and re.match(rf"error: {number} words .* from 1 to \d+,\d+ is", err)
    text = (out / "config.yaml").read_text()
    for content in (*OWN[YAML].values(), b"", b"\xff", text[:900].encode()):
        (out / "config.yaml").write_bytes(content)
        status, _, err = call(main, out)
        assert status == 1 and err.startswith("error: ") and "Traceback" not in err
    for name, other in (("ZIP", "Zap"), ("Digits", "Digit")):
        (out / "config.yaml").write_text(text.replace(f"NAME: {name}\n", f"NAME: {other}\n"))
        assert f"config.yaml '{other}': did you mean {name}" in call(main, out)[2]


# Terminals


def test_a_terminal_that_knows_ascii_alone(sound, call, monkeypatch):
    (sound / "ZIP_16shots").rename(sound / "gr\u00f6\udcff")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    call(results.main, sound)
    printed = terminal.buffer.getvalue().decode("ascii")
    assert "71.0 +- 1.0" in printed and r"gr\xf6\udcff" in printed and "- : none" in printed


def test_output_that_is_closed_early(sound):
    for seed in range(3, 400):
        shutil.copytree(sound / "ZIP_16shots" / "seed1", sound / "ZIP_16shots" / f"seed{seed}")
    done = subprocess.run(
        [
            *(
                "bash",
                "-c",
                '"$1" parse_test_res.py "$2" | head -n 1; echo ${PIPESTATUS[0]}',
                "bash",
            ),
            *(sys.executable, str(sound / "ZIP_16shots")),
        ],
        cwd=REPO,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == f"Parsing files in {sound}/ZIP_16shots\n141\n", done.stderr
    assert not re.search("Error|Exception|Traceback", done.stderr)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dataset": "Letters"}, "dataset (Digits, Letters)"),
        ({"shots": 2}, "shots (16, 2)"),
        ({"split": "val"}, "split (test, val)"),
    ],
)
def test_runs_of_several_experiments_are_not_averaged(tmp_path, call, changes, words):
    store(make(tmp_path / "ZIP" / "seed1"), split="test")
    store(make(tmp_path / "ZIP" / "seed2"), split="test")
    assert "2" in call(results.main, tmp_path)[1]
    store(make(tmp_path / "ZIP" / "seed3"), **{"split": "test"} | changes)
    status, _, err = call(results.main, tmp_path)
    assert status == 1 and f"ZIP holds runs that differ in {words}, and is left out" in err


def test_a_result_on_val_is_told(tmp_path, call):
    store(make(tmp_path / "ZIP" / "seed1"), split="val")
    assert "70.0 (val)" in call(results.main, tmp_path)[1]


def test_both_halves_of_a_protocol_are_of_the_same_seeds(tmp_path, call):
    for half, seeds in (("train_base", (1, 2, 3)), ("test_new", (2, 3, 4))):
        for seed in seeds:
            folder = make(tmp_path / half / "ZIP" / f"seed{seed}")
            store(folder, accuracy=10.0 * seed, classes=half[-4:].strip("_"))
    _, out, err = call(results.main, tmp_path, "--base2new", "--format", "csv")
    assert "ZIP,Digits,25.0 ± 5.0,25.0 ± 5.0,25.0" in out
    assert "ZIP has seed1, seed4 of one half alone, which is left out" in err


def test_an_evaluation_of_unfinished_training_is_no_result(tmp_path, call):
    """In its own folder; elsewhere it is one."""
    for folder in (make(tmp_path / "ZIP" / "seed1"), make(tmp_path / "evaluation" / "seed1")):
        (folder / "log.txt").write_text("no end\n")
        store(folder, "evaluation")
    (tmp_path / "ZIP" / "seed1" / "prompt_learner").mkdir()
    status, out, err = call(results.main, tmp_path)
    assert not status and "evaluation" in out and "ZIP/seed1" not in out.replace(str(tmp_path), "")
    assert "ZIP/seed1/log.txt has no result" in err


def test_two_folders_of_pictures_are_two_data_sets(tmp_path, call):
    figures = {"cats": (40.0, 60.0), "cars": (90.0, 95.0)}
    for name, accuracies in figures.items():
        for trainer, accuracy in zip((results.ZERO_SHOT, "ZIP"), accuracies):
            folder = make(tmp_path / name / trainer / "seed1")
            store(
                folder, trainer=trainer, dataset="ImageFolder", root=f"/{name}", accuracy=accuracy
            )
    found = results.groups(tmp_path)
    zero = plots.zero_shot(found)
    gains = {g.dataset: g.mean() - zero[plots.kind(g)] for g in found if g.known.trainer == "ZIP"}
    assert gains == {"ImageFolder (/cats)": 20.0, "ImageFolder (/cars)": 5.0}
    assert call(plots.main, "gain", tmp_path, "--out", tmp_path / "gain.png")[0] == 0
