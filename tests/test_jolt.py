"""JOLT's parts against their definitions: the step, the Jacobian, the memory, the head; prompt spaces crosswise; and what a service lets out."""

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.heads import CentredRefinement
from dassl_blackbox.trainers.blackbox.optimizers import RememberedJacobian, SubspaceGaussNewton
from dassl_blackbox.trainers.blackbox.optimizers.gaussnewton import softmax_model
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied, TopK
from dassl_blackbox.trainers.blackbox.prompts import LowRankSpace, RandomProjection, TokenSpace
from support import Random, bill, build, d64, seeded
from torch.autograd.functional import hessian, jacobian

d, B, C = 12, 7, 4
A, OFFSET = torch.randn(B, C, d, dtype=d64, generator=seeded(1)), torch.randn(B, C, dtype=d64, generator=seeded(2))
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
    optimizer = walk(SubspaceGaussNewton(torch.ones(d, dtype=d64), directions=5, decay=0.3, seed=5), 3)    # a step, and the first round of another
    optimizer.ask()
    Z, _ = optimizer.asked
    theta, damping = optimizer.theta.clone(), optimizer.damping
    optimizer.tell(linear(theta + optimizer.eps * Z), LABELS)

    def loss(a):
        x = theta + a @ Z
        return F.cross_entropy(linear(x[None])[0], LABELS) + 0.3 / 2 * (x - 1).square().sum()

    zero = torch.zeros(5, dtype=d64)
    H, g = hessian(loss, zero), jacobian(loss, zero)
    mu = (H - 0.3 * torch.eye(5)).diagonal().mean()
    for factor, proposal in zip((0.1, 1.0, 10.0), optimizer.proposals):
        step = torch.linalg.solve(H + factor * damping * mu * torch.eye(5), g)
        torch.testing.assert_close(proposal, theta - step @ Z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(Z @ Z.T, torch.eye(5, dtype=d64))


def test_a_proposal_must_be_better_on_the_next_images():
    optimizer = walk(SubspaceGaussNewton(torch.zeros(d, dtype=d64), directions=8), 2)
    before, damping = optimizer.theta.clone(), optimizer.damping
    worse = torch.zeros(4, B, C, dtype=d64)
    worse[0, range(B), LABELS] = 5.0    # theta is right about every one
    optimizer.ask()
    optimizer.tell(worse, LABELS)
    assert torch.equal(optimizer.theta, before) and optimizer.damping == 10 * damping
    optimizer.tell(linear(optimizer.ask()), LABELS)
    asked = optimizer.ask()
    optimizer.tell(worse[[1, 2, 3, 0]], LABELS)
    assert torch.equal(optimizer.theta, asked[3]) and not torch.equal(optimizer.theta, before)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-2])
def test_the_finite_difference_follows_curvature_and_noise(noise):
    """f = sin along every direction: the error of a slope is about eps / 2 + noise / eps, least at sqrt(2 noise)."""
    generator = seeded(6)

    def logits(theta):
        clean = torch.sin(linear(theta) + 1)
        return clean + noise * torch.randn(clean.shape, dtype=d64, generator=generator)

    eps = walk(SubspaceGaussNewton(torch.zeros(d, dtype=d64), directions=8), 2, logits).eps
    low, high = {0.0: (0, 2e-4), 1e-6: (1e-4, 1e-2), 1e-2: (3e-2, 1)}[noise]
    assert low < eps < high


def test_the_jacobian_of_the_embedded_model(data_root, tmp_path):
    trainer = build("JOLT", data_root, tmp_path, "TRAINER.JOLT.DIRECTIONS", "16", "TRAINER.JOLT.HEAD", "False")
    batch = next(iter(trainer.train_loader_x))
    trainer.forward_backward(batch)
    images, labels = trainer.examples(batch)
    optimizer = trainer.optim
    optimizer.tell(trainer.answer(images, trainer.space(optimizer.ask())), labels)
    optimizer.ask()
    Z, steps = optimizer.asked
    _, slopes = optimizer.slopes(trainer.answer(images, trainer.space(optimizer.theta + steps * Z)))
    local = trainer.oracle.inner
    image = local.features_of(images)

    def logits(a):
        context = trainer.space((optimizer.theta + a @ Z)[None]).contexts
        return local.scale * image @ local.text(context)[0].T

    exact = jacobian(logits, torch.zeros(len(Z))).permute(2, 0, 1)
    assert exact.abs().max() > 0.1 and (slopes - exact).norm() < 0.02 * exact.norm()


