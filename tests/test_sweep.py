"""The grid of runs and the comparison of methods: their commands are the scripts', and their runs
finish, fail, are tried again and stop.
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
compare, sweeps = import_module("compare"), import_module("sweep")
SWEEP = REPO / "scripts" / "sweep.py"
QUICK = (*SMALL, "TRAINER.SONAR.TEXTS", "0", "TRAINER.SONAR.VIEWS", "0")


def grid(trainers, *args, datasets=("digits",), seeds=(1,), shots=(1,)):
    words = "--trainers", *trainers, "--datasets", *datasets, "--shots", *shots, "--seeds", *seeds
    return *words, *args


# the first thing that every Python process does: `train.py` is counted, and its first start ends
STARTS = """
import os, signal, sys
if "train.py" in sys.orig_argv[1:2]:
    with open(os.environ["STARTS"], "a+") as file:
        file.write("+")
        file.seek(0)
        if len(file.read()) <= 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """The file in which each start of `train.py` is a letter; the first is killed."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(STARTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    return tmp_path / "starts"


@pytest.mark.parametrize(
    "trainer, dataset, cfg, tag, options",
    [
        ("ZIP", "caltech101", "vit_b16", "w o", ("TRAINER.ZIP.CTX_INIT", "a photo of a")),
        ("CraFT", "eurosat", "rn50", "", ("ORACLE.GRANTS", "('contexts', 'logits')")),
    ],
)
def test_the_commands_are_those_of_the_scripts(trainer, dataset, cfg, tag, options, call):
    given = {"DRY_RUN": "1", "SEEDS": "2 0", "TAG": tag, "DATA": "data", "OUTPUT": "output"}
    command = "bash", "scripts/main.sh", trainer, dataset, cfg, "4", *options
    kept = {"cwd": REPO, "env": {**os.environ, **given}, "capture_output": True, "text": True}
    expected = subprocess.run(command, **kept).stdout.splitlines()
    args = grid([trainer, trainer], "--cfg", cfg, datasets=[dataset], seeds=(2, 0), shots=(4,))
    tagged = ("--tag", tag) if tag else ()
    status, out, _ = call(sweeps.main, *args, "--dry-run", *tagged, "--", *options)
    assert status == 0 and len(expected) == 2
    assert list(map(shlex.split, out.splitlines())) == list(map(shlex.split, expected))


def test_what_cannot_run_is_said_before_anything_starts(tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for args, options, words in (
        (grid(["SONER"]), (), "Unknown trainer (--trainer) 'SONER': did you mean SONAR"),
        (grid(["ZIP"], datasets=["digit"]), (), ", digits.yaml, "),
        (grid(["ZIP"], "--cfg", "tyni"), (), "configs/trainers/ZIP has photo.yaml, "),
        (grid(["ZIP"]), ("ORACLE.MAX_QUERYS", "5"), "ORACLE.MAX_QUERIES"),
        (grid(["ZIP"], "--ray"), (), "--ray needs Ray: pip install -e '.[ray]'"),
    ):
        given = "--root", tmp_path, "--output", tmp_path / "out", *args, "--", *options
        status, _, err = call(sweeps.main, *given)
        assert status == 1 and err.splitlines()[-1].startswith("error: ")
        assert words in err and not (tmp_path / "out").exists()


def test_runs_are_finished_once_tried_again_and_have_a_table(data_root, tmp_path, starts, call):
    """One process is killed, and tried again; one run cannot be, and what is finished stays."""
    args, out = ("--root", data_root, "--output", tmp_path / "out"), tmp_path / "out" / "digits"
    status, said, err = call(sweeps.main, *args, *grid(["SONAR"]), "--", *QUICK)
    assert status == 0, err
    log = out / "SONAR" / "tiny_1shots" / "seed1" / "log.txt"
    before = log.read_bytes()
    assert starts.read_text() == "++" and any((tmp_path / "out" / "features").glob("*/*"))
    assert "(the first attempt: ended by SIGKILL)" in said
    assert f"{log.parent}: " in said
    others = grid(["SONAR"], "--jobs", 2, datasets=["digits", "caltech101"])
    status, said, err = call(sweeps.main, *args, *others, "--", *QUICK)
    assert status == 1 and "2 runs, of which 1 are finished" in said
    assert starts.read_text() == "++++" and log.read_bytes() == before
    assert "caltech101/SONAR/tiny_1shots/seed1 failed: error: Caltech101" in err
    assert re.search(r"^SONAR +tiny_1shots +words ", said, re.M)


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
    def sweep(output, *more):
        args = *grid(["SONAR", "ZeroshotOracle"], "--ray", *more), "--", *QUICK
        return process(SWEEP, "--root", data_root, "--output", output, *args)

    done = sweep(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert starts.read_text() == "+++"
    greedy = sweep(tmp_path / "greedy", "--cpus-per-run", 1e6)
    assert greedy.returncode == 1 and "--cpus-per-run is 1e+06, and Ray has" in greedy.stderr
    status, said, log = ended(data_root, tmp_path / "ended", signal.SIGTERM, "--ray")
    assert status == 143 and "Stopped by SIGTERM" in said
    assert "Stopped by SIGTERM" in log.read_text() and not (log.parent / ".lock").exists()


# The comparison


FIXED = ["--methods", "head alone", "--opts", "TRAINER.SONAR.VIEWS", "4"]
UNFIT = [
    (["--dataset", "digit"], ", digits.yaml, "),
    (["--cfg", "tinny"], "No method is left for --cfg tinny on digits"),
    (["--queries", "0"], "argument --queries: 0 is not from 1"),
    (["--opts", "TEST.SPLIT", "foo"], "TEST.SPLIT is 'foo'; 'test' or 'val'"),
    (FIXED, "--opts may not set TRAINER.SONAR.VIEWS: head alone has it fixed"),
    (["--methods", "ZIP, from words", "--dataset", "dtd"], "No method is left for --cfg tiny"),
]


def test_a_comparison_that_cannot_be(tmp_path, call):
    for arguments, words in UNFIT:
        status, _, err = call(compare.main, "--output", tmp_path / "out", *arguments)
        assert status and words in err and not (tmp_path / "out").exists()


BPTVLM = {"BPT-VLM", "BPT-VLM, from words"}


@pytest.mark.parametrize("cfg, gone", [("photo", BPTVLM), ("rn50", set())])
def test_a_comparison_is_of_the_methods_that_have_settings(cfg, gone, tmp_path, call, monkeypatch):
    tasks, labels = {}, compare.METHODS.keys() - gone
    monkeypatch.setattr(compare, "run_all", lambda args, given: tasks.update(given) or {*given})
    status, _, err = call(compare.main, "--cfg", cfg, "--seeds", 1, "--output", tmp_path)
    names = {label.replace(", ", "_").replace(" ", "-") for label in labels}
    assert status == 1 and {folder.split("/")[-2] for folder in tasks} == names
    assert all(f"note: {label} has no photo.yaml, " in err for label in gone)


def test_a_comparison_has_a_table_and_a_plot_of_what_ended(tmp_path, data_root, call):
    """CraFT cannot pay for a step."""
    options = ["--root", data_root, "--output", tmp_path, "--seeds", 1, "--shots", 1]
    options += ["--queries", 10, "--methods", "CraFT", "ZIP"]
    status, out, err = call(compare.main, *options, "--opts", "OPTIM.MAX_EPOCH", 1)
    (table,) = (path.read_text() for path in tmp_path.rglob("table.md"))
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    assert rows == [["ZIP", "contexts"]]
    assert status == 1 and "\nZIP " in out and "\nCraFT" not in out
    assert "CraFT/seed1 failed: " in err and len([*tmp_path.rglob("val_curves.png")]) == 1
