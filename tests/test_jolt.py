"""JOLT against its definitions: step, Jacobian, cross-fitted head; ORACLE.TOP_K by hand."""

import math
import os
import shlex
import subprocess
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import train
from dassl_blackbox.trainers.blackbox.heads.selection import folds_of
from dassl_blackbox.trainers.blackbox.optimizers import SubspaceGaussNewton
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied, Prompt, TopK
from dassl_blackbox.trainers.blackbox.search import Answer
from dassl_blackbox.trainers.jolt import CrossFitted, HeadLearner
from support import REPO, Random, assert_same, bill, build, d64, defaults, own, seeded, trained
from torch.autograd.functional import hessian, jacobian

d, B, C = 24, 7, 4
A = torch.randn(B, C, d, dtype=d64, generator=seeded(1))
OFFSET = torch.randn(B, C, dtype=d64, generator=seeded(2))
LABELS = torch.randint(C, (B,), generator=seeded(3))
close = torch.testing.assert_close


def linear(theta):
    """Logits `[P, B, C]` that are linear in theta `[P, d]`."""
    return torch.einsum("bcd,pd->pbc", A, theta) + OFFSET


def walk(optimizer, rounds, logits=linear):
    for _ in range(rounds):
        optimizer.tell(logits(optimizer.ask()), LABELS)
    return optimizer


def walked(rounds, logits=linear, start=0.0, **settings):
    """The optimiser after so many rounds, two a step."""
    theta = torch.full((d,), start, dtype=d64)
    return walk(SubspaceGaussNewton(theta, directions=8, **settings), rounds, logits)


def test_proposals_are_damped_newton_steps_in_the_subspace():
    optimizer = walked(3, start=1.0, decay=0.3, seed=5)  # a step, and the first round of another
    move = optimizer.move = torch.randn(d, dtype=d64, generator=seeded(9))
    optimizer.ask()
    Z, _ = optimizer.asked
    close(Z.T @ (Z @ move), move)  # the last move is one of the directions
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
        close(proposal, theta - step @ Z, rtol=1e-7, atol=1e-7)
    close(Z @ Z.T, torch.eye(8, dtype=d64))


def test_the_damping_goes_up_where_no_proposal_was_better_and_stays_within_bounds():
    optimizer, dampings = walked(2, dampings=(0.1,)), []
    for right in (0, 0, 0, 0, 1, 1):
        answers = torch.zeros(2, B, C, dtype=d64)
        answers[right, range(B), LABELS] = 50.0
        asked = optimizer.ask()
        optimizer.tell(answers, LABELS)
        assert torch.equal(optimizer.theta, asked[right])  # on images that it was not made from
        dampings.append(optimizer.damping)
        walk(optimizer, 1)
    assert dampings == pytest.approx([10, 100, 1000, 1000, 100, 10])


@pytest.mark.parametrize("noise, low, high", [(0, 0, 2e-4), (1e-6, 1e-4, 1e-2), (1e-2, 3e-2, 1)])
def test_the_finite_difference_follows_curvature_and_noise(noise, low, high):
    # f = sin: the error of a slope is about eps / 2 + noise / eps, least at sqrt(2 noise)
    generator = seeded(6)

    def logits(theta):
        clean = torch.sin(linear(theta) + 1)
        return clean + noise * torch.randn(clean.shape, dtype=d64, generator=generator)

    assert low < walked(2, logits).eps < high


def test_answers_that_are_rounded_do_not_agree_on_nothing():
    # which do not move under the smallest steps; slopes of zero agree, and mean nothing
    assert walked(2, lambda theta: (linear(theta) * 2).round() / 2).eps >= 0.1


def test_a_state_between_two_rounds_is_that_of_the_steps_beginning():
    # a service's budget may end a step in its midst; the run that goes on begins it anew
    optimizer = walked(2, start=1.0, seed=5)
    begun = deepcopy(optimizer.state_dict())
    walk(optimizer, 1)
    assert not torch.equal(optimizer.theta, begun["theta"])  # it moved, and would be saved moved
    assert_same(optimizer.state_dict(), begun)
    fresh = walked(0)
    fresh.load_state_dict(begun)
    walk(fresh, 2)
    walk(optimizer, 1)
    assert_same(fresh.state_dict(), optimizer.state_dict())


ROWS = torch.randn(40, 3, generator=seeded(9))
CLASSES = torch.randint(3, (40,), generator=seeded(10))
LISTED = [SimpleNamespace(label=c, impath=n) for n, c in enumerate(CLASSES.tolist())]
FOLDS = folds_of(LISTED, 4)


def test_folds_are_even_over_the_images_of_a_class_and_over_all():
    assert torch.equal(folds_of(3 * LISTED, 4), FOLDS.repeat(3))  # some sets list a picture often
    for part, most in ((FOLDS, 2), *((FOLDS[CLASSES == c], 1) for c in range(3))):
        assert part.bincount(minlength=4).max() - part.bincount(minlength=4).min() <= most


def learner(rows=ROWS, labels=CLASSES):
    """Of a head that always begins with the same weights, and was shown some rows."""
    node, index = defaults().TRAINER.JOLT, torch.arange(len(rows))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        made = HeadLearner(CrossFitted(3, node.HEAD_WIDTH, 4), FOLDS, node)
    made.see(Answer(rows[None], labels[index], index), 0)
    return made


