"""A run that is killed and resumed: what it ends with, and what it is billed."""

import os
import random
import signal
from copy import deepcopy

import pytest
import torch
from dassl_blackbox.trainers.blackbox.files import newest, save_state
from lives import Lives, processes  # noqa: F401  a fixture
from support import (
    TRAINED,
    accuracy,
    assert_same,
    bill,
    build,
    last_checkpoint,
    own,
    printed,
    random_sources,
    run,
)

KILLED = [
    *(("JOLT", ()), ("SONAR", ())),
    *(("ZIP", ("DATALOADER.NUM_WORKERS", 2)), ("ZIP", ("INPUT.VIEWS", 2))),
    *(pytest.param(name, (), marks=pytest.mark.long) for name in TRAINED),
]


@pytest.mark.parametrize("name, options", KILLED)
def test_killed_at_a_checkpoint_it_ends_as_if_it_never_was(
    name, options, data_root, budget, tmp_path
):
    lives = Lives(name, data_root, budget(name, 20), tmp_path, *options)
    lives.live("checkpoint:2")
    log = (lives.out / "log.txt").read_text()
    assert bill(lives.out)["training"]["queries"] == lives.inside() == budget(name, 4)[1]
    lives.live()
    one, two = lives.uninterrupted(), last_checkpoint(lives.out)
    assert_same(one["state_dict"], two["state_dict"])
    assert_same(random_sources(one), random_sources(two))
    assert one["epoch"] == two["epoch"]
    for kept in ("batches_done", "counts"):
        assert one["blackbox"][kept] == two["blackbox"][kept]
    assert bill(lives.out) == bill(lives.twin)
    assert bill(lives.out)["training"]["queries"] == lives.limit
    assert lives.inside() == lives.billed()
    whole = (lives.out / "log.txt").read_text()
    assert whole.startswith(log) and "Resume from" in whole[len(log) :]
    assert whole.count("Finish training") == 1 and printed(lives.out) == printed(lives.twin)
    assert [path.name for path in lives.out.glob("log*")] == ["log.txt"]


def test_stopped_by_an_error_it_goes_on_and_remembers_the_best(data_root, budget, tmp_path):
    options = *budget("CraFT", 8), "TEST.FINAL_MODEL", "best_val", "ORACLE.SAVE_EVERY", 1
    whole = build("CraFT", data_root, tmp_path / "a", *options)
    whole.train()
    first = build("CraFT", data_root, tmp_path / "b", *options)
    steps = first.forward_backward
    first.forward_backward = lambda batch: steps(batch) if first.steps_done < 5 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        first.train()
    resumed = build("CraFT", data_root, tmp_path / "b", *options)
    resumed.train()
    assert_same(resumed.learner.state_dict(), whole.learner.state_dict())
    assert resumed.best_result == whole.best_result
    assert bill(tmp_path / "a")["training"] == bill(tmp_path / "b")["training"]


@pytest.mark.parametrize(
    "kills, asked, steps",
    [
        (["query:6"], 60, 18),  # written ahead: the call that was killed is on the bill
        (["half:3"], 60, 18),  # the checkpoint before is whole
        pytest.param(["checkpoint:1", "checkpoint:2"], 60, 20, marks=pytest.mark.long),
    ],
)
def test_lost_queries_stay_on_the_bill(kills, asked, steps, data_root, budget, tmp_path):
    lives = Lives("ZIP", data_root, budget("ZIP", 20), tmp_path)
    for until in kills:
        lives.live(until)
    assert bill(lives.out)["training"]["queries"] == lives.inside() == asked
    lives.live()
    assert bill(lives.out)["training"]["queries"] == lives.limit == 200
    assert lives.inside() == lives.billed()
    assert lives.steps() == steps == last_checkpoint(lives.out)["optimizer"]["k"] - 1


