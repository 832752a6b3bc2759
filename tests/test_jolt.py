"""JOLT's parts against their definitions: the step, the Jacobian, the memory."""

import os
import shlex
import subprocess
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
import train
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.losses import softmax_model
from dassl_blackbox.trainers.blackbox.optimizers import SubspaceGaussNewton
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied
from support import REPO, assert_same, bill, build, d64, seeded, trained
from torch.autograd.functional import hessian, jacobian

d, B, C = 24, 7, 4
A, OFFSET = (
    torch.randn(B, C, d, dtype=d64, generator=seeded(1)),
    torch.randn(B, C, dtype=d64, generator=seeded(2)),
)
LABELS = torch.randint(C, (B,), generator=seeded(3))


def linear(theta):
    """Logits `[P, B, C]` that are linear in theta `[P, d]`."""
    return torch.einsum("bcd,pd->pbc", A, theta) + OFFSET


def walk(optimizer, rounds, logits=linear):
    for _ in range(rounds):
        optimizer.tell(logits(optimizer.ask()), LABELS)
    return optimizer


# The step


def test_gradient_and_matrix_are_those_of_softmax_regression():
    theta = torch.randn(d, dtype=d64, generator=seeded(4))

    def loss(x):
        return F.cross_entropy(linear(x[None])[0], LABELS)

    g, H = softmax_model(linear(theta[None])[0], A.permute(2, 0, 1), LABELS)
    torch.testing.assert_close(g, jacobian(loss, theta))
    torch.testing.assert_close(H, hessian(loss, theta))


def test_proposals_are_damped_newton_steps_in_the_subspace():
    optimizer = walk(
        SubspaceGaussNewton(torch.ones(d, dtype=d64), directions=8, decay=0.3, seed=5), 3
    )  # a step, and the first round of another
    optimizer.ask()
    Z, _ = optimizer.asked
    theta, damping = optimizer.theta.clone(), optimizer.damping
    optimizer.tell(linear(theta + optimizer.eps * Z), LABELS)

    def loss(a):
        x = theta + a @ Z
        return F.cross_entropy(linear(x[None])[0], LABELS) + 0.3 / 2 * (x - 1).square().sum()

    zero = torch.zeros(8, dtype=d64)
    H, g = hessian(loss, zero), jacobian(loss, zero)
    mu = (H - 0.3 * torch.eye(8)).diagonal().mean()
    for factor, proposal in zip((0.1, 1.0, 10.0), optimizer.proposals):
        step = torch.linalg.solve(H + factor * damping * mu * torch.eye(8), g)
        torch.testing.assert_close(proposal, theta - step @ Z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(Z @ Z.T, torch.eye(8, dtype=d64))


def test_a_proposal_must_be_better_on_the_next_images():
    optimizer = walk(SubspaceGaussNewton(torch.zeros(d, dtype=d64), directions=8), 2)
    before, damping = optimizer.theta.clone(), optimizer.damping
    worse = torch.zeros(4, B, C, dtype=d64)
    worse[0, range(B), LABELS] = 5.0  # theta is right about every one
    optimizer.ask()
    optimizer.tell(worse, LABELS)
    assert torch.equal(optimizer.theta, before) and optimizer.damping == 10 * damping
    optimizer.tell(linear(optimizer.ask()), LABELS)
    asked = optimizer.ask()
    optimizer.tell(worse[[1, 2, 3, 0]], LABELS)
    assert torch.equal(optimizer.theta, asked[3]) and not torch.equal(optimizer.theta, before)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-2])
def test_the_finite_difference_follows_curvature_and_noise(noise):
    """f = sin along every direction: the error of a slope is about eps / 2 + noise / eps, least at
    sqrt(2 noise).
    """
    generator = seeded(6)

    def logits(theta):
        clean = torch.sin(linear(theta) + 1)
        return clean + noise * torch.randn(clean.shape, dtype=d64, generator=generator)

    eps = walk(SubspaceGaussNewton(torch.zeros(d, dtype=d64), directions=8), 2, logits).eps
    low, high = {0.0: (0, 2e-4), 1e-6: (1e-4, 1e-2), 1e-2: (3e-2, 1)}[noise]
    assert low < eps < high