def test_an_image_is_refined_by_the_mlp_that_learned_nothing_from_it():
    one = learner()  # of the other the images of fold 2 show something else
    other = learner(labels=torch.where(FOLDS == 2, (CLASSES + 1) % 3, CLASSES))
    for each in (one, other):
        each.learn()
        each.head.trust.fill_(0.5)
    a, b = one.head(ROWS, FOLDS), other.head(ROWS, FOLDS)
    assert torch.equal(a[FOLDS == 2], b[FOLDS == 2])
    assert all((a[FOLDS == k] != b[FOLDS == k]).all() for k in (0, 1, 3))
    close(one.head(torch.stack([ROWS, ROWS + 1]), FOLDS)[1], a + 1)  # candidates
    centred = ROWS - ROWS.mean(-1, keepdim=True)
    mean = torch.stack([part(centred) for part in one.head.mlps]).mean(0)
    close(one.head(ROWS), ROWS + 0.5 * mean)  # a new image: all of them


def test_the_head_learns_raw_answers_and_the_optimiser_refined_ones(data_root, tmp_path):
    # it costs no query, sees the winner's logits, and refines by the MLP that saw no such image
    options = "ORACLE.MAX_QUERIES", 12 * 6
    alone = build("JOLT", data_root, tmp_path / "a", *options, *own("JOLT", HEAD=False))
    trainer = build("JOLT", data_root, tmp_path / "b", *options)
    assert trainer.plan == alone.plan and tuple(trainer.plan.step(0)) == (12, 96)
    for part in trainer.head.mlps:
        torch.nn.init.normal_(part[-1].weight)
    trainer.head.trust.fill_(0.5)
    batch = next(iter(trainer.train_loader_x))
    raw, told, winners = [], [], []
    query, tell, see = trainer.oracle.query, trainer.optim.tell, trainer.teacher.see
    trainer.teacher.see = lambda answer, number: winners.append(number) or see(answer, number)
    trainer.oracle.query = lambda *args: raw.append(query(*args)) or raw[-1]
    trainer.optim.tell = lambda logits, labels: told.append(logits) or tell(logits, labels)
    folds = trainer.teacher.folds[batch["index"]]
    assert len(folds.unique()) > 1
    for _ in range(6):
        refine = deepcopy(trainer.head)
        trainer.forward_backward(batch)
        with torch.no_grad():
            for answer, refined in zip(raw[-2:], told[-2:]):
                close(refined, torch.stack([refine(part, folds) for part in answer]))
        logits, labels, seen = trainer.teacher.state["memory"]
        assert torch.equal(logits[-8:], raw[-2][winners[-1]]) and torch.equal(seen[-8:], folds)
    assert any(winners) and len(labels) == 20


def test_features_give_the_same_run_for_fewer_image_queries(data_root, tmp_path):
    granted = "ORACLE.GRANTS", "('contexts', 'logits', 'features')", "OPTIM.MAX_EPOCH", 2
    options = *granted, *own("JOLT", FEATURES=True)
    plain = trained("JOLT", data_root, tmp_path / "plain", *granted)
    features = trained("JOLT", data_root, tmp_path / "features", *options)
    assert tuple(features.plan.step(0)) == (13, 8)
    assert bill(tmp_path / "features")["training"] == {"queries": 78, "image_queries": 48}
    moved = plain.learner.theta - plain.learner.space.origin
    assert 50 * (features.learner.theta - plain.learner.theta).norm() < moved.norm()
    with pytest.raises(AccessDenied, match="does not grant"):
        build("JOLT", data_root, tmp_path, "ORACLE.TOP_K", 3, *options)


@pytest.mark.parametrize("margin", [5.0, 16.0, 20.0, 30.0, 200.0])
def test_what_a_sure_model_leaves_is_exact_and_finite(margin):
    inner = Random()
    inner.query = lambda *args: torch.tensor([[[margin, 0, 0, 0]]])
    answer = TopK(inner, 1).query(None, Prompt())[0, 0]
    assert answer[1].item() == pytest.approx(-min(margin, 36 + math.log(3)), abs=0.03)


def test_top_k_by_hand():
    inner = Random()
    inner.query = lambda *args: torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None, None]
    wanted = torch.tensor([[[0.5, 0.3, 0.1, 0.1]]]).log()
    close(TopK(inner, 2).query(None, Prompt()), wanted)
    close(TopK(inner, 9).query(None, Prompt()), inner.query())


def test_the_ablations_are_runs_of_their_own_with_settings_that_exist(monkeypatch):
    monkeypatch.chdir(REPO)
    env = {**os.environ, "DRY_RUN": "1", "SEEDS": "1", "TAG": "x"}
    line = "bash", "scripts/jolt/ablations.sh", "digits", "tiny", "16"
    lines = subprocess.check_output(line, env=env, text=True).splitlines()
    found = [train.setup_cfg(train.parse_args(shlex.split(line)[2:])) for line in lines]
    folders = {cfg.OUTPUT_DIR for cfg in found}
    assert len(folders) == len(found) > 12 and all("16shots_x_" in name for name in folders)
    settings = {cfg.dump().replace(cfg.OUTPUT_DIR, "") for cfg in found}
    assert len(settings) == len(found)
