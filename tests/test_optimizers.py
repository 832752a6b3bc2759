"""The contract of every optimiser that is exported, in whatever it wants to be told, and those of
random directions against the definitions.
"""

import pytest
import torch
from dassl_blackbox.trainers.bar import DecayingDirections
from dassl_blackbox.trainers.blackbox.files import load_state, save_state
from dassl_blackbox.trainers.blackbox.optimizers import OneSided
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
    assert torch.equal(optimizer.theta, torch.zeros(12))  # asking moves nothing
    optimizer = make(torch.zeros(12, dtype=d64))
    for _ in range(3):
        asked = step(optimizer)
        assert asked.shape == (optimizer.population, 12) and asked.dtype == d64


@every_optimizer
def test_lowers_a_quadratic(make):
    start = torch.full((12,), 2.0, dtype=d64)
    optimizer = walk(make(start), 60)
    assert BOWL(optimizer.theta[None]) < BOWL(start[None])
    assert torch.equal(start, torch.full((12,), 2.0))  # the start is the caller's


@every_optimizer
def test_repeats_with_its_seed_and_leaves_global_generators_alone(make):
    state = torch.get_rng_state()
    runs = [walk(make(torch.ones(12, dtype=d64), seed=seed), 6).theta for seed in (4, 4, 5)]
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
        assert torch.equal(first.theta, second.theta)


# Random directions


def test_one_sided_estimate_is_bars_loop():
    theta = torch.linspace(-1, 1, 12, dtype=d64)
    optimizer = OneSided(theta, 5, eps=0.01, scale=150.0, seed=3)
    candidates = optimizer.ask()
    losses = BOWL(candidates)
    assert torch.equal(candidates[optimizer.in_use], theta)
    g = torch.zeros(12, dtype=d64)
    for j in range(5):
        u = (candidates[1 + j] - theta) / 0.01
        assert u.norm() == pytest.approx(1, rel=1e-6)
        g += 150.0 / 5 * u * (losses[1 + j] - losses[0]) / 0.01
    assert torch.allclose(optimizer.estimate(losses), g)


def test_one_sided_mean_on_a_linear_function_is_its_gradient():
    # E[d u_i (u'g)] = g_i, with variance (d |g|^2 + (d - 2) g_i^2) / (d + 2), since
    # E[u_i^2 u_j^2] = (1 + 2 [i = j]) / (d (d + 2))
    d, q = 6, 100_000
    theta, g = torch.ones(d, dtype=d64), torch.linspace(-2, 3, d, dtype=d64)
    optimizer = OneSided(theta, q, eps=0.01, scale=d, seed=1)
    estimate = optimizer.estimate(optimizer.ask() @ g)
    deviation = ((d * g.square().sum() + (d - 2) * g.square()) / (d + 2) / q).sqrt()
    assert ((estimate - g).abs() < 4 * deviation).all()


def test_polynomial_decay():
    """From nearly `first` to `last`, where it stays."""
    optimizer, left = DecayingDirections(torch.zeros(3), 5, 0.01, 10.0, 0.1, 750.0, 0), []
    for optimizer.k in (75, 375, 750, 751, 5000):
        left.append((optimizer.rate() - 0.1) / 9.9)
    assert left == pytest.approx([0.9**0.9, 0.5**0.9, 0, 0, 0])


def test_bar_is_gradient_steps_of_the_polynomial():
    optimizer = DecayingDirections(torch.ones(12, dtype=d64), 5, 0.01, 0.1, 0.01, 3, 0)
    theta = torch.ones(12, dtype=d64)
    for k in range(1, 6):
        losses = BOWL(optimizer.ask())
        a = 0.09 * (1 - min(k, 3) / 3) ** 0.9 + 0.01
        assert optimizer.param_groups[0]["lr"] == pytest.approx(a)
        theta = theta - a * optimizer.estimate(losses)
        optimizer.tell(losses)
        assert torch.allclose(optimizer.theta, theta)
