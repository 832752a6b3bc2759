"""The grid of runs and the comparison of methods: their commands are those of the shell scripts,
and their runs finish, fail, are tried again and stop.
"""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest
from support import REPO, SMALL, process

sys.path[:0] = [str(REPO / "scripts")]
compare = import_module("compare")
SWEEP = REPO / "scripts" / "sweep.py"
QUICK = (*SMALL, "TRAINER.SONAR.TEXTS", "0", "TRAINER.SONAR.VIEWS", "0")
# the first thing that every Python process does: `train.py` is counted, and its first start ends
STARTS = """
import os, signal, sys
if "train.py" in sys.orig_argv[1:2]:
    with open(os.environ["STARTS"], "a+") as file:
        file.write("+")
        file.seek(0)
        if len(file.read()) <= int(os.environ["KILLED"]):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def sweep(root, output, *args, options=QUICK):
    return process(SWEEP, "--root", root, "--output", output, *args, "--", *options)


def grid(trainers, *args, datasets=("digits",), seeds=(1,), shots=(1,)):
    words = "--trainers", *trainers, "--datasets", *datasets, "--shots", *shots, "--seeds", *seeds
    return *words, *args


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """`starts(killed)` kills so many first starts of `train.py` from now on, and gives the file in
    which each start is a letter.
    """

    def counted(killed=0):
        (tmp_path / "python").mkdir()
        (tmp_path / "python" / "sitecustomize.py").write_text(STARTS)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))
        monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
        monkeypatch.setenv("KILLED", str(killed))
        return tmp_path / "starts"

    return counted


@pytest.mark.parametrize(
    "trainer, dataset, cfg, tag, options",
    [
        ("ZIP", "caltech101", "vit_b16", "w o", ("TRAINER.ZIP.CTX_INIT", "a photo of a")),
        ("CraFT", "eurosat", "rn50", "", ("ORACLE.GRANTS", "('contexts', 'logits')")),
    ],
)
def test_the_commands_are_those_of_the_scripts(trainer, dataset, cfg, tag, options):
    given = {"DRY_RUN": "1", "SEEDS": "2 0", "TAG": tag, "DATA": "data", "OUTPUT": "output"}
    script = subprocess.run(
        ["bash", "scripts/main.sh", trainer, dataset, cfg, "4", *options],
        cwd=REPO,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
    )
    args = grid([trainer, trainer], "--cfg", cfg, datasets=[dataset], seeds=(2, 0), shots=(4,))
    done = process(SWEEP, *args, "--dry-run", *(("--tag", tag) if tag else ()), "--", *options)
    expected = [shlex.split(line) for line in script.stdout.splitlines()]
    assert len(expected) == 2
    assert [shlex.split(line) for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize(
    "args, options, sentence",
    [
        (grid(["SONER"]), (), "Unknown trainer (--trainer) 'SONER': did you mean SONAR"),
        (grid(["ZIP"], datasets=["digit"]), (), ", digits.yaml, "),
        (grid(["ZIP"], "--cfg", "tyni"), (), "configs/trainers/ZIP has photo.yaml, "),
        (grid(["ZIP"]), ("ORACLE.MAX_QUERYS", "5"), "ORACLE.MAX_QUERIES"),
        (grid(["ZIP"], "--ray"), (), "--ray needs Ray: pip install -e '.[ray]'"),
    ],
)
def test_what_cannot_run_is_said_before_anything_starts(args, options, sentence, starts, tmp_path):
    file = starts()
    (tmp_path / "python" / "ray.py").write_text("raise ImportError")
    done = sweep(tmp_path, tmp_path / "out", *args, options=options)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in done.stderr and not file.exists() and not (tmp_path / "out").exists()


def test_runs_are_finished_once_tried_again_and_have_a_table(data_root, tmp_path, starts):
    """One process is killed, one run cannot be, and the others finish."""
    file = starts(killed=1)
    args = grid(["ZeroshotOracle", "SONAR"])
    first = sweep(data_root, tmp_path / "out", *args)
    assert first.returncode == 0, first.stderr
    logs = {path: path.read_bytes() for path in (tmp_path / "out").rglob("log.txt")}
    assert len(logs) == 2 and file.read_text() == "+++"
    assert "(the first attempt: ended by SIGKILL)" in first.stdout
    assert f"{tmp_path}/out/digits/SONAR/tiny_1shots/seed1: " in first.stdout
    others = grid(["ZeroshotOracle", "SONAR"], "--jobs", 2, datasets=["digits", "caltech101"])
    again = sweep(data_root, tmp_path / "out", *others)
    assert again.returncode == 1 and "4 runs, of which 2 are finished" in again.stdout
    assert file.read_text() == "+++" + "++++" and all(p.read_bytes() == logs[p] for p in logs)
    assert "caltech101/SONAR/tiny_1shots/seed1 failed (no log): error: Caltech101" in again.stderr
    assert re.search(r"^SONAR +tiny_1shots +words ", again.stdout, re.M)
    # by `train.py` as well, and in its words where the options are others
    other = sweep(data_root, tmp_path / "out", *grid(["SONAR"]), options=SMALL)
    assert other.returncode == 1 and "holds a finished run of another configuration" in other.stderr


def ended(root, output, signum, *args):
    """A sweep of ZIP that gets a signal while it trains: exit status and stderr."""
    command = [sys.executable, SWEEP, "--root", root, "--output", output]
    command += [*grid(["ZIP"], *args, seeds=(1, 2)), "--", *SMALL, "ORACLE.MAX_QUERIES", 100_000]
    log = output / "digits" / "ZIP" / "tiny_1shots" / "seed1" / "log.txt"
    with subprocess.Popen(
        list(map(str, command)), cwd=REPO, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as child:
        until = time.monotonic() + 120
        while not (log.is_file() and "epoch [1/" in log.read_text()):
            assert time.monotonic() < until and child.poll() is None
            time.sleep(0.1)
        child.send_signal(signum)
        return child.wait(timeout=120), child.stderr.read().decode(), log


def test_a_signal_is_passed_on_and_ends_the_sweep(data_root, tmp_path):
    status, said, log = ended(data_root, tmp_path, signal.SIGINT)
    assert status == 130 and "Stopped by SIGINT: the same command goes on from here" in said
    assert "Stopped by SIGTERM" in log.read_text() and not (log.parent / ".lock").exists()
    assert (log.parent / "prompt_learner" / "checkpoint").is_file()
    assert not (log.parents[1] / "seed2").exists()


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="no Ray is installed")
def test_runs_are_tasks_of_ray(data_root, tmp_path, starts):
    file = starts(killed=1)
    args = grid(["SONAR", "ZeroshotOracle"], "--ray")
    done = sweep(data_root, tmp_path / "out", *args)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == "+++"
    greedy = sweep(data_root, tmp_path / "greedy", *args, "--cpus-per-run", 1e6)
    assert greedy.returncode == 1 and "--cpus-per-run is 1e+06, and Ray has" in greedy.stderr
    status, said, log = ended(data_root, tmp_path / "ended", signal.SIGTERM, "--ray")
    assert status == 143 and "Stopped by SIGTERM" in said
    assert "Stopped by SIGTERM" in log.read_text() and not (log.parent / ".lock").exists()


# The comparison


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dataset", "digit"], ", digits.yaml, "),
        (["--cfg", "tinny"], "No method is left for --cfg tinny on digits"),
        (["--queries", "0"], "argument --queries: 0 is not from 1"),
        (["--seeds", "-1"], "argument --seeds: -1 is not from 0"),
        (["--opts", "DATASET.NUM_SHOTS", "4"], "--opts may not set DATASET.NUM_SHOTS"),
        (["--opts", "TEST.SPLIT", "foo"], "TEST.SPLIT is 'foo'; 'test' or 'val'"),
        (
            ["--methods", "head alone", "--opts", "TRAINER.SONAR.VIEWS", "4"],
            "--opts may not set TRAINER.SONAR.VIEWS: head alone has it fixed",
        ),
        (["--methods", "ZIP, from words", "--dataset", "dtd"], "No method is left for --cfg tiny"),
    ],
)
def test_a_comparison_that_cannot_be(tmp_path, call, arguments, words):
    status, _, err = call(compare.main, "--output", tmp_path / "out", *arguments)
    assert status and words in err and not (tmp_path / "out").exists()


def test_a_comparison_has_a_table_and_a_plot_of_what_ended(tmp_path, data_root, call):
    """CraFT cannot pay for a step; photo has no settings for BPT-VLM."""
    options = ["--root", data_root, "--output", tmp_path, "--seeds", 1, "--shots", 1]
    options += ["--queries", 10, "--methods", "white-box", "zero-shot", "CraFT", "ZIP"]
    options += ["--opts", "OPTIM.MAX_EPOCH", 1]
    status, out, err = call(compare.main, *options)
    (table,) = (path.read_text() for path in tmp_path.rglob("table.md"))
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["zero-shot", "words"],
        ["ZIP", "contexts"],
        ["white-box", "weights"],
    ]
    assert status == 1 and "\nzero-shot  words " in out and "\nCraFT" not in out
    assert "CraFT/seed1 failed (" in err and len([*tmp_path.rglob("val_curves.png")]) == 1


def test_a_comparison_is_of_the_methods_that_have_settings(capsys):
    class args:
        methods, cfg, dataset = [], "photo", "x"

    gone = {"BPT-VLM", "BPT-VLM, from words"}
    assert {*compare.chosen(args, "a photo")} == compare.METHODS.keys() - gone
    err = capsys.readouterr().err
    assert all(f"note: {label} has no photo.yaml, " in err for label in gone)
    args.cfg = "rn50"
    assert {*compare.chosen(args, "a photo")} == {*compare.METHODS}