# Memory

@pytest.mark.parametrize("m", [3, 5])
def test_after_d_directions_the_whole_jacobian_is_remembered(m):
    optimizer = RememberedJacobian(torch.zeros(d, dtype=d64), directions=m)
    optimizer.eps = 0.1     # as if it were measured
    while optimizer.J is None or len(optimizer.basis):
        optimizer.proposals = optimizer.theta.expand(3, -1)     # so that it stays where it is
        walk(optimizer, 2)
    torch.testing.assert_close(optimizer.J, A.permute(2, 0, 1))
    assert optimizer.theta.abs().max() == 0


def test_moves_correct_what_is_remembered():
    optimizer = walk(RememberedJacobian(torch.zeros(d, dtype=d64), directions=4), 5)
    assert optimizer.best     # it moved
    move = optimizer.move
    torch.testing.assert_close(torch.tensordot(move, optimizer.J, 1), torch.einsum("bcd,d->bc", A, move))


def test_memory_needs_fewer_steps_than_forgetting():
    losses = []
    for kind in (SubspaceGaussNewton, RememberedJacobian):
        theta = walk(kind(torch.zeros(d, dtype=d64), directions=3, decay=1e-3), 2 * 12).theta
        losses.append(F.cross_entropy(linear(theta[None])[0], LABELS))
    assert losses[1] < 0.7 * losses[0]


def test_memory_reads_the_whole_training_set(data_root, tmp_path):
    options = "TRAINER.JOLT.MEMORY", "True", "TRAINER.JOLT.DIRECTIONS", "4", "TRAINER.JOLT.HEAD"
    with pytest.raises(BlackBoxError, match="set TRAINER.JOLT.HEAD False"):
        build("JOLT", data_root, tmp_path / "head", *options, "True")
    lives = [(tmp_path / name, budget) for name, budget in (("two lives", 24), ("two lives", 48), ("one life", 48))]
    for out, budget in lives:
        trainer = build("JOLT", data_root, out, *options, "False", "ORACLE.MAX_QUERIES", budget)
        trainer.train()
        assert bill(out)["training"] == {"queries": budget, "image_queries": 30 * budget}
        lives = [*lives, trainer.learner.theta]
    assert torch.equal(lives[-1], lives[-2]) and not torch.equal(lives[-1], lives[-3])


# The head

def test_the_head_begins_by_changing_nothing_and_does_not_see_what_all_classes_share():
    head, logits = CentredRefinement(3, 8, 5), torch.randn(4, 3, generator=seeded(7))
    assert torch.equal(head(logits), logits)
    torch.nn.init.normal_(head.mlp[-1].weight, generator=seeded(8))
    torch.testing.assert_close(head(logits + 7.0), head(logits) + 7.0)


def test_the_head_remembers_the_latest():
    head, rows = CentredRefinement(3, 8, 5, 0.0), torch.arange(24.0).view(8, 3)
    for part, labels in ((rows[:3], [0, 1, 2]), (rows[3:7], [2, 1, 0, 1])):
        head.remember(part, torch.tensor(labels))
        kept = rows[:3] if len(labels) == 3 else rows[2:7]
        given = [0, 1, 2] if len(labels) == 3 else [2, 2, 1, 0, 1]
        assert head.loss() == F.cross_entropy(kept, torch.tensor(given))


def test_the_prompt_is_tuned_through_the_head_and_the_head_costs_no_query(data_root, tmp_path):
    both, alone = (build("JOLT", data_root, tmp_path / head, "TRAINER.JOLT.HEAD", head, "ORACLE.MAX_QUERIES", 8 * 6) for head in ("True", "False"))
    assert both.step_cost() == alone.step_cost() == (8, 64)
    both.train(), alone.train()
    assert bill(tmp_path / "True")["training"] == bill(tmp_path / "False")["training"] == {"queries": 48, "image_queries": 384}
    assert not torch.equal(both.learner.theta, alone.learner.theta) and both.head.seen == 20


