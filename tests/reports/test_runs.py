"""How runs begin and end: what the log tells, signals, names that were forgotten or misspelt."""

import importlib.util
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
import train
import yaml
from dassl_blackbox.trainers.blackbox import trainer as loop
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.trainer import Trainer
from dassl_blackbox.trainers.sonar import SONAR
from support import REPO, last_checkpoint, run, sentence

import interpret_prompt

sys.path[:0] = [str(REPO / "scripts")]
compare, sweep = map(import_module, ("compare", "sweep"))
HEAD_ALONE = "TRAINER.SONAR.TEXTS", 0, "TRAINER.SONAR.VIEWS", 0
ENDING = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
    """A finished run of SONAR, its head alone."""
    folder = tmp_path_factory.mktemp("finished")
    assert run("SONAR", data_root, folder, *HEAD_ALONE) == 0
    return folder


def test_the_log_and_the_configuration_are_what_was_used(finished):
    log = (finished / "log.txt").read_text()
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["INPUT"]["SIZE"] == [32, 32] and config["TRAINER"]["ZIP"]  # it is complete
    assert log.partition("** System info **")[0].count("\n") < 90  # and the log is short
    for words in ("INPUT.SIZE: (32, 32)", "TRAINER.SONAR.TEXTS: 0", 'Template: "a scan of a'):
        assert f"\n{words}" in log
    assert not [words for words in ("(224, 224)", "TRAINER.ZIP", "OPTIM.LR") if words in log]
    assert log.count("Building transform_") == 2  # of training, of testing


def test_an_evaluation_is_known_by_what_was_evaluated(finished, data_root, tmp_path, capsys):
    flags = "--eval-only", "--model-dir", finished, "--skip-done"
    other = *HEAD_ALONE, "TEST.PER_CLASS_RESULT", True
    for options, skipped in ((HEAD_ALONE, False), (HEAD_ALONE, True), (other, False)):
        assert run("SONAR", data_root, tmp_path, *options, flags=flags) == 0
        assert ("holds this evaluation: skipped" in capsys.readouterr().out) == skipped


@pytest.fixture
def heeded():
    """Signals do what they do by default, whatever this process was started with."""
    former = [(number, signal.signal(number, signal.SIG_DFL)) for number in ENDING]
    yield
    for number, handler in former:
        signal.signal(number, handler)


@pytest.fixture
def at_step(heeded, monkeypatch):
    """`at_step(number, call)` has something done after a step of any trainer."""
    report = Trainer.report

    def do(number, call):
        def reported(self, summary):
            report(self, summary)
            if self.steps_done == number:
                call()

        monkeypatch.setattr(Trainer, "report", reported)

    return do


def kill(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def steps(folder):
    return last_checkpoint(folder)["blackbox"]["steps_done"]


@pytest.mark.parametrize("number", ENDING)
def test_a_schedulers_signals_save_the_step(number, at_step, data_root, tmp_path, capfd):
    # a closed terminal is told twice, and a script passes on what its group got too
    at_step(2, lambda: kill(number, number, signal.SIGTERM))
    assert run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 40) == 128 + number
    assert steps(tmp_path) == 2 and "The same command goes on" in (tmp_path / "log.txt").read_text()
    assert f"{number.name}: the step is finished and saved" in capfd.readouterr().err


def test_a_second_signal_ends_at_once(at_step, data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "TOGETHER", -1)
    at_step(2, lambda: kill(signal.SIGUSR1, signal.SIGTERM))
    status = run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 40)
    assert status == 128 + signal.SIGTERM and steps(tmp_path) == 1  # the second is not saved


def test_nohup_keeps_the_hangup_off(at_step, data_root, tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(1, lambda: kill(signal.SIGHUP))
    assert run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 20) == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and steps(tmp_path) == 2


def test_a_terminal_that_is_closed_does_not_end_a_step(at_step, data_root, tmp_path):
    def closed():
        # not `pause`, which would miss a signal that came before it
        (tmp_path / "now").touch()
        while not signal.getsignal(signal.SIGHUP).__self__.signum:
            time.sleep(0.01)

    pid, terminal = pty.fork()
    if pid == 0:
        try:
            sys.stdout = sys.stderr = os.fdopen(1, "w")
            at_step(1, closed)
            os._exit(run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 40))
        finally:
            os._exit(70)
    until = time.monotonic() + 60
    while not (tmp_path / "now").exists() and time.monotonic() < until:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 10_000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert steps(tmp_path) == 1


PYTHON = """#!/bin/bash
[ "$1" = train.py ] || exit 0
echo start >> "$STARTS"
trap 'sleep 0.1; echo saved >> "$STARTS"; exit 143' TERM
for _ in {1..999}; do sleep 0.02; done
"""


SCRIPTS = [
    ("main.sh ZIP digits tiny 1", signal.SIGTERM),
    ("base2new_train.sh ZIP digits tiny 1", signal.SIGUSR1),
    ("eval.sh ZeroshotOracle digits tiny 1", signal.SIGXCPU),
    ("zeroshot.sh digits tiny", signal.SIGTERM),
    ("xd_train.sh ZIP tiny 1", signal.SIGUSR2),
    ("xd_test.sh ZeroshotOracle tiny 1", signal.SIGTERM),
    ("jolt/ablations.sh digits tiny 1", signal.SIGINT),
    ("quickstart.sh", signal.SIGHUP),
]


