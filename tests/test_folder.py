"""A run's folder: one holder, signals, what was lost, damage, a full disk."""

import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from dassl_blackbox.console import RunLog
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import FolderLock
from lives import Lives, processes  # noqa: F401  a fixture
from support import (
    REPO,
    TRAINED,
    accuracy,
    arguments,
    assert_same,
    bill,
    build,
    last_checkpoint,
    run,
)

# One holder


def wait_for(path, life, seconds=60):
    end = time.time() + seconds
    while not path.exists():
        assert life.is_alive() and time.time() < end
        time.sleep(0.01)


def test_a_second_process_is_refused_by_name_and_a_killed_one_holds_nothing(
    data_root, budget, tmp_path, capsys
):
    lives = Lives("ZIP", data_root, budget("ZIP", 400), tmp_path, "DATALOADER.NUM_WORKERS", 1)
    life = lives.start()
    wait_for(lives.out / "queries.json", life)
    for flags in ((), ("--skip-done",), ("--eval-only", "--model-dir", tmp_path)):
        assert run("ZIP", data_root, lives.out, *lives.options, flags=flags) == 1
        assert f"process {life.pid} on {socket.gethostname()}" in capsys.readouterr().err
    before = bill(lives.out)
    assert run("ZIP", data_root, lives.out, flags=("--no-train",)) == 0  # disturbs nothing
    os.kill(life.pid, signal.SIGKILL)
    life.join()
    options = *budget("ZIP", 1), "OPTIM.MAX_EPOCH", 500
    assert bill(lives.out)["training"]["queries"] >= before["training"]["queries"]
    assert run("ZIP", data_root, lives.out, *options) in (0, 1)
    assert "is in use" not in capsys.readouterr().err
    assert not (lives.out / ".lock").exists()


