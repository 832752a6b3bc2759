"""ZIP's parts against their definitions."""

import math

import pytest
import torch
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.optimizers import SPSA
from dassl_blackbox.trainers.blackbox.prompts import Fastfood, LowRankSpace, walsh_hadamard
from support import bill, build, d64, quadratic, seeded


def hadamard(length):
    """Sylvester's matrix: H_2L = [[H, H], [H, -H]]."""
    H = torch.ones(1, 1, dtype=d64)
    while len(H) < length:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)], 0)
    return H


# Fastfood


@pytest.mark.parametrize("length", [1, 2, 8, 64, 512])
def test_walsh_hadamard_is_the_matrix_product(length):
    x = torch.randn(3, 2, length, dtype=d64, generator=seeded())
    assert torch.allclose(walsh_hadamard(x), x @ hadamard(length), atol=1e-10)


@pytest.mark.parametrize("n, m, D", [(3, 5, 12), (1, 16, 16), (2, 62, 512), (2, 1, 1)])
def test_fastfood_is_the_product_of_its_matrices(n, m, D):
    transform = Fastfood(n, m, D, seeded()).double()
    L = 2 ** math.ceil(math.log2(D))
    x = torch.randn(4, n, m, dtype=d64, generator=seeded(1))
    for i in range(n):
        B, G = torch.diag(transform.signs[i]), torch.diag(transform.gaussian[i])
        permutation, H = torch.eye(L, dtype=d64)[transform.permutation[i]], hadamard(L)
        divisor = math.sqrt(L * transform.gaussian[i].square().sum()) * math.sqrt(D / L)
        matrix = (H @ G @ permutation @ H @ B)[:D, :m] / divisor
        assert torch.allclose(transform(x)[:, i], x[:, i] @ matrix.T, atol=1e-10)


def test_fastfood_draws_signs_permutations_and_a_gaussian_for_every_token():
    transform = Fastfood(4, 62, 500, seeded())
    assert transform.signs.shape == transform.gaussian.shape == (4, 512)
    assert set(transform.signs.unique().tolist()) == {-1, 1}
    for i in range(4):
        assert sorted(transform.permutation[i].tolist()) == list(range(512))
        assert (
            abs(transform.gaussian[i].mean()) < 0.2 and abs(transform.gaussian[i].std() - 1) < 0.15
        )
        assert all(
            not torch.equal(transform.permutation[i], transform.permutation[j]) for j in range(i)
        )


def test_fastfood_keeps_lengths_on_average():
    transform = Fastfood(1, 30, 100, seeded())
    x = torch.randn(4000, 1, 30, generator=seeded(1))
    assert transform(x).square().sum().div(x.square().sum()).item() == pytest.approx(1, abs=0.05)


# The low-rank space


def space(n=4, D=24, ID=30, r=3):
    return LowRankSpace(torch.randn(n, D, generator=seeded(5)), ID, r, seeded(6))


def test_the_published_size():
    published = LowRankSpace(torch.zeros(8, 512), 500, 5, seeded())
    assert published.m == 62
    assert len(published.origin) == 40 + 5 + 310 + 62 == 417


def test_the_start_is_exactly_the_initial_context():
    s = space()
    assert torch.equal(s(s.origin[None]).contexts[0], s.start)


def test_the_origin_is_zeros_ones_normal_zeros():
    U, s, V, v = LowRankSpace(torch.zeros(8, 512), 500, 5, seeded()).origin.split([40, 5, 310, 62])
    assert not U.any() and not v.any() and torch.equal(s, torch.ones(5))
    assert abs(V.mean()) < 0.2 and abs(V.std() - 1) < 0.15


def test_w_is_its_formula():
    n, m, r, P = 4, 7, 3, 5
    s = space(n=n, r=r).double()
    theta = torch.randn(P, len(s.origin), dtype=d64, generator=seeded())
    W = torch.zeros(P, n, m, dtype=d64)
    for p in range(P):
        U, scale, V, v = (
            theta[p, : n * r],
            theta[p, n * r : n * r + r],
            theta[p, n * r + r : n * r + r + m * r],
            theta[p, n * r + r + m * r :],
        )
        for i in range(n):
            for j in range(m):
                W[p, i, j] = sum(U[i * r + q] * scale[q] * V[j * r + q] for q in range(r)) + v[j]
    assert torch.allclose(s(theta).contexts, s.start + s.projection(W), atol=1e-12)
    assert s(theta).image_tokens is None


@pytest.mark.parametrize("ID, words", [(3, "ID // n = 0"), (4 * 33, "between 4 and 131")])
def test_sizes_that_do_not_go(ID, words):
    with pytest.raises(BlackBoxError, match=words):
        space(ID=ID)


# SPSA


def test_estimate_on_a_quadratic_is_its_closed_form():
    # two-sided differences of a quadratic are exact: f(x + cz) - f(x - cz) = 2c z'g
    f, gradient = quadratic(20)
    start = torch.randn(20, dtype=d64, generator=seeded(3))
    optimizer, g = SPSA(start, average=5), gradient(start)
    candidates = optimizer.ask()
    z = (candidates[:5] - start) / optimizer.c_k
    expected = torch.stack([(zi @ g) / zi for zi in z]).mean(0)
    assert torch.allclose(optimizer.estimate(f(candidates)), expected, rtol=1e-8)