@pytest.mark.parametrize("command, number", SCRIPTS)
def test_scripts_pass_signals_on_and_stop(command, number, tmp_path):
    """With a `python` that only waits for a SIGTERM, and takes a while to save."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    path, starts = f"{tmp_path}{os.pathsep}{os.environ['PATH']}", tmp_path / "starts"
    given = {"PATH": path, "STARTS": str(starts), "VIRTUAL_ENV": "x", "OUTPUT": str(tmp_path)}
    script, *args = shlex.split(command)
    with subprocess.Popen(
        ["bash", str(REPO / "scripts" / script), *args],
        env={**os.environ, **given},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in loop.SIGNALS],
    ) as child:
        while not starts.exists():
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(0.05)  # until its trap is set
        child.send_signal(number)
        assert child.wait(20) == 128 + number
    assert starts.read_text() == "start\nsaved\n"  # before the script ended, and no other began


@pytest.mark.parametrize("tool", [compare, sweep])
def test_a_signal_ends_the_loop_over_runs(tool, heeded, call, monkeypatch, tmp_path):
    starts, python = tmp_path / "starts", tmp_path / "python"
    python.write_text(PYTHON.replace("for _", "kill -HUP $PPID\nfor _"))
    python.chmod(0o755)
    monkeypatch.setenv("STARTS", str(starts))
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)  # which a sweep leaves
    what = ["--methods", "zero-shot", "SONAR"]
    what = what if tool is compare else ["--trainers", "SONAR", "--datasets", "digits"]
    status, _, err = call(tool.main, *what, "--seeds", 1, 2, "--output", tmp_path)
    assert status == 128 + signal.SIGHUP and starts.read_text() == "start\nsaved\n"
    assert "Stopped by SIGHUP: the same command goes on from here" in err
    assert "| 0/" in err and "| 1/" not in err  # of the bar


NAMES = [  # what the script is given, a flag that is forgotten, what is said
    ("SONNAR digits tiny", "", "Unknown trainer (--trainer) 'SONNAR': did you mean SONAR"),
    ("SONAR digits RN50x4", "", "configs/trainers/SONAR has photo.yaml, "),
    ("SONAR Caltech-101 tiny", "", "configs/datasets has caltech101.yaml, "),
    ("SONAR configs/datasets/digits.yaml tiny", "", ", digits.yaml, "),
    ("SONAR digits tiny", "--config-file", "pass --config-file configs/trainers/SONAR/tiny.yaml"),
    ("SONAR digits tiny", "--dataset-config-file", "-file configs/datasets/digits.yaml"),
    ("SONAR digits tiny", "--trainer", "--trainer"),
]


@pytest.mark.parametrize("command, forgotten, words", NAMES)
def test_a_name_that_a_script_is_given(command, forgotten, words, capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    line = "bash", "scripts/main.sh", *command.split(), "1"
    env = {**os.environ, "DRY_RUN": "1", "SEEDS": "1"}
    given = shlex.split(subprocess.check_output(line, env=env, text=True))[2:]
    if forgotten:
        at = given.index(forgotten)
        del given[at : at + 2]
    assert train.main(train.parse_args(given)) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, below", [(("--eval-only", "--model-dir"), ""), (("--resume",), "seed1/prompt_learner")]
)
def test_a_folder_that_is_no_runs(flags, below, finished, data_root, tmp_path, call, capsys):
    line = "SONAR", data_root, tmp_path / "out"
    said = sentence(capsys, *line, flags=(*flags, tmp_path / "nope"))
    assert f"{tmp_path}/nope" in said and ": no such folder" in said
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "seed1").symlink_to(finished)
    given, meant = tmp_path / "a" / below, f"Did you mean {tmp_path}/a/seed1?"
    assert meant in sentence(capsys, *line, flags=(*flags, given))
    assert meant in call(interpret_prompt.main, given)[2]
    found = call(interpret_prompt.main, finished)[2]
    assert found.startswith("error: SONAR puts no context in front of")


def test_the_settings_of_another_trainer_are_noted(tmp_path, capsys):
    for other in ("SONAR", "ZIP"):
        config = REPO / "configs" / "trainers" / other / "tiny.yaml"
        given, flags = ("MODEL.BACKBONE.NAME", "none"), ("--config-file", config)
        assert run("ZIP", tmp_path, tmp_path / "o", *given, flags=flags) == 1
        note = f"Note: {config} is {other}'s, and the trainer is ZIP\n"
        assert (note in capsys.readouterr().out) == (other != "ZIP")


@pytest.mark.parametrize("own, small", [(None, 1), ("2", 2)])
def test_the_fit_has_one_thread_and_the_model_all(own, small, data_root, tmp_path, monkeypatch):
    seen = []

    def query(oracle, images, prompt):  # not the model's, which two threads slow down here
        seen.append(torch.get_num_threads())
        return torch.randn(len(prompt), len(images), 10)

    monkeypatch.setattr(LocalOracle, "query", query)
    monkeypatch.setattr(SONAR, "fit", lambda *_: seen.append(torch.get_num_threads()) or "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    torch.set_num_threads(2)
    try:
        assert run("SONAR", data_root, tmp_path, *HEAD_ALONE, "TEST.NO_TEST", True) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(seen[:-1]) == {2} and seen[-1] == small


def test_where_a_run_cannot_be_ended_by_signals_it_is_said_at_once(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location(f"{loop.__package__}.again", Path(loop.__file__))
    with pytest.raises(ImportError, match="Windows is not served"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
