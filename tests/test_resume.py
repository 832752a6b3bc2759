"""A run that is killed and resumed: what it ends with, and what it is billed."""

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
    random_sources,
    run,
)


@pytest.mark.parametrize(
    "name, options",
    [
        *[(name, ()) for name in TRAINED],
        ("ZIP", ("DATALOADER.NUM_WORKERS", 2)),
        ("ZIP", ("TRAINER.ZIP.RULE", "spsa-gc")),
        ("ZIP", ("INPUT.VIEWS", 2)),
    ],
)
def test_killed_at_a_checkpoint_it_ends_as_if_uninterrupted(
    name, options, data_root, budget, tmp_path
):
    lives = Lives(name, data_root, budget(name, 20), tmp_path, *options)
    lives.live("checkpoint:2")
    first_log = (lives.out / "log.txt").read_text()
    assert bill(lives.out)["training"]["queries"] == lives.inside() == budget(name, 4)[1]
    lives.live("never")
    one, two = lives.uninterrupted(), last_checkpoint(lives.out)
    assert_same(one["state_dict"], two["state_dict"])
    assert (one["epoch"], one["blackbox"]["batches_done"]) == (
        two["epoch"],
        two["blackbox"]["batches_done"],
    )
    assert_same(random_sources(one), random_sources(two))
    assert one["blackbox"]["counts"] == two["blackbox"]["counts"]
    assert (
        bill(lives.out) == bill(tmp_path / "uninterrupted")
        and bill(lives.out)["training"]["queries"] == lives.limit
    )
    assert lives.inside() == lives.billed()
    log = (lives.out / "log.txt").read_text()
    assert (
        log.startswith(first_log)
        and "Resume from" in log[len(first_log) :]
        and log.count("Finish training") == 1
    )
    assert accuracy(log) == accuracy((tmp_path / "uninterrupted" / "log.txt").read_text())
    assert [path.name for path in lives.out.glob("log*")] == ["log.txt"]


@pytest.mark.parametrize("until, lost", [("query:1", 1), ("query:6", 2)])
def test_killed_between_checkpoints_lost_queries_stay_on_the_bill(
    until, lost, data_root, budget, tmp_path
):
    lives = Lives("ZIP", data_root, budget("ZIP", 20), tmp_path)
    lives.live(until)
    # written ahead: the call that was killed is on the bill
    assert bill(lives.out)["training"]["queries"] == lives.inside() == 10 * int(until.split(":")[1])
    lives.live("never")
    assert bill(lives.out)["training"]["queries"] == lives.limit == 200
    assert lives.inside() == lives.billed()
    assert lives.steps() == 20 - lost == last_checkpoint(lives.out)["optimizer"]["k"] - 1


def test_killed_in_the_middle_of_a_write_the_checkpoint_before_it_is_whole(
    data_root, budget, tmp_path
):
    lives = Lives("ZIP", data_root, budget("ZIP", 20), tmp_path)
    lives.live("half:3")
    assert last_checkpoint(lives.out)["blackbox"]["counts"]["training"]["queries"] == 40
    lives.live("never")
    assert lives.inside() == lives.billed() and lives.steps() == 18


def test_killed_twice(data_root, budget, tmp_path):
    lives = Lives("ZIP", data_root, budget("ZIP", 20), tmp_path)
    lives.live("checkpoint:1")
    lives.live("checkpoint:2")
    lives.live("never")
    assert_same(lives.uninterrupted()["state_dict"], last_checkpoint(lives.out)["state_dict"])
    assert (
        bill(lives.out)["training"]["queries"] == lives.limit and lives.inside() == lives.billed()
    )


@pytest.mark.parametrize("name", TRAINED)
def test_stopped_by_an_error_it_goes_on_and_remembers_the_best(name, data_root, budget, tmp_path):
    """In one process: an exception takes the place of the kill."""
    options = *budget(name, 8), "TEST.FINAL_MODEL", "best_val", "ORACLE.SAVE_EVERY", 1
    whole = build(name, data_root, tmp_path / "whole", *options)
    whole.train()
    trainer = build(name, data_root, tmp_path / "parts", *options)
    step, done = trainer.forward_backward, []

    def interrupted(batch):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return step(batch)

    trainer.forward_backward = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = build(name, data_root, tmp_path / "parts", *options)
    resumed.train()
    assert_same(resumed.learner.state_dict(), whole.learner.state_dict())
    assert resumed.best_result == whole.best_result
    assert bill(tmp_path / "parts")["training"] == bill(tmp_path / "whole")["training"]