@pytest.mark.long
@pytest.mark.parametrize("name", [*TRAINED, "WhiteBox"])
def test_killed_at_random_it_is_at_each_step_as_undisturbed(name, data_root, budget, tmp_path):
    rng, states, signals = random.Random(name), {}, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    limit = ("OPTIM.MAX_EPOCH", 20) if name == "WhiteBox" else budget(name, 60)
    whole = build(name, data_root, tmp_path / "whole", *limit)
    report = whole.report

    def keep(summary=None):
        if summary is not None:
            report(summary)
        states[whole.steps_done] = deepcopy(dict(whole.learner.state_dict()))

    whole.report = keep
    whole.train()
    keep()  # a head is fitted at the end
    kills = hard = runs = 0
    while kills < 20:
        folder, runs = tmp_path / f"{runs}", runs + 1
        folder.mkdir()
        lives = Lives(name, data_root, limit, folder, "DATALOADER.NUM_WORKERS", rng.randrange(2))
        while True:
            life, number = lives.start(), rng.choice(signals)
            life.join(rng.uniform(0.2, 4))
            if life.is_alive():
                os.kill(life.pid, number)
                life.join(120)
            if life.exitcode in (0, 1):  # it had ended by itself
                break
            kills, hard = kills + 1, hard + (number == signal.SIGKILL)
            assert life.exitcode in (-signal.SIGKILL, 128 + number), lives.printed.read_text()
        if life.exitcode == 1:  # every step of a budget can be lost, and that is told
            assert "queries are used, the next request" in lives.printed.read_text()
            continue
        # a head is fitted at the end, to fewer answers where the budget ends a run that lost some
        if whole.learns_by_steps or lives.steps() == whole.steps_done:
            assert_same(dict(last_checkpoint(lives.out)["state_dict"]), states[lives.steps()])
        if name != "WhiteBox":
            request = max(lives.limit // 60, 6)
            # written ahead: a kill between the bill and the call leaves one call that was not made
            assert lives.inside() <= lives.billed() <= lives.inside() + hard * request
        assert not list(lives.out.rglob("*.tmp")) and not (lives.out / ".lock").exists()


def test_a_run_goes_on_only_with_its_own_settings(data_root, budget, tmp_path, capsys):
    """Of the keys that its method reads; what an earlier version did not know had today's default.

    It is skipped by the same rule.
    """
    less, more, done = budget("ZIP", 2), budget("ZIP", 4), ("--skip-done",)
    assert run("ZIP", data_root, tmp_path, *less) == 0
    others = *own("JOLT", DAMPING=2.0), *own("SONAR", TEXTS=7), "OPTIM.LR", 0.5
    assert run("ZIP", data_root, tmp_path, *less, *others, flags=done) == 0
    assert "finished run of this configuration: skipped" in capsys.readouterr().out
    smaller = "ORACLE.MAX_QUERIES", 20, 10
    for option, then, now in (("TRAINER.ZIP.SP_AVG", 5, 2), ("INPUT.VIEWS", 0, 2), smaller):
        words = f"was made with other settings ({option}: {then} there, {now} here)"
        assert run("ZIP", data_root, tmp_path, *more, option, now) == 1
        assert words in capsys.readouterr().err
    state = last_checkpoint(tmp_path)
    assert state["blackbox"]["settings"].pop("INPUT.VIEWS") == "0"
    save_state(newest(tmp_path / "prompt_learner"), state)
    assert run("ZIP", data_root, tmp_path, *more, *others) == 0
    assert bill(tmp_path)["training"]["queries"] == 40
    assert run("ZIP", data_root, tmp_path, *own("ZIP", RANK=3), flags=done) == 1


def test_a_checkpoint_of_version_0_1_is_evaluated_not_resumed(data_root, budget, tmp_path, capsys):
    old = tmp_path / "old"
    assert run("ZIP", data_root, old, *budget("ZIP", 2)) == 0
    path, state = newest(old / "prompt_learner"), last_checkpoint(old)
    del state["digest"], state["blackbox"]["format"], state["blackbox"]["steps_done"]
    torch.save(state, path)
    assert run("ZIP", data_root, old, *budget("ZIP", 4)) == 1
    assert "was written by version 0.1.0" in capsys.readouterr().err
    flags = "--eval-only", "--model-dir", old
    assert run("ZIP", data_root, tmp_path / "new", flags=flags) == 0
    out = capsys.readouterr().out
    assert "Note: " in out and "version 0.1.0" in out and accuracy(out) == printed(old)
