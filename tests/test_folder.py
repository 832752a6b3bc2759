"""A run's folder: files that are whole or absent, one holder, signals, what was lost, damage."""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from dassl_blackbox.trainers.blackbox import files
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import FolderLock
from lives import Lives, processes  # noqa: F401  a fixture
from support import REPO, arguments, assert_same, bill, build, last_checkpoint, run, sentence

LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("CraFT", "SONAR")]
FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("error, seen", [(FULL, BlackBoxError), (KeyboardInterrupt,) * 2])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error, seen):
    def fail(f):
        f.write(b"half of")
        raise error

    path = tmp_path / "folder" / "file"
    files.write_atomically(path, b"the old one")
    with pytest.raises(seen):
        files.write_atomically(path, fail)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_pointer_file_names_the_newest_and_not_the_best(tmp_path):
    assert files.newest(tmp_path) is None
    path = files.save({}, tmp_path, "model.pth.tar-1")
    files.save({}, tmp_path, files.BEST)
    assert files.newest(tmp_path) == path == tmp_path / "model.pth.tar-1"


def test_a_second_process_is_refused_by_name_and_a_killed_one_holds_nothing(
    data_root, budget, tmp_path, capsys
):
    lives = Lives("ZIP", data_root, budget("ZIP", 400), tmp_path, "DATALOADER.NUM_WORKERS", 1)
    life, end = lives.start(), time.time() + 60
    while not (lives.out / "queries.json").exists():
        assert life.is_alive() and time.time() < end
        time.sleep(0.01)
    for flags in ((), ("--skip-done",), ("--eval-only", "--model-dir", tmp_path)):
        text = sentence(capsys, "ZIP", data_root, lives.out, *lives.options, flags=flags)
        assert f"process {life.pid} on {socket.gethostname()}" in text
    before = bill(lives.out)["training"]["queries"]
    assert run("ZIP", data_root, lives.out, flags=("--no-train",)) == 0  # disturbs nothing
    os.kill(life.pid, signal.SIGKILL)
    life.join()
    assert bill(lives.out)["training"]["queries"] >= before
    FolderLock(lives.out).release()
    assert not (lives.out / ".lock").exists()


def test_the_lock_goes_with_its_folder_and_is_handed_on_within_a_process(tmp_path):
    folder = tmp_path / "a" / "b"
    first = FolderLock(folder)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    second = FolderLock(tmp_path / "link" / "b")  # the same folder by another name
    with pytest.raises(BlackBoxError, match="another trainer of this process"):
        first.check()
    del first
    second.check()
    second.release()
    assert not (tmp_path / "a").exists()  # made for the run, and nothing in it


def test_a_trainer_that_lost_its_folder_asks_nothing_more(data_root, budget, tmp_path):
    first, second = (build("ZIP", data_root, tmp_path, *budget("ZIP", 2)) for _ in range(2))
    with pytest.raises(BlackBoxError, match="another trainer of this process"):
        first.train()
    second.train()
    assert bill(tmp_path)["training"]["queries"] == 20


@pytest.mark.parametrize("name", ["ZIP", "WhiteBox", *LONG])
def test_a_signal_finishes_the_step_and_nothing_is_lost(name, data_root, budget, tmp_path):
    limit = ("OPTIM.MAX_EPOCH", 7) if name == "WhiteBox" else budget(name, 20)
    lives = Lives(name, data_root, limit, tmp_path)
    lives.live("step:3:SIGTERM")
    log = (lives.out / "log.txt").read_text()
    assert "Stopped by SIGTERM: " in log and "The same command goes on" in log
    assert lives.steps() == 3
    # in the middle of a step; white-box steps ask no query
    lives.live("step:2:SIGINT" if name == "WhiteBox" else "query:2:SIGINT")
    assert lives.steps() > 3
    lives.live()
    one, two = lives.uninterrupted(), last_checkpoint(lives.out)
    assert_same(one["state_dict"], two["state_dict"])
    if name != "CraFT":
        assert_same(one["optimizer"], two["optimizer"])
    if name != "WhiteBox":
        assert bill(lives.out)["training"] == bill(lives.twin)["training"]
        assert "lost" not in bill(lives.out) and lives.inside() == lives.billed()
    assert not list(lives.out.rglob("*.tmp"))


def test_a_signal_ends_an_evaluation_and_the_loading(data_root, budget, tmp_path):
    lives = Lives("ZIP", data_root, budget("ZIP", 20), tmp_path)
    lives.live("query:21:SIGTERM")  # the first batch of the final test
    assert "The same command begins it again" in (lives.out / "log.txt").read_text()
    assert lives.inside() == lives.billed()
    lives.live()
    assert lives.inside() == lives.billed()
    command = [sys.executable, "-u", "train.py", *arguments("ZIP", data_root, tmp_path / "early")]
    early = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    early.stdout.read(20)  # what is printed first, before the model is loaded
    early.send_signal(signal.SIGTERM)
    _, err = early.communicate(timeout=60)
    assert early.returncode == 128 + signal.SIGTERM and b"Traceback" not in err
    assert not (tmp_path / "early").exists()


def test_lost_queries_are_told_and_marked(data_root, budget, tmp_path, capsys):
    lives = Lives("ZIP", data_root, budget("ZIP", 20), tmp_path)
    lives.live("query:2")
    lives.live("query:2")  # both times before the first checkpoint
    short = sentence(capsys, "ZIP", data_root, lives.out, *budget("ZIP", 4))
    assert "40 of 40 queries are used, the next request costs 10" in short
    lives.live()
    assert bill(lives.out)["lost"] == {"queries": 40, "image_queries": 320}
    assert lives.steps() == 16 and bill(lives.out)["training"]["queries"] == 200
    assert "Lost: 40 of 40 training queries" in (lives.out / "log.txt").read_text()
    assert run("ZIP", data_root, lives.out, *lives.options, flags=("--skip-done",)) == 0
    assert "it lost more than a tenth" in capsys.readouterr().out


def test_models_without_their_pointer_are_not_a_new_run(runs, data_root, tmp_path, capsys):
    pointer = shutil.copytree(runs / "ZIP" / "seed1", tmp_path / "run") / "prompt_learner"
    (pointer / "checkpoint").unlink()
    text = sentence(capsys, "ZIP", data_root, tmp_path / "run", "ORACLE.MAX_QUERIES", 47)
    assert "does not name the newest model. Write its name into it" in text


@pytest.mark.parametrize("name, size", [("ZIP", 6_000), ("WhiteBox", 300)])
def test_a_full_disk_is_a_sentence_and_what_was_paid_is_billed(
    name, size, data_root, budget, tmp_path, capsys
):
    limit = ("OPTIM.MAX_EPOCH", 2) if name == "WhiteBox" else budget(name, 6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # no file grows beyond so many bytes
    try:
        status = run(name, data_root, tmp_path / "run", *limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    out, err = capsys.readouterr()
    assert status == 1 and re.search(r"^error: .*(make room|Make room)", err, re.M)
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("model*"))
    spent = re.findall(r"queries ([\d,]+) time", out)
    if spent and name == "ZIP":
        assert bill(tmp_path / "run")["training"]["queries"] == int(spent[-1].replace(",", ""))
    assert run(name, data_root, tmp_path / "run", *limit) in (0, 1)