def test_a_run_resumed_after_its_end_only_evaluates_again(data_root, budget, tmp_path):
    options = *budget("ZIP", 2), "OPTIM.MAX_EPOCH", 4
    for _ in range(2):
        assert run("ZIP", data_root, tmp_path, *options) == 0
    before = last_checkpoint(tmp_path)["state_dict"]
    assert bill(tmp_path)["training"]["queries"] == 20
    assert torch.equal(before["theta"], last_checkpoint(tmp_path)["state_dict"]["theta"])
    log = (tmp_path / "log.txt").read_text()
    assert (
        log.count("Finish training") == 2
        and len(set(line for line in log.splitlines() if line.startswith("* accuracy"))) == 1
    )


def test_a_run_goes_on_only_with_its_own_settings(data_root, budget, tmp_path, capsys):
    """What an earlier version did not know had today's default."""
    assert run("ZIP", data_root, tmp_path, *budget("ZIP", 2)) == 0
    for option, then, now in (
        ("TRAINER.ZIP.SP_AVG", 5, 2),
        ("INPUT.VIEWS", 0, 2),
        ("ORACLE.MAX_QUERIES", 20, 10),
    ):
        assert run("ZIP", data_root, tmp_path, *budget("ZIP", 4), option, now) == 1
        assert (
            f"was made with other settings ({option}: {then} there, {now} here)"
            in capsys.readouterr().err
        )
    state = last_checkpoint(tmp_path)
    assert state["blackbox"]["settings"].pop("INPUT.VIEWS") == "0"
    save_state(newest(tmp_path / "prompt_learner"), state)
    assert run("ZIP", data_root, tmp_path, *budget("ZIP", 4)) == 0
    assert bill(tmp_path)["training"]["queries"] == 40


def test_a_checkpoint_of_the_first_version_is_evaluated_with_a_note_and_not_resumed(
    data_root, budget, tmp_path, capsys
):
    assert run("ZIP", data_root, tmp_path / "old", *budget("ZIP", 2)) == 0
    path, state = newest(tmp_path / "old" / "prompt_learner"), last_checkpoint(tmp_path / "old")
    del state["digest"], state["blackbox"]["format"], state["blackbox"]["steps_done"]
    torch.save(state, path)
    assert run("ZIP", data_root, tmp_path / "old", *budget("ZIP", 4)) == 1
    assert "was written by version 0.1.0" in capsys.readouterr().err
    flags = "--eval-only", "--model-dir", tmp_path / "old"
    assert run("ZIP", data_root, tmp_path / "new", flags=flags) == 0
    printed = capsys.readouterr().out
    assert "Note: " in printed and "version 0.1.0" in printed
    assert accuracy(printed) == accuracy((tmp_path / "old" / "log.txt").read_text())


def test_only_what_the_method_reads_is_compared(data_root, budget, tmp_path, capsys):
    """A run goes on, or is skipped, whatever the keys of other methods have become."""
    assert run("ZIP", data_root, tmp_path, *budget("ZIP", 2)) == 0
    others = "TRAINER.JOLT.DAMPING", 2.0, "TRAINER.SONAR.TEXTS", 7, "OPTIM.LR", 0.5
    assert run("ZIP", data_root, tmp_path, *budget("ZIP", 2), *others, flags=("--skip-done",)) == 0
    assert "finished run of this configuration: skipped" in capsys.readouterr().out
    assert run("ZIP", data_root, tmp_path, *budget("ZIP", 4), *others) == 0
    assert bill(tmp_path)["training"]["queries"] == 40
    assert run("ZIP", data_root, tmp_path, "TRAINER.ZIP.RANK", 3, flags=("--skip-done",)) == 1
