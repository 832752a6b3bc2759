"""The grid of runs: its commands are those of the shell scripts, and its runs finish, fail, are
tried again and stop.
"""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from support import REPO, SMALL, process

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


def alone(trainer, *args):
    return "--trainers", trainer, "--datasets", "digits", "--shots", 1, "--seeds", 1, *args


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
    "trainer, dataset, cfg, shots, tag, options",
    [
        ("SONAR", "digits", "tiny", 4, "", ()),
        ("ZIP", "caltech101", "vit_b16", 16, "w o", ("TRAINER.ZIP.CTX_INIT", "a photo of a")),
        ("CraFT", "eurosat", "rn50", 1, "x", ("ORACLE.GRANTS", "('contexts', 'logits')")),
    ],
)
def test_the_commands_are_those_of_the_scripts(trainer, dataset, cfg, shots, tag, options):
    seeds = (2, 0)
    script = subprocess.run(
        ["bash", "scripts/main.sh", trainer, dataset, cfg, str(shots), *options],
        cwd=REPO,
        env={
            **{name: value for name, value in os.environ.items() if name not in ("DATA", "OUTPUT")},
            **{"DRY_RUN": "1", "SEEDS": " ".join(map(str, seeds)), "TAG": tag},
        },
        capture_output=True,
        text=True,
    )
    args = ["--trainers", trainer, "--datasets", dataset, "--cfg", cfg, "--shots", shots]
    args += ["--seeds", *seeds, "--dry-run", *(("--tag", tag) if tag else ())]
    printed = process(SWEEP, *args, "--", *options).stdout
    expected = [shlex.split(line) for line in script.stdout.splitlines()]
    assert len(expected) == 2
    assert [shlex.split(line) for line in printed.splitlines()] == expected


def test_a_grid_is_every_combination_once(tmp_path):
    args = ["--trainers", "SONAR", "ZIP", "SONAR", "--datasets", "digits", "shapes"]
    args += ["--shots", 4, 16, "--seeds", 1, 2, 1, "--dry-run"]
    lines = sweep("data", tmp_path / "out", *args).stdout.splitlines()
    folders = {shlex.split(line)[shlex.split(line).index("--output-dir") + 1] for line in lines}
    assert len(lines) == 16 and folders == {
        f"{tmp_path}/out/{dataset}/{trainer}/tiny_{shots}shots/seed{seed}"
        for dataset in ("digits", "shapes")
        for trainer in ("SONAR", "ZIP")
        for shots in (4, 16)
        for seed in (1, 2)
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "args, options, sentence",
    [
        (alone("SONER"), (), "Unknown trainer (--trainers) 'SONER': did you mean SONAR"),
        (("--trainers", "ZIP", "--datasets", "digit"), (), "'digit': did you mean digits"),
        (alone("ZIP", "--cfg", "tyni"), (), "of ZIP (--cfg) 'tyni': did you mean tiny"),
        (alone("ZIP"), ("ORACLE.MAX_QUERYS", "5"), "ORACLE.MAX_QUERIES"),
        (alone("ZIP", "--ray"), (), "--ray needs Ray: pip install -e '.[ray]'"),
    ],
)
def test_what_cannot_run_is_said_before_anything_starts(args, options, sentence, starts, tmp_path):
    file = starts()
    (tmp_path / "python" / "ray.py").write_text("raise ImportError")
    done = sweep(tmp_path, tmp_path / "out", *args, options=options)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in done.stderr and not file.exists() and not (tmp_path / "out").exists()


def test_runs_are_finished_once_and_have_a_table(data_root, tmp_path, starts):
    file = starts()
    args = ["--trainers", "SONAR", "ZeroshotOracle", "--datasets", "digits", "--shots", 1]
    args += ["--seeds", 1, "--jobs", 2]
    first = sweep(data_root, tmp_path / "out", *args)
    assert first.returncode == 0, first.stderr
    logs = {path: path.read_bytes() for path in (tmp_path / "out").rglob("log.txt")}
    assert len(logs) == 2 and file.read_text() == "++"
    assert f"{tmp_path}/out/digits/ZeroshotOracle/tiny_1shots/seed1: " in first.stdout
    assert re.search(r"^SONAR +tiny_1shots +words ", first.stdout, re.M)
    again = sweep(data_root, tmp_path / "out", *args)
    assert again.returncode == 0 and "2 runs, of which 2 are finished" in again.stdout
    assert file.read_text() == "++" and all(path.read_bytes() == logs[path] for path in logs)
    assert re.search(r"^SONAR +tiny_1shots +words ", again.stdout, re.M)
    # by `train.py` as well, and in its words where the options are others
    other = sweep(data_root, tmp_path / "out", *args[:1], *args[2:], options=SMALL[:2])
    assert other.returncode == 1 and "holds a finished run of another configuration" in other.stderr


def test_a_run_that_was_killed_is_tried_again(data_root, tmp_path, starts):
    file = starts(killed=1)
    done = sweep(data_root, tmp_path / "out", *alone("ZeroshotOracle"))
    assert done.returncode == 0 and file.read_text() == "++"
    assert "(the first attempt: ended by SIGKILL)" in done.stdout


def test_the_others_finish_when_one_fails(data_root, tmp_path, starts):
    file = starts()
    args = ["--trainers", "ZeroshotOracle", "--datasets", "caltech101", "digits", "--shots", 1]
    done = sweep(data_root, tmp_path / "out", *args, "--seeds", 1, "--jobs", 2)
    assert done.returncode == 1 and file.read_text() == "+++"
    last = done.stderr.splitlines()[-1]
    assert "caltech101/ZeroshotOracle/tiny_1shots/seed1 failed (no log): error: Caltech101" in last
    assert re.search(r"^ZeroshotOracle +tiny_1shots +words ", done.stdout, re.M)


def ended(root, output, signum, *args):
    """A sweep of ZIP that gets a signal while it trains: exit status and stderr."""
    command = [sys.executable, SWEEP, "--root", root, "--output", output, *alone("ZIP"), *args]
    command += ["--seeds", 1, 2, "--", *SMALL, "ORACLE.MAX_QUERIES", 100_000]
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


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_ends_the_sweep(signum, data_root, tmp_path):
    status, said, log = ended(data_root, tmp_path, signum)
    assert status == 128 + signum and f"Stopped by {signum.name}: the same command" in said
    assert "Stopped by SIGTERM" in log.read_text() and not (log.parent / ".lock").exists()
    assert (log.parent / "prompt_learner" / "checkpoint").is_file()
    assert not (log.parents[1] / "seed2").exists()


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="no Ray is installed")
def test_runs_are_tasks_of_ray(data_root, tmp_path, starts):
    file = starts(killed=1)
    args = ["--trainers", "SONAR", "ZeroshotOracle", "--datasets", "digits", "--shots", 1]
    args += ["--seeds", 1, "--ray"]
    done = sweep(data_root, tmp_path / "out", *args)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == "+++"
    assert re.search(r"^SONAR +tiny_1shots +words ", done.stdout, re.M)
    greedy = sweep(data_root, tmp_path / "greedy", *args, "--cpus-per-run", 1e6)
    assert greedy.returncode == 1 and "--cpus-per-run is 1e+06, and Ray has" in greedy.stderr
    status, said, log = ended(data_root, tmp_path / "ended", signal.SIGTERM, "--ray")
    assert status == 143 and "Stopped by SIGTERM" in said
    assert "Stopped by SIGTERM" in log.read_text() and not (log.parent / ".lock").exists()