def test_the_lock_goes_with_its_folder_and_is_handed_on_within_a_process(tmp_path):
    folder = tmp_path / "a" / "b"
    first = FolderLock(folder)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    second = FolderLock(tmp_path / "link" / "b")  # the same folder by another name
    second.check()
    with pytest.raises(BlackBoxError, match="another trainer of this process"):
        first.check()
    code = (
        f"import sys; sys.path.insert(0, {str(REPO)!r}); import dassl_blackbox\n"
        f"from dassl_blackbox.trainers.blackbox.files import FolderLock\n"
        f"FolderLock({str(folder)!r})"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"is in use by process {os.getpid()} on " in other.stderr
    del first
    second.check()
    second.release()
    assert not (tmp_path / "a").exists()  # made for the run, and nothing in it
    FolderLock(folder).release()


def test_a_trainer_that_lost_its_folder_asks_nothing_more(data_root, budget, tmp_path):
    first = build("ZIP", data_root, tmp_path, *budget("ZIP", 2))
    second = build("ZIP", data_root, tmp_path, *budget("ZIP", 2))
    with pytest.raises(BlackBoxError, match="another trainer of this process"):
        first.train()
    second.train()
    assert bill(tmp_path)["training"]["queries"] == 20


# Signals


@pytest.mark.parametrize("name", [*TRAINED, "WhiteBox"])
def test_a_signal_finishes_the_step_and_nothing_is_lost(name, data_root, budget, tmp_path):
    limit = ("OPTIM.MAX_EPOCH", 7) if name == "WhiteBox" else budget(name, 20)
    lives = Lives(name, data_root, limit, tmp_path)
    lives.live("step:3:SIGTERM")
    printed = (lives.out / "log.txt").read_text()
    assert "Stopped by SIGTERM: " in printed and "The same command goes on" in printed
    assert lives.steps() == 3
    # in the middle of a step; white-box steps ask no query
    lives.live("step:2:SIGINT" if name == "WhiteBox" else "query:2:SIGINT")
    assert lives.steps() > 3
    lives.live("never")
    one, two = lives.uninterrupted(), last_checkpoint(lives.out)
    assert_same(one["state_dict"], two["state_dict"])
    assert_same(one["optimizer"], two["optimizer"]) if name not in ("BPTVLM", "CraFT") else None
    if name != "WhiteBox":
        assert bill(lives.out)["training"] == bill(lives.twin)["training"]
        assert "lost" not in bill(lives.out) and lives.inside() == lives.billed()
    assert not list(lives.out.rglob("*.tmp"))


def test_a_signal_ends_an_evaluation_and_the_loading(data_root, budget, tmp_path):
    lives = Lives("ZIP", data_root, budget("ZIP", 20), tmp_path)
    lives.live("query:21:SIGTERM")  # the first batch of the final test
    assert "The same command begins it again" in (lives.out / "log.txt").read_text()
    assert lives.inside() == lives.billed()
    lives.live("never")
    assert lives.inside() == lives.billed()
    command = [sys.executable, "-u", "train.py"]
    command += arguments("ZIP", data_root, tmp_path / "early")
    early = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    early.stdout.read(20)  # what is printed first, before the model is loaded
    early.send_signal(signal.SIGTERM)
    _, err = early.communicate(timeout=60)
    assert early.returncode == 128 + signal.SIGTERM and b"Traceback" not in err
    assert not (tmp_path / "early").exists()


# What was lost


def test_lost_queries_are_told_and_marked(data_root, budget, tmp_path, capsys):
    lives = Lives("ZIP", data_root, budget("ZIP", 20), tmp_path)
    lives.live("query:2")
    lives.live("query:2")  # both times before the first checkpoint
    lives.live("never")
    assert bill(lives.out)["lost"] == {"queries": 40, "image_queries": 320}
    assert lives.steps() == 16 and bill(lives.out)["training"]["queries"] == 200
    log = (lives.out / "log.txt").read_text()
    assert "Lost: 40 of 40 training queries" in log
    assert run("ZIP", data_root, lives.out, *lives.options, flags=("--skip-done",)) == 0
    assert "it lost more than a tenth" in capsys.readouterr().out


def test_a_run_that_can_afford_no_step_is_an_error(data_root, budget, tmp_path, capsys):
    lives = Lives("ZIP", data_root, budget("ZIP", 2), tmp_path)
    lives.live("query:1")
    lives.live("query:1")
    assert run("ZIP", data_root, lives.out, *lives.options) == 1
    assert "20 of 20 queries are used, the next request costs 10" in capsys.readouterr().err
    assert "Finish training" not in (lives.out / "log.txt").read_text()


def test_a_run_is_saved_after_every_tenth(data_root, budget, tmp_path):
    lives = Lives("CBBT", data_root, budget("CBBT", 30), tmp_path)
    lives.live("query:30")
    assert lives.steps() == 27


# Damage


@pytest.fixture(scope="module")
def sound(data_root, budget, tmp_path_factory):
    """A finished run of ZIP and its accuracy."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    assert run("ZIP", data_root, folder, *budget("ZIP", 3)) == 0
    return folder, accuracy((folder / "log.txt").read_text())


FILES = (
    "prompt_learner/model.pth.tar-500",
    "prompt_learner/checkpoint",
    "queries.json",
    "config.yaml",
    "log.txt",
)
DAMAGES = {
    "empty": lambda data, rng: b"",
    "cut": lambda data, rng: data[: rng.randrange(1, len(data))],
    "foreign": lambda data, rng: b"\x89PNG\r\n\x1a\n" + rng.randbytes(200),
    "not UTF-8": lambda data, rng: b"\xff\xfe" + data,
    "a list": lambda data, rng: b"[1, 2]",
    "nested": lambda data, rng: b"[" * 100_000,
    **{f"flipped {i}": lambda data, rng: flipped(data, rng) for i in range(6)},
}


def flipped(data, rng):
    i = rng.randrange(len(data))
    return data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_damage_is_told_or_harmless(sound, data_root, budget, tmp_path, capsys, name):
    """Never a traceback, and never another number without a word."""
    folder, expected = sound
    rng = random.Random(name)
    for i, (kind, damage) in enumerate({**DAMAGES, "gone": None, "a folder": None}.items()):
        copy = tmp_path / f"{i}"
        shutil.copytree(folder, copy)
        path = copy / name
        data = path.read_bytes()
        path.unlink()
        if kind == "a folder":
            path.mkdir()
        elif damage is not None:
            path.write_bytes(damage(data, rng))
        flags = "--eval-only", "--model-dir", copy
        for out, more in ((tmp_path / f"eval{i}", flags), (copy, ("--skip-done",)), (copy, ())):
            # a finished run that goes on without a step only evaluates again
            status = run("ZIP", data_root, out, *budget("ZIP", 3), flags=more)
            printed = capsys.readouterr()
            told = re.search(r"^error: \S.*[.;]$", printed.err, re.M)
            assert status == 0 or (status == 1 and told), (kind, printed.err)
            if status == 0 and "skipped" not in printed.out:
                assert accuracy(printed.out) == expected or kind == "gone", (kind, more)


def test_models_without_their_pointer_are_not_a_new_run(sound, data_root, budget, tmp_path, capsys):
    shutil.copytree(sound[0], tmp_path / "run")
    (tmp_path / "run" / "prompt_learner" / "checkpoint").unlink()
    assert run("ZIP", data_root, tmp_path / "run", *budget("ZIP", 4)) == 1
    assert "does not name the newest model. Write its name into it" in capsys.readouterr().err


def test_a_white_box_run_is_known_by_its_settings_and_its_model(data_root, tmp_path, capsys):
    short = "OPTIM.MAX_EPOCH", 2
    assert run("WhiteBox", data_root, tmp_path / "run", *short) == 0
    assert run("WhiteBox", data_root, tmp_path / "run", *short, "OPTIM.LR", 0.01) == 1
    assert "was made with other settings (OPTIM.LR: 0.0005 there" in capsys.readouterr().err
    assert run("WhiteBox", data_root, tmp_path / "run", "OPTIM.MAX_EPOCH", 3) == 1
    assert "not the epochs of a schedule" in capsys.readouterr().err
    assert run("WhiteBox", data_root, tmp_path / "x", *short, flags=("--resume", "/nowhere")) == 1
    assert "/nowhere: no such folder. Give the output folder" in capsys.readouterr().err
    flags = "--eval-only", "--model-dir", tmp_path / "run"
    assert run("ZIP", data_root, tmp_path / "y", flags=flags) == 1
    assert "is of WhiteBox on tiny, this run of ZIP" in capsys.readouterr().err


# A full or unwritable disk


def limited(size):
    """For a child process: no file of it grows beyond so many bytes, as on a full disk."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.parametrize("name", ["ZIP", "WhiteBox"])
@pytest.mark.parametrize("size", [0, 300, 6_000])
def test_a_full_disk_is_a_sentence_and_what_was_paid_is_billed(
    name, size, data_root, budget, tmp_path
):
    limit = ("OPTIM.MAX_EPOCH", 2) if name == "WhiteBox" else budget(name, 6)
    command = [sys.executable, "train.py", *arguments(name, data_root, tmp_path / "run", *limit)]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, preexec_fn=limited(size), timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"^error: .*(make room|Make room)", done.stderr, re.M)
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("model*"))
    spent = re.findall(r"queries ([\d,]+) time", done.stdout)
    if spent and name == "ZIP":
        assert bill(tmp_path / "run")["training"]["queries"] == int(spent[-1].replace(",", ""))
    assert run(name, data_root, tmp_path / "run", *limit) in (0, 1)


