"""What a run writes and what is read from its folder; damage is a note or a sentence."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import parse_test_res
import pytest
from dassl_blackbox import plots, results
from dassl_blackbox.console import tool
from dassl_blackbox.runs import is_finished, read_result, read_run
from dassl_blackbox.textlog import LIFE, is_evaluated
from dassl_blackbox.trainers.blackbox.run.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.run.metrics import NAME as METRICS
from support import OURS, REPO, TRAINED, bill, build, run

import interpret_prompt

sys.path[:0] = [str(REPO / "scripts"), str(REPO / "benchmarks")]
compare, groups = import_module("compare"), import_module("groups")

CONFIG = """\
DATASET: {NAME: Digits, NUM_SHOTS: 16, SUBSAMPLE_CLASSES: all}
MODEL:
  BACKBONE: {NAME: tiny}
TRAINER: {NAME: %s}
"""


def make(folder, accuracy=70.0, trainer="ZIP", elapsed="0:01:00", **bill):
    """A finished run as our trainers leave it, with VERBOSE False."""
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(
        f"** Arguments **\neval_only: False\nFinish training\n* accuracy: {accuracy}%\n"
        f"* macro_f1: {accuracy}%\nElapsed: {elapsed}\n"
    )
    (folder / "config.yaml").write_text(CONFIG % trainer)
    counts = {"queries": 1000, "image_queries": 8000}
    content = {"training": counts, "evaluation": counts, **bill}
    (folder / "queries.json").write_text(json.dumps(content))
    (folder / "val_curve.csv").write_text("500,4000,50.0\n1000,8000,60.0\n")
    return folder


def called(capsys, monkeypatch, main, *args):
    """(status, stdout, stderr) of a tool in this process, as its `__main__` runs it."""
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, args)])
    capsys.readouterr()
    try:
        status = tool(main)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
        print("" if isinstance(e.code, int) else e.code, file=sys.stderr)
    return status, *capsys.readouterr()


@pytest.fixture
def call(capsys, monkeypatch):
    return lambda main, *args: called(capsys, monkeypatch, main, *args)


# how each tool is called on a folder of runs, and the files that it reads
LOG, BILL, YAML, CURVE = "log.txt", "queries.json", "config.yaml", "val_curve.csv"
TOOLS = {
    "results": ((LOG, BILL, YAML), lambda root: (results.main, root)),
    "across": ((LOG, YAML), lambda root: (results.main, root, "--across")),
    "parse_test_res": ((LOG, BILL), lambda root: (parse_test_res.main, root / "ZIP_16shots")),
    "multi-exp": ((LOG, BILL), lambda root: (parse_test_res.main, root, "--multi-exp")),
    **{
        kind: (files, lambda root, kind=kind: (plots.main, kind, root, "--out", f"{root}.png"))
        for kind, files in {
            "shots": (LOG, YAML),
            "queries": (LOG, CURVE),
            "gain": (YAML,),
            "budgets": (LOG, BILL),
        }.items()
    },
}


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


# metrics.json


def stored(folder):
    return json.loads((folder / METRICS).read_text())


@pytest.mark.parametrize("name", OURS)
def test_metrics_are_what_was_printed(name, data_root, budget, tmp_path):
    folder = tmp_path / "seed1"
    steps = budget(name, 2, rest=1) if name in TRAINED else ("OPTIM.MAX_EPOCH", 1)
    assert run(name, data_root, folder, *steps) == 0
    log, (section,) = (folder / "log.txt").read_text(), stored(folder).values()
    printed = dict(re.findall(r"^\* (.*): ([\d,.]+)%?$", log, re.M))
    images, right = (int(printed[key].replace(",", "")) for key in ("total", "correct"))
    assert (section["split"], section["images"], section["seed"]) == ("test", images, 1)
    assert section["accuracy"] == 100 * right / images  # to the last digit
    for key, key_there in (("accuracy",) * 2, ("error_rate", "error"), ("macro_f1",) * 2):
        assert f"{section[key]:.1f}" == printed[key_there]
    if name in TRAINED:
        assert (section["steps"], section["ended_by"]) == (2, "budget")
        assert section["queries"]["lost"] == {"queries": 0, "image_queries": 0}
    there, here = read_run(folder), read_result(folder)
    for field in ("trainer", "counts", "dataset", "shots", "backbone", "classes"):
        assert getattr(here, field) == getattr(there, field), field
    assert abs(here.seconds - there.seconds) < 2
    assert here.access != "?" and (here.access == "weights") == (name == "WhiteBox")
    assert is_finished(folder)


def test_an_evaluation_leaves_the_result_of_training(data_root, budget, tmp_path):
    for name, folder in (("run", tmp_path / "run"), ("elsewhere", tmp_path / "elsewhere")):
        if name == "run":
            assert run("ZIP", data_root, folder, *budget("ZIP", 2)) == 0
            trained = stored(folder)["end_of_training"]
        flags = "--eval-only", "--model-dir", tmp_path / "run"
        for split in ("val", "test"):
            assert run("ZIP", data_root, folder, "TEST.SPLIT", split, flags=flags) == 0
            evaluated = stored(folder)["evaluation"]
            assert evaluated["split"] == split and evaluated["steps"] is None
            images = {"queries": evaluated["batches"], "image_queries": evaluated["images"]}
            assert evaluated["queries"]["test"] == images
            assert evaluated["queries"]["evaluation"] == bill(folder)["evaluation"]
        assert evaluated["accuracy"] == trained["accuracy"]
        assert stored(folder).get("end_of_training", trained) == trained
        assert read_result(folder).counts["training"]["queries"] == (20 if name == "run" else 0)


def test_a_look_at_val_is_no_result(data_root, budget, tmp_path):
    """And neither is what a run had reached that goes on, and crashes."""
    options = "ORACLE.VAL_EVERY", 1, "TEST.FINAL_MODEL", "best_val"
    trainer = build("ZIP", data_root, tmp_path, *budget("ZIP", 4), *options)
    looks, test = [], trainer.test

    def looked(split=None):
        result = test(split)
        looks.append((split, (tmp_path / METRICS).exists()))
        return result

    trainer.test = looked
    trainer.train()
    assert len(looks) > 4 and looks == [("val", False)] * (len(looks) - 1) + [(None, True)]
    assert stored(tmp_path)["end_of_training"]["split"] == "test"

    further = build("ZIP", data_root, tmp_path, *budget("ZIP", 8), *options)
    further.forward_backward = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        further.train()
    assert not (tmp_path / METRICS).exists() and read_result(tmp_path) is None


@pytest.mark.parametrize(
    "name, steps, resumed, ended",
    [
        ("ZIP", None, False, "epochs"),
        ("ZIP", 4, True, "budget"),
        ("WhiteBox", None, False, "epochs"),
        ("ZeroshotOracle", None, False, None),
    ],
)
def test_what_ended_a_run_and_how_long_it_took(
    name, steps, resumed, ended, data_root, budget, tmp_path
):
    options = budget(name, steps) if steps else ("OPTIM.MAX_EPOCH", 1)
    if resumed:
        build(name, data_root, tmp_path, *budget(name, 2)).train()
    for again in (False, True):  # where nothing is left to do
        build(name, data_root, tmp_path, *options).train()
        section = stored(tmp_path)["end_of_training"]
        assert section["ended_by"] == ended
        known = section["seconds"] is not None
        assert known == (name == "ZeroshotOracle" or not (resumed or again))


def test_a_result_that_cannot_be_written_is_a_note(data_root, tmp_path, call):
    (tmp_path / METRICS).mkdir()
    (tmp_path / METRICS / "x").write_text("")
    assert run("ZeroshotOracle", data_root, tmp_path, flags=("--eval-only",)) == 0
    note = f"Note: {tmp_path / METRICS} could not be written \\(.*the result is in the log"
    assert re.search(note, (tmp_path / "log.txt").read_text())
    status, out, err = call(results.main, tmp_path)
    assert status == 0 and "ZeroshotOracle" in out and err.startswith("note: ")


def store(folder, kind="end_of_training", **changes):
    """A `metrics.json` beside the files of `make`; `changes` of its section."""
    counts = {"queries": 1000, "image_queries": 8000}
    section = {
        "trainer": "ZIP",
        "access": ["contexts", "logits"],
        "backbone": "tiny",
        "dataset": "Digits",
        "classes": "all",
        "shots": 16,
        "batches": 10,
        "accuracy": 70.04,
        "queries": {**dict.fromkeys(("training", "evaluation"), counts), "test": counts},
        "seconds": 60.0,
    } | changes
    (folder / METRICS).write_text(json.dumps({kind: section}))
    return folder


@pytest.mark.parametrize("name", TOOLS)
def test_damaged_metrics_are_a_note_and_the_log_is_read(sound, call, name):
    main, *arguments = TOOLS[name][1](sound)
    folder = sound / "ZIP_16shots" / "seed1"
    expected = call(main, *arguments)
    text = store(folder).joinpath(METRICS).read_text()
    damages = {
        **DAMAGE,
        "a list": b"[1]",
        "deep": b"[" * 5000,
        "no sections": b'{"end_of_training": 3}',
        "no accuracy": text.replace("accuracy", "precision").encode(),
        "out of range": text.replace("70.04", "170").encode(),
        "no number": text.replace("70.04", "NaN").encode(),
        "true": text.replace("70.04", "true").encode(),
        "no bill": text.replace("image_queries", "images").encode(),
        "no counts": text.replace("8000", "-1").encode(),
    }
    for what, how in damages.items():
        damaged(folder / METRICS, how)
        status, out, err = call(main, *arguments)
        assert (status, out) == expected[:2], what
        assert (METRICS in err) == (main is not parse_test_res.main), (what, err)
        if what == "a folder":
            (folder / METRICS).rmdir()
            (folder / METRICS).touch()


def test_odd_values_in_metrics_are_not_known(tmp_path, call):
    names = "trainer", "access", "dataset", "shots", "batches", "seconds"
    odd: dict = {name: {} for name in names}
    store(make(tmp_path / "a" / "seed1"), **odd)
    store(make(tmp_path / "b" / "seed1"), access=["logits", "telepathy"], queries=None)
    _, out, err = call(results.main, tmp_path, "--format", "csv")
    rows = [line.split(",", 5) for line in out.splitlines()[1:]]
    assert [[*row[:2], *row[3:5]] for row in rows] == [
        ["a", "?", "1", "70.0"],
        ["b", "ZIP", "1", "70.0"],
    ]
    assert read_result(tmp_path / "b" / "seed1").access == "?" and not err


def test_metrics_stand_without_a_log(tmp_path, call):
    folder = store(make(tmp_path / "a" / "seed1"))
    for path in folder.iterdir():
        if path.name != METRICS:
            path.unlink()
    _, out, err = call(results.main, tmp_path, "--format", "csv")
    wanted = 'a,ZIP,contexts,1,70.0,"1,000",0,"8,000","1,000",100,60'
    assert out.splitlines()[1] == wanted and not err


# Damage

DAMAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: os.symlink(path.name, path),
}
COUNTS = '{"training": {"queries": %s, "image_queries": 0}, "evaluation": {"queries": 0}}'
OWN = {
    LOG: {
        "out of range": b"Finish training\n* accuracy: 1e400%\n",
        "no number": b"Finish training\n* accuracy: 1.2.3%\n",
    },
    BILL: {
        "a list": b"[1, 2]",
        "deep": b"[" * 5000,
        **{value: (COUNTS % value).encode() for value in ("Infinity", "-1", "0.5", "true", "1e3")},
        "more lost than asked": b'{"training": {"queries": 1, "image_queries": 1}, "evaluation": '
        b'{"queries": 0, "image_queries": 0}, "lost": {"queries": 2, "image_queries": 0}}',
    },
    YAML: {
        "a list": b"- DATASET\n",
        "deep": b"{a: " * 5000,
        "of other types": b"DATASET: [Digits]\nMODEL: 3\nTRAINER: {NAME: 7}\n",
        "of itself": b"DATASET: &a {NAME: *a}\n",
    },
    CURVE: {
        "cut off": b"500,4000,50.0\n1000,8000,6",
        "no numbers": b"500,x,60.0\na,b,c\n",
        "commas": b",,\n,,,,\n",
        "out of range": b"500,4000,nan\n-1,0,170\n",
    },
}


def damaged(path, how):
    path.unlink()
    how(path) if callable(how) else path.write_bytes(how)


@pytest.fixture
def sound(tmp_path):
    """Two seeds of a method, and zero-shot."""
    root = tmp_path / "sound"
    make(root / "ZIP_16shots" / "seed1", lost={"queries": 1, "image_queries": 8})
    make(root / "ZIP_16shots" / "seed2", 72.0)
    make(root / "ZeroshotOracle" / "seed1", 50.0, "ZeroshotOracle")
    return root


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


# Plots


@pytest.mark.parametrize("first, log", [(5, True), (500, False)])
def test_budgets_over_more_than_two_decades_have_a_logarithmic_axis(
    sound, tmp_path, call, first, log
):
    curve = "".join(f"{queries},1,50.0\n" for queries in (first, 1000))
    (sound / "ZIP_16shots" / "seed1" / CURVE).write_text(curve)
    shutil.rmtree(sound / "ZIP_16shots" / "seed2")
    out = tmp_path / "plot.svg"
    assert call(plots.main, "queries", sound, "--out", out)[0] == 0
    ticks = re.findall(r"<!-- (.*) -->", out.read_text())
    assert (ticks[:4] == ["1", "10", "100", "1,000"]) == log


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


def test_plots_that_cannot_be_written(sound, tmp_path, call):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "none" / "a.png", tmp_path / "file" / "a.png", "/dev/full"):
        status, _, err = call(plots.main, "gain", sound, "--out", out)
        assert status == 1 and err.startswith(f"error: {out} ")
    status, _, err = call(plots.main, "gain", sound, "--out", tmp_path / "a.zebra")
    assert status == 1 and "Choose another ending" in err


def test_plots_of_folders_and_titles_with_dollars(sound, tmp_path, call):
    (sound / "ZIP_16shots").rename(sound / "$a_$ ZIP_16shots")
    out = tmp_path / "plot"
    status, _, err = call(plots.main, "gain", sound, "--title", "$x$", "--out", out)
    assert (status, err) == (0, "") and out.read_bytes().startswith(b"\x89PNG")


# The comparison


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
    ],
)
def test_a_comparison_that_cannot_be(tmp_path, call, arguments, words):
    status, _, err = call(compare.main, "--output", tmp_path / "out", *arguments)
    assert status and words in err and not (tmp_path / "out").exists()


def test_a_comparison_reports_what_its_runs_said(tmp_path, data_root, call):
    options = "--methods", "zero-shot", "--seeds", "1", "--opts", "TEST.SPLIT", "foo"
    status, _, err = call(compare.main, "--root", data_root, "--output", tmp_path, *options)
    assert status == 1 and "zero-shot, seed 1: error: TEST.SPLIT is 'foo'; one of test, val" in err


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
    few = [counts[name] for name in ("zero", "one")]
    expected = 100 * sum(correct for _, correct in few) / sum(total for total, _ in few)
    cells = out.splitlines()[-1].split("|")
    assert not status and not err and len(counts) == 10
    assert float(cells[3]) == round(read_result(by_class).metrics["accuracy"], 1)
    assert float(cells[4]) == round(expected, 1)
    listed.write_text("zero\ncat\n")
    status, _, err = call(groups.main, by_class.parent.parent, "--list", listed)
    assert status == 1 and "knows no class 'cat'" in err
    status, _, err = call(groups.main, by_class.parent.parent, "--list", tmp_path / "none")
    assert status == 1 and "cannot be read" in err


def test_what_an_unfinished_run_saw_on_val_is_no_group(by_class, call, tmp_path):
    folder = shutil.copytree(by_class, tmp_path / "runs" / "seed1")
    log = (folder / "log.txt").read_text().replace(groups.TEST, "Evaluate on the *val* set")
    (folder / "log.txt").write_text(log)
    status, _, err = call(groups.main, tmp_path / "runs")
    assert status == 1 and "no per-class result on test" in err
    (folder / "metrics.json").unlink()
    (folder / "log.txt").write_text(log.replace("Finish training", ""))
    status, _, err = call(groups.main, tmp_path / "runs")
    assert status == 1 and "holds no finished run" in err
