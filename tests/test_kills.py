"""Many runs, ended by signals at random moments and resumed; behind `scripts/test.sh --long`."""

import os
import random
import signal

import pytest
from dassl_blackbox.trainers.blackbox.trainer import Trainer
from lives import Lives, processes  # noqa: F401  a fixture
from support import OURS, TRAINED, assert_same, build, last_checkpoint

pytestmark = pytest.mark.long
KILLS = 20  # of every trainer
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def trajectory(*args):
    """What the learner holds after every step of an undisturbed run: {steps done: state dict}."""
    trainer, states = build(*args), {}
    report = trainer.report

    def keep(summary):
        report(summary)
        state = trainer.learner.state_dict()
        states[trainer.steps_done] = {name: value.clone() for name, value in state.items()}

    trainer.report = keep
    trainer.train()
    states[trainer.steps_done] = dict(trainer.learner.state_dict())  # a head is fitted at the end
    return states


def test_every_trainer_is_here():
    assert {*TRAINED, "WhiteBox"} == {
        name for name, cls in OURS.items() if issubclass(cls, Trainer) and name != "ZeroshotOracle"
    }


@pytest.mark.parametrize("name", [*TRAINED, "WhiteBox"])
def test_killed_at_random_it_is_the_undisturbed_run_at_the_same_step(
    name, data_root, budget, tmp_path
):
    rng = random.Random(name)
    limit = ("OPTIM.MAX_EPOCH", 20) if name == "WhiteBox" else budget(name, 60)
    workers = "DATALOADER.NUM_WORKERS"
    states = trajectory(name, data_root, tmp_path / "whole", *limit)
    kills = hard = round = 0
    while kills < KILLS:
        folder = tmp_path / f"{round}"
        folder.mkdir()
        lives, round = Lives(name, data_root, limit, folder, workers, rng.randrange(2)), round + 1
        while True:
            life = lives.start()
            life.join(rng.uniform(0.2, 4))
            if not life.is_alive():
                break
            number = rng.choice(SIGNALS)
            os.kill(life.pid, number)
            life.join(120)
            if life.exitcode == 0:  # it had ended by itself
                break
            kills, hard = kills + 1, hard + (number == signal.SIGKILL)
            assert life.exitcode in (-signal.SIGKILL, 128 + number), lives.printed.read_text()
        assert life.exitcode in (0, 1), lives.printed.read_text()
        if life.exitcode == 1:  # every step of a budget can be lost, and that is told
            assert (
                "queries are used, the next request" in lives.printed.read_text().splitlines()[-1]
            )
            continue
        assert_same(dict(last_checkpoint(lives.out)["state_dict"]), states[lives.steps()])
        if name != "WhiteBox":
            request = max(lives.limit // 60, 6)
            # written ahead: a kill between the bill and the call leaves one call that was not made
            assert lives.inside() <= lives.billed() <= lives.inside() + hard * request
        assert not list(lives.out.rglob("*.tmp")) and not (lives.out / ".lock").exists()
    print(f"{name}: {kills} kills in {round} runs")