@pytest.mark.parametrize("name", ["ZIP", "WhiteBox", "ZeroshotOracle"])
@pytest.mark.parametrize("out", ["/dev/null/run", "/proc/run", "{file}", "{file}/run", "{loop}"])
def test_an_output_folder_that_cannot_be(name, out, data_root, tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    out = out.format(file=tmp_path / "file", loop=tmp_path / "loop")
    assert run(name, data_root, out) == 1
    assert re.search(r"^error: The output folder .* cannot be", capsys.readouterr().err, re.M)


def test_a_log_ends_quietly_where_it_cannot_be_written(tmp_path, capsys):
    with RunLog() as log:
        log.hold(tmp_path)
        log.open()
        print("the first line")
        log.file.close()
        log.file = open("/dev/full", "w")  # noqa: SIM115  closed by the log
        sys.stdout.stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
        print("and the second")
        log.note("and the third")
    print("seen")
    assert (tmp_path / "log.txt").read_text() == "the first line\n"
    assert capsys.readouterr().out == "the first line\nseen\n"


@pytest.mark.parametrize("name", ["tensorboard", "log.txt", "config.yaml", "val_curve.csv"])
def test_a_file_that_cannot_be_written(name, data_root, budget, tmp_path, capsys):
    (tmp_path / name).symlink_to("/dev/full/x")
    options = *budget("ZIP", 2), "ORACLE.VAL_EVERY", 10
    status = run("ZIP", data_root, tmp_path, *options)
    err = capsys.readouterr().err
    assert status == (0 if name == "config.yaml" else 1)  # which is renamed over the link
    assert status == 0 or re.search(r"^error: .*(cannot be written|Could not write)", err, re.M), (
        err
    )


def test_drafts_of_killed_writers_go(data_root, budget, tmp_path):
    (tmp_path / "prompt_learner").mkdir()
    for draft in (".queries.json.tmp", "prompt_learner/.model-resume.pth.tar.tmp"):
        (tmp_path / draft).write_text("half")
    assert run("ZIP", data_root, tmp_path, *budget("ZIP", 1)) == 0
    assert not list(tmp_path.rglob("*.tmp"))