def test_the_mean_estimate_is_the_gradient():
    # E[z_j / z_i] is 1 for i = j and 0 otherwise, with variance E[z^2] E[1/z^2] = 7/12 * 2
    f, gradient = quadratic(6)
    start, draws = torch.randn(6, dtype=d64, generator=seeded(3)), 40000
    optimizer, g = SPSA(start, average=draws), gradient(start)
    deviation = math.sqrt(7 / 6 * g.square().sum() / draws)
    assert (optimizer.estimate(f(optimizer.ask())) - g).abs().max() < 4 * deviation


def test_perturbations_are_segmented_uniform():
    start = torch.randn(50, generator=seeded(3)).double()
    optimizer = SPSA(start, average=400)
    candidates = optimizer.ask()
    z = (candidates[:400] - start) / optimizer.c_k
    assert torch.allclose(candidates[400:], 2 * start - candidates[:400])
    size = z.abs().flatten().sort().values
    assert 0.5 <= size[0] + 1e-12 and size[-1] <= 1 + 1e-12
    assert (
        size - torch.linspace(0.5, 1, len(size))
    ).abs().max() < 0.01  # uniform: Kolmogorov's distance
    assert abs((z > 0).double().mean() - 0.5) < 0.015
    assert abs((z[:, :-1].sign() * z[:, 1:].sign()).mean()) < 0.03


@pytest.mark.parametrize("k", [1, 2, 10, 500])
def test_schedules(k):
    optimizer = SPSA(torch.zeros(3), o=1.0, c=0.01, a=0.01, alpha=0.4, gamma=0.1)
    for _ in range(k - 1):
        optimizer.ask()
        optimizer.tell(torch.zeros(10))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / (k + 1) ** 0.4)
    start = optimizer.theta
    assert (optimizer.ask() - start).abs().max() == pytest.approx(0.01 / k**0.1, rel=0.2)


def move(optimizer, losses):
    """The estimate, and the step that was taken divided by a_k."""
    optimizer.ask()
    start, g = optimizer.theta.clone(), optimizer.estimate(losses)
    a = optimizer.param_groups[0]["lr"]
    optimizer.tell(losses)
    return g, (start - optimizer.theta) / a


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
def test_the_clip(scale):
    g, step = move(
        SPSA(torch.zeros(9, dtype=d64), average=1, rule="spsa-clip"),
        torch.tensor([scale, -scale], dtype=d64),
    )
    assert (g.norm() >= 3) == (scale >= 1)  # both sides are tried
    if g.norm() >= 3:
        assert step.norm() == pytest.approx(3) and torch.allclose(step, g * 3 / g.norm())
    else:
        assert torch.allclose(step, g, rtol=1e-12)


def test_plain_spsa_is_not_clipped():
    g, step = move(
        SPSA(torch.zeros(9, dtype=d64), average=1, rule="spsa"),
        torch.tensor([1e4, -1e4], dtype=d64),
    )
    assert g.norm() > 3 and torch.allclose(step, g)


def test_momentum_of_spsa_gc():
    optimizer, m = (
        SPSA(torch.zeros(4, dtype=d64), average=2, rule="spsa-gc", beta=0.8),
        torch.zeros(4, dtype=d64),
    )
    for k in (1, 2, 3):
        g, step = move(optimizer, torch.randn(4, dtype=d64, generator=seeded(k)))
        m = 0.8 * m + g
        assert torch.allclose(step, g + 0.8 * m)


# The published run


def test_500_steps_of_10_queries_in_5000(data_root, tmp_path):
    trainer = build(
        "ZIP", data_root, tmp_path, "DATASET.NUM_SHOTS", 16, "DATALOADER.TRAIN_X.BATCH_SIZE", 128
    )
    assert trainer.cfg.ORACLE.MAX_QUERIES == 5000
    assert tuple(trainer.plan.step(0)) == (10, 1280) and trainer.steps_total() == 500
    assert (
        trainer.describe_cost()
        == "500 steps of 10 queries: 5,000 training queries, 640,000 image queries; "
        "2 evaluation queries, 61 image queries"
    )
    published = trainer.cfg.TRAINER.ZIP
    assert (published.N_CTX, published.ID, published.RANK, published.SP_AVG, published.RULE) == (
        8,
        500,
        5,
        5,
        "spsa-clip",
    )
    assert (
        published.O,
        published.C,
        published.A,
        published.ALPHA,
        published.GAMMA,
        published.BETA,
    ) == (1.0, 0.01, 0.01, 0.4, 0.1, 0.8)


@pytest.mark.parametrize("queries, steps", [(37, 3), (40, 4)])
def test_a_step_is_ten_queries(data_root, tmp_path, queries, steps):
    trainer = build("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", queries)
    trainer.train()
    assert trainer.optim.k == steps + 1
    assert bill(tmp_path)["training"] == {"queries": 10 * steps, "image_queries": 80 * steps}
