"""CMA-ES as the published figures had it, and pycma's exceptions as sentences."""

import numpy as np
import pytest
import torch
from cma.sigma_adaptation import CMAAdaptSigmaCSA, CMAAdaptSigmaTPA
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from support import OPTIMIZERS

make = OPTIMIZERS["CMAES"]


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({}, CMAAdaptSigmaCSA),
        ({"covariance": "diagonal"}, CMAAdaptSigmaCSA),
        ({"covariance": "vd"}, CMAAdaptSigmaCSA),
        ({"options": ["AdaptSigma", True]}, CMAAdaptSigmaTPA),  # the default of pycma 4.5
    ],
)
def test_the_step_size_rule_of_the_published_figures(settings, rule):
    """pycma 4.5 takes another rule from 300 dimensions on."""
    assert type(make(torch.zeros(400), **settings).es.adapt_sigma) is rule


@pytest.mark.parametrize(
    "options",
    [
        ["CMA_actve", 1],
        [3, 4],
        [[1], 4],
        ["maxstd", "a"],
        ["transformation", 3],
        ["AdaptSigma", "x"],
        ["CMA_mu", 100],
        ["CMA_cmean", "nan"],
    ],
)
def test_options_that_do_not_fit_are_a_sentence(options):
    state = torch.get_rng_state()
    with pytest.raises(BlackBoxError, match="CMA_OPTIONS") as caught:
        optimizer = make(torch.zeros(12), options=options)
        for _ in range(3):
            optimizer.tell((optimizer.ask() - 1).square().sum(1))
    assert "\n" not in str(caught.value) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("generations", [0, 1, 6])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"covariance": "diagonal"},
        {"covariance": "vd"},
        {"covariance": "vkd", "bound": 0.6},
        {"bound": 0.6},
        {"options": ["CMA_mirrors", 1]},
        {"options": ["CMA_elitist", True]},
        {"options": ["CMA_diagonal", 3]},  # full from the fourth generation on
        {"options": ["CMA_diagonal_decoding", 1.0]},
        {"options": ["AdaptSigma", CMAAdaptSigmaTPA]},
    ],
)
def test_a_state_goes_on_in_another_process_as_it_would_have_here(settings, generations, tmp_path):
    """NumPy's global source, which another process has in another state, is not drawn from."""
    one = make(torch.zeros(6), seed=3, **settings)
    for _ in range(generations):
        one.tell((one.ask() - 0.3).square().sum(1))
    torch.save(one.state_dict(), tmp_path / "state")
    np.random.seed(1)
    other = make(torch.zeros(6), seed=4, **settings)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for _ in range(8):
        np.random.seed(None)
        a, b = one.ask(), other.ask()
        assert torch.equal(a, b)
        one.tell(a.square().sum(1))
        other.tell(b.square().sum(1))