def test_dropout_is_drawn_from_the_checkpoint_alone():
    heads = [CentredRefinement(3, 64, 5) for _ in range(2)]
    for head in heads:
        torch.nn.init.normal_(head.mlp[-1].weight)
        head.remember(torch.randn(4, 3), torch.tensor([0, 1, 2, 1]))
    heads[1].load_state_dict(heads[0].state_dict())
    state = torch.get_rng_state()
    losses = [[head.loss().item() for _ in range(3)] for head in heads]
    assert losses[0] == losses[1] and len(set(losses[0])) == 3
    assert torch.equal(torch.get_rng_state(), state)


# Features

def trained(*args):
    trainer = build("JOLT", *args)
    trainer.train()
    return trainer


def test_features_give_the_same_run_for_fewer_image_queries(data_root, tmp_path):
    with pytest.raises(AccessDenied, match="JOLT asked for 'features'"):
        build("JOLT", data_root, tmp_path, "TRAINER.JOLT.FEATURES", "True")
    grant = "ORACLE.GRANTS", "('logits', 'features')", "TRAINER.JOLT.FEATURES"
    plain, features = (trained(data_root, tmp_path / value, *grant, value, "OPTIM.MAX_EPOCH", 2) for value in ("False", "True"))
    assert features.step_cost() == (9, 8) and bill(tmp_path / "True")["training"] == {"queries": 54, "image_queries": 48}
    moved = plain.learner.theta - plain.learner.space.origin
    assert moved.norm() > 0 and (features.learner.theta - plain.learner.theta).norm() < 0.02 * moved.norm()


# Spaces

@pytest.mark.parametrize("name", ["ZIP", "CBBT", "CraFT", "JOLT"])
@pytest.mark.parametrize("space, kind", [("context", TokenSpace), ("lowrank", LowRankSpace), ("projection", RandomProjection)])
def test_every_space_with_every_method(name, space, kind, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, f"TRAINER.{name.upper()}.SPACE", space, f"TRAINER.{name.upper()}.CTX_INIT", "a photo of a")
    assert type(trainer.space) is kind
    trainer.forward_backward(trainer.upload_set() if trainer.whole_set else next(iter(trainer.train_loader_x)))


# What a service lets out

def test_all_log_probabilities_are_as_good_as_logits(data_root, tmp_path):
    runs = [trained(data_root, tmp_path / str(k), "ORACLE.TOP_K", k, "OPTIM.MAX_EPOCH", 2) for k in (0, 10)]
    moved = runs[0].learner.theta - runs[0].learner.space.origin
    assert moved.norm() > 0 and (runs[1].learner.theta - runs[0].learner.theta).norm() < 0.02 * moved.norm()


def test_top_k_by_hand():
    inner = Random()
    inner.query = lambda *args: torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None, None]
    torch.testing.assert_close(TopK(inner, 2).query(None, None), torch.tensor([[[0.5, 0.3, 0.1, 0.1]]]).log())
    torch.testing.assert_close(TopK(inner, 9).query(None, None), inner.query())


def test_top_k_of_a_model_that_is_sure_stays_finite():
    inner = Random()
    inner.query = lambda *args: torch.tensor([[[200.0, 0, 0, 0]]])
    assert torch.isfinite(TopK(inner, 1).query(None, None)).all()


# What does not go

@pytest.mark.parametrize("options, words", [
    (("TRAINER.JOLT.DIRECTIONS", "1"), "DIRECTIONS is 1; two or more"), (("TRAINER.JOLT.DAMPINGS", "()"), "a positive factor or more in DAMPINGS"),
    (("TRAINER.JOLT.DAMPING", "0.0"), "a positive DAMPING"), (("TRAINER.JOLT.DECAY", "-1.0"), "a DECAY of 0 or more"),
    (("TRAINER.JOLT.SPACE", "tokens"), "Unknown prompt space"), (("TRAINER.JOLT.HEAD_WIDTH", "0"), "A head of width 0"),
    (("ORACLE.TOP_K", "-1"), "ORACLE.TOP_K is -1"), (("TRAINER.JOLT.HEAD_STEPS", "0"), "HEAD_STEPS"), (("TRAINER.JOLT.HEAD_MEMORY", "0"), "HEAD_MEMORY"),
])
def test_impossible_settings_are_sentences(options, words, data_root, tmp_path):
    with pytest.raises(BlackBoxError, match=words):
        build("JOLT", data_root, tmp_path, *options)
