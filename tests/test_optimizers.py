"""The contract of every optimiser, SPSA's definition, CMA-ES as in the published figures."""

import numpy as np
import pytest
import torch
from cma.sigma_adaptation import CMAAdaptSigmaCSA, CMAAdaptSigmaTPA
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import load_state, save_state
from dassl_blackbox.trainers.blackbox.optimizers import SPSA
from support import OPTIMIZERS, d64, quadratic, seeded

BOWL, _ = quadratic(12)
CMAES, RandomDirections = OPTIMIZERS["CMAES"], OPTIMIZERS["RandomDirections"]
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
close = torch.testing.assert_close


def answer(optimizer, candidates):
    """What `tell` wants to know of the bowl: its values, or logits of one image and two classes
    whose loss grows with them.
    """
    height = BOWL(candidates)
    if optimizer.told == "losses":
        return (height,)
    return torch.stack([height, torch.zeros_like(height)], -1)[:, None], torch.tensor([1])


def walk(optimizer, steps=1):
    """So many steps, of all their rounds; returns what was asked for, `[steps population, d]`."""
    asked = []
    for _ in range(steps * optimizer.rounds):
        asked.append(optimizer.ask())
        optimizer.tell(*answer(optimizer, asked[-1]))
    return torch.cat(asked)


@every_optimizer
def test_asks_for_its_population_and_lowers_a_quadratic(make):
    start = torch.full((12,), 2.0, dtype=d64)
    optimizer = make(start)
    optimizer.ask()
    assert torch.equal(optimizer.theta, start)  # asking moves nothing
    optimizer = make(start)
    asked = walk(optimizer, 60)
    assert asked.shape == (60 * optimizer.population, 12) and asked.dtype == d64
    assert BOWL(optimizer.theta[None]) < BOWL(start[None])
    assert torch.equal(start, torch.full((12,), 2.0, dtype=d64))  # the start is the caller's


@every_optimizer
def test_repeats_with_its_seed_and_leaves_global_generators_alone(make):
    state, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = [make(torch.ones(12, dtype=d64), seed=seed) for seed in (4, 4, 5)]
    asked = [walk(optimizer, 6) for optimizer in runs]
    assert torch.equal(asked[0], asked[1]) and not torch.equal(asked[0], asked[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy)


CMA_STATES = [
    *({"covariance": "diagonal"}, {"covariance": "vd"}, {"covariance": "vkd", "bound": 0.6}),
    *({"options": ["CMA_mirrors", 1]}, {"options": ["CMA_elitist", True]}),
    {"options": ["CMA_diagonal", 3]},  # full from the fourth generation on
    *({"options": ["CMA_diagonal_decoding", 1.0]}, {"options": ["AdaptSigma", CMAAdaptSigmaTPA]}),
]


@pytest.mark.parametrize("before", [0, 1, 6])
@pytest.mark.parametrize(
    "make, settings",
    [*((make, {}) for make in OPTIMIZERS.values()), *((CMAES, given) for given in CMA_STATES)],
)
def test_continues_from_its_saved_state(make, settings, before, tmp_path):
    """In another process, where NumPy's global source is in another state."""
    first = make(torch.full((12,), 0.1, dtype=d64), **settings)
    if before:
        walk(first, before)
    save_state(tmp_path / "state", first.state_dict())
    np.random.seed(1)
    second = make(torch.zeros(12, dtype=d64), **{**settings, "seed": 9})
    second.load_state_dict(load_state(tmp_path / "state"))
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"]
    for _ in range(4):
        assert torch.equal(walk(first), walk(second))
        assert torch.equal(first.theta, second.theta)


def test_estimate_on_a_quadratic_is_its_closed_form():
    """Its two-sided differences are exact: f(x + cz) - f(x - cz) = 2c z'g."""
    f, gradient = quadratic(20)
    start = torch.randn(20, dtype=d64, generator=seeded(3))
    optimizer, g = SPSA(start, average=5), gradient(start)
    candidates = optimizer.ask()
    z = (candidates[:5] - start) / optimizer.c_k
    close(candidates[5:], 2 * start - candidates[:5])
    expected = torch.stack([(zi @ g) / zi for zi in z]).mean(0)
    close(optimizer.estimate(f(candidates)), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("rule", ["spsa", "spsa-clip", "spsa-gc"])
def test_the_step_of_each_rule(rule, scale):
    optimizer = SPSA(torch.zeros(9, dtype=d64), average=1, rule=rule, beta=0.8)
    m = torch.zeros(9, dtype=d64)
    for k in (1, 2, 3):
        optimizer.ask()
        losses = scale * torch.randn(2, dtype=d64, generator=seeded(k))
        before, g = optimizer.theta.clone(), optimizer.estimate(losses)
        a = 0.01 / (k + 1) ** 0.4
        assert optimizer.param_groups[0]["lr"] == pytest.approx(a)
        assert optimizer.c_k == pytest.approx(0.01 / k**0.1)
        optimizer.tell(losses)
        m = 0.8 * m + g
        clipped = g * min(1, 3 / g.norm().item())  # sqrt(9)
        wanted = {"spsa": g, "spsa-clip": clipped, "spsa-gc": g + 0.8 * m}[rule]
        close((before - optimizer.theta) / a, wanted)


def test_the_step_size_rule_of_the_published_figures():
    """pycma 4.5 takes another rule from 300 dimensions on, where it is not asked for."""
    given = {}, {"covariance": "diagonal"}, {"covariance": "vd"}, {"options": ["AdaptSigma", True]}
    rules = [type(CMAES(torch.zeros(400), **settings).es.adapt_sigma) for settings in given]
    assert rules == [CMAAdaptSigmaCSA] * 3 + [CMAAdaptSigmaTPA]


BAD = ["CMA_actve", 1], [3, 4], ["maxstd", "a"], ["transformation", 3], ["AdaptSigma", "x"]


@pytest.mark.parametrize("options", [*BAD, ["CMA_mu", 100], ["CMA_cmean", "nan"]])
def test_options_that_do_not_fit_are_a_sentence(options):
    state = torch.get_rng_state()
    with pytest.raises(BlackBoxError, match="CMA_OPTIONS") as caught:
        walk(CMAES(torch.zeros(12, dtype=d64), options=options), 3)
    assert "\n" not in str(caught.value) and torch.equal(torch.get_rng_state(), state)