def test_answers_that_are_rounded_do_not_agree_on_nothing():
    """Rounded to 0.5, logits do not move under the smallest steps; slopes of zero agree perfectly,
    and mean nothing.
    """
    optimizer = walk(
        SubspaceGaussNewton(torch.zeros(d, dtype=d64), directions=8),
        2,
        lambda theta: (linear(theta) * 2).round() / 2,
    )
    assert optimizer.eps >= 0.1


def test_the_damping_goes_up_where_no_proposal_was_better_and_stays_within_bounds():
    optimizer = walk(
        SubspaceGaussNewton(torch.zeros(d, dtype=d64), directions=8, dampings=(0.1,)), 2
    )
    dampings = []
    for right in (0, 0, 0, 0, 1, 1):
        answers = torch.zeros(2, B, C, dtype=d64)
        answers[right, range(B), LABELS] = 50.0
        optimizer.ask()
        optimizer.tell(answers, LABELS)
        dampings.append(optimizer.damping)
        optimizer.tell(linear(optimizer.ask()), LABELS)
    assert dampings == pytest.approx([10, 100, 1000, 1000, 100, 10])


def test_a_state_between_two_rounds_is_that_of_the_steps_beginning():
    """A service's budget may end a step in its midst; the run that goes on begins it anew."""
    optimizer = walk(SubspaceGaussNewton(torch.ones(d, dtype=d64), directions=8, seed=5), 2)
    begun = deepcopy(optimizer.state_dict())
    walk(optimizer, 1)
    assert not torch.equal(optimizer.theta, begun["theta"])  # it moved, and would be saved moved
    assert_same(optimizer.state_dict(), begun)
    fresh = SubspaceGaussNewton(torch.ones(d, dtype=d64), directions=8)
    fresh.load_state_dict(begun)
    walk(fresh, 2), walk(optimizer, 1)
    assert_same(fresh.state_dict(), optimizer.state_dict())


def test_the_last_move_is_one_of_the_directions():
    optimizer = walk(SubspaceGaussNewton(torch.zeros(d, dtype=d64), directions=8), 3)
    optimizer.move = torch.randn(d, dtype=d64, generator=seeded(9))
    optimizer.ask()
    Z, _ = optimizer.asked
    torch.testing.assert_close(Z.T @ (Z @ optimizer.move), optimizer.move)


def test_the_jacobian_of_the_embedded_model(data_root, tmp_path):
    trainer = build(
        "JOLT", data_root, tmp_path, "TRAINER.JOLT.DIRECTIONS", "16", "TRAINER.JOLT.HEAD", "False"
    )
    batch = next(iter(trainer.train_loader_x))
    trainer.forward_backward(batch)
    images, labels = trainer.oracle.upload(batch["img"]), batch["label"]
    optimizer = trainer.optim
    optimizer.tell(trainer.oracle.query(images, trainer.space(optimizer.ask())), labels)
    optimizer.ask()
    Z, steps = optimizer.asked
    _, slopes = optimizer.slopes(
        trainer.oracle.query(images, trainer.space(optimizer.theta + steps * Z))
    )
    local = trainer.oracle.inner
    image = local.features_of(images)

    def logits(a):
        context = trainer.space((optimizer.theta + a @ Z)[None]).contexts
        return local.scale * image @ local.text(context)[0].T

    exact = jacobian(logits, torch.zeros(len(Z))).permute(2, 0, 1)
    assert exact.abs().max() > 0.1 and (slopes - exact).norm() < 0.02 * exact.norm()


