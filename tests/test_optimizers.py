"""The contract of every optimiser that is exported, in whatever it wants to be told."""

import pytest
import torch
from dassl_blackbox.trainers.blackbox.run.files import load_state, save_state
from support import OPTIMIZERS, d64, quadratic

BOWL, _ = quadratic(12)
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def answer(optimizer, candidates):
    """What `tell` wants to know of the bowl: its values, or logits of one image and two classes
    whose loss grows with them.
    """
    height = BOWL(candidates)
    if optimizer.told == "losses":
        return (height,)
    return torch.stack([height, torch.zeros_like(height)], -1)[:, None], torch.tensor([1])


def step(optimizer):
    """All rounds of one step; returns what was asked for, `[population, d]`."""
    asked = []
    for _ in range(optimizer.rounds):
        asked.append(optimizer.ask())
        optimizer.tell(*answer(optimizer, asked[-1]))
    return torch.cat(asked)


def walk(optimizer, steps):
    for _ in range(steps):
        step(optimizer)
    return optimizer


@every_optimizer
def test_asks_for_its_population(make):
    optimizer = make(torch.zeros(12, dtype=d64))
    optimizer.ask()
    assert torch.equal(optimizer.solution, torch.zeros(12))  # asking moves nothing
    optimizer = make(torch.zeros(12, dtype=d64))
    for _ in range(3):
        asked = step(optimizer)
        assert asked.shape == (optimizer.population, 12) and asked.dtype == d64


@every_optimizer
def test_lowers_a_quadratic(make):
    start = torch.full((12,), 2.0, dtype=d64)
    optimizer = walk(make(start), 60)
    assert BOWL(optimizer.solution[None]) < BOWL(start[None])
    assert torch.equal(start, torch.full((12,), 2.0))  # the start is the caller's


@every_optimizer
def test_repeats_with_its_seed_and_leaves_global_generators_alone(make):
    state = torch.get_rng_state()
    runs = [walk(make(torch.ones(12, dtype=d64), seed=seed), 6).solution for seed in (4, 4, 5)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), state)


@every_optimizer
@pytest.mark.parametrize("before", [0, 3])
def test_continues_from_its_saved_state(make, before, tmp_path):
    first = walk(make(torch.ones(12, dtype=d64)), before)
    save_state(tmp_path / "state", first.state_dict())
    second = make(torch.zeros(12, dtype=d64), seed=9)
    second.load_state_dict(load_state(tmp_path / "state"))
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"]
    for _ in range(3):
        assert torch.equal(step(first), step(second))
        assert torch.equal(first.solution, second.solution)