def test_half_precision_takes_larger_differences(data_root, tmp_path):
    steps = []
    for precision in ("fp32", "bf16"):
        trainer = build(
            "JOLT", data_root, tmp_path, "ORACLE.PREC", precision, "TRAINER.JOLT.DIRECTIONS", "16"
        )
        trainer.forward_backward(next(iter(trainer.train_loader_x)))
        steps.append(trainer.optim.eps)
    assert 0 < steps[0] < steps[1]


# Features


def test_features_give_the_same_run_for_fewer_image_queries(data_root, tmp_path):
    with pytest.raises(AccessDenied, match="JOLT asked for 'features'"):
        build("JOLT", data_root, tmp_path, "TRAINER.JOLT.FEATURES", "True")
    grant = "ORACLE.GRANTS", "('contexts', 'logits', 'features')", "TRAINER.JOLT.FEATURES"
    plain, features = (
        trained("JOLT", data_root, tmp_path / value, *grant, value, "OPTIM.MAX_EPOCH", 2)
        for value in ("False", "True")
    )
    assert tuple(features.plan.step(0)) == (13, 8) and bill(tmp_path / "True")["training"] == {
        "queries": 78,
        "image_queries": 48,
    }
    moved = plain.learner.theta - plain.learner.space.origin
    assert (
        moved.norm() > 0
        and (features.learner.theta - plain.learner.theta).norm() < 0.02 * moved.norm()
    )


# Ablations


def test_the_ablations_are_runs_of_their_own_with_settings_that_exist(monkeypatch):
    monkeypatch.chdir(REPO)
    printed = subprocess.run(
        ["bash", "scripts/jolt/ablations.sh", "digits", "tiny", "16"],
        env={**os.environ, "DRY_RUN": "1", "SEEDS": "1", "TAG": "x"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    found = [train.setup_cfg(train.parse_args(shlex.split(line)[2:])) for line in printed]
    assert len({cfg.OUTPUT_DIR for cfg in found}) == len(found) > 12 and all(
        "16shots_x_" in cfg.OUTPUT_DIR for cfg in found
    )
    same = [
        [
            str({**cfg.TRAINER.JOLT}),
            cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
            cfg.ORACLE.MAX_QUERIES,
            cfg.ORACLE.TOP_K,
            cfg.ORACLE.PREC,
        ]
        for cfg in found
    ]
    assert all(same.count(settings) == 1 for settings in same)


# What does not go


@pytest.mark.parametrize(
    "options, words",
    [
        (("TRAINER.JOLT.DIRECTIONS", "7"), "DIRECTIONS is 7; a whole number from 8"),
        (
            ("TRAINER.JOLT.SPACE", "projection", "TRAINER.JOLT.DIM", "7"),
            "a space of 8 dimensions, not 7",
        ),
        (("TRAINER.JOLT.DAMPINGS", "()"), r"DAMPINGS is \(\)"),
        (("TRAINER.JOLT.DAMPING", "0.0"), "DAMPING is 0.0"),
        (("TRAINER.JOLT.DECAY", "-1.0"), "DECAY is -1.0"),
        (("TRAINER.JOLT.SPACE", "tokens"), "SPACE is 'tokens'; 'context' or"),
        (("TRAINER.JOLT.HEAD_WIDTH", "0"), "HEAD_WIDTH is 0"),
        (("TRAINER.JOLT.HEAD_FOLDS", "0"), "HEAD_FOLDS is 0"),
        (("TRAINER.JOLT.HEAD_STEPS", "0"), "HEAD_STEPS"),
        (("TRAINER.JOLT.HEAD_MEMORY", "0"), "HEAD_MEMORY"),
        (("TRAINER.JOLT.HEAD_DROPOUT", "1.0"), "HEAD_DROPOUT"),
    ],
)
def test_impossible_settings_are_sentences(options, words, data_root, tmp_path):
    with pytest.raises(BlackBoxError, match=words):
        build("JOLT", data_root, tmp_path, *options)
