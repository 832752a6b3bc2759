"""CBBT, CraFT and BPT-VLM equal their definitions, cost what they should on a data set whose last
batch is partial, and take any prompt space.
"""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from dassl_blackbox.trainers.blackbox.data import cutout
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied
from dassl_blackbox.trainers.blackbox.prompts import LowRankSpace, RandomProjection, TokenSpace
from dassl_blackbox.trainers.bptvlm import TwoProjections
from dassl_blackbox.trainers.cbbt import FeatureAdapter
from dassl_blackbox.trainers.craft import PredictionRefinement, divergence
from PIL import Image
from support import OPTIMIZERS, bill, build, quadratic

CMAES, RandomDirections = OPTIMIZERS["CMAES"], OPTIMIZERS["RandomDirections"]

# CBBT


def test_random_directions_estimate():
    """On f = x'Ax/2 + b'x a difference is exactly eps u'g + eps^2 u'Au/2; E[u u'] = I/d for unit u,
    and odd moments vanish.
    """
    d, q = 6, 200_000
    f, gradient_at = quadratic(d)
    theta = torch.linspace(-1, 1, d, dtype=torch.float64)
    optimizer = RandomDirections(theta, q=q, seed=3)
    assert optimizer.eps == 1 / d
    candidates = optimizer.ask()
    u = optimizer.u
    assert candidates.shape == (q + 1, d) and torch.equal(candidates[0], theta)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(q, dtype=torch.float64))
    gradient = gradient_at(theta)
    slopes = u @ gradient + optimizer.eps * 0.5 * (u * (gradient_at(u) - gradient_at(0 * u))).sum(1)
    exact = (u * slopes[:, None]).mean(0) / optimizer.eps
    estimate = optimizer.estimate(f(candidates))
    torch.testing.assert_close(estimate, exact, rtol=1e-6, atol=1e-8)
    # (1 / eps) E[u u'] g = d g / d
    torch.testing.assert_close(estimate, gradient, rtol=0, atol=0.05 * gradient.norm().item())


@pytest.mark.parametrize("d, eps", [(512, 1 / 512), (1000, 0.001), (4096, 0.001)])
def test_smoothing(d, eps):
    assert RandomDirections(torch.zeros(d), q=2).eps == pytest.approx(eps)


def test_direction_step_is_adam_on_the_clipped_estimate():
    theta = torch.tensor([1.0, -2.0, 0.5])
    optimizer = RandomDirections(theta, q=4, clip=0.5, lr=0.1, weight_decay=0.01, seed=1)
    reference = theta.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        losses = (optimizer.ask() ** 2).sum(1) * 100
        g = optimizer.estimate(losses)
        assert g.norm() > 0.5
        reference.grad = g * 0.5 / g.norm()
        adam.step()
        optimizer.tell(losses)
        torch.testing.assert_close(optimizer.theta, reference.detach())
    torch.testing.assert_close(
        theta, torch.tensor([1.0, -2.0, 0.5])
    )  # the start is not changed in place


def test_token_space_is_the_context():
    start = torch.randn(2, 5)
    space = TokenSpace(start)
    assert torch.equal(space(space.origin[None]).contexts[0], start)


def test_adapter_is_off_until_it_is_active():
    adapter = FeatureAdapter(8, 2, 25.0, 0.2)
    f = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    text = torch.randn(2, 4, 8)
    assert torch.equal(adapter(f, text), 25.0 * f @ text.mT)
    adapter.active.fill_(True)
    mixed = 0.2 * adapter.mlp(f) + 0.8 * f
    mixed = mixed / mixed.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(adapter(f, text), 25.0 * mixed @ text.mT)


def test_adapter_trains_from_its_epoch_on_and_is_evaluated(data_root, tmp_path):
    grants = (
        "ORACLE.GRANTS",
        "('contexts', 'logits', 'features')",
        "TRAINER.CBBT.ADAPTER",
        "True",
        "TRAINER.CBBT.ADAPTER_EPOCH",
        "1",
        "ORACLE.MAX_QUERIES",
        "0",
        "OPTIM.LR",
        "0.01",
        "OPTIM.MAX_EPOCH",
    )
    alone = build("CBBT", data_root, tmp_path / "a", *grants, "1")
    alone.train()
    assert not alone.head.active
    both = build("CBBT", data_root, tmp_path / "b", *grants, "2")
    first = [p.detach().clone() for p in both.head.parameters()]
    both.train()
    assert both.head.active and any(
        not torch.equal(a, b) for a, b in zip(first, both.head.parameters())
    )
    queries, images = both.plan.step(0)
    assert (queries, images) == (both.optim.q + 2, 8)
    assert bill(tmp_path / "b")["training"] == {"queries": 6 * queries, "image_queries": 6 * images}


def test_half_of_the_images_are_cut_out_instead_of_cropped(data_root, tmp_path):
    """The published transform: a crop, or the whole picture less a rectangle of one colour."""
    picture = Image.new("RGB", (50, 30), (1, 2, 3))
    random.seed(0)
    for _ in range(50):
        changed = np.asarray(cutout(picture, 0.4)) != (1, 2, 3)
        rows, columns = (np.flatnonzero(changed.any(2).any(axis)) for axis in (1, 0))
        assert 1 <= len(rows) <= 13 and 1 <= len(columns) <= 21
        assert changed.any(2)[np.ix_(rows, columns)].all()
        assert len(rows) == np.ptp(rows) + 1 and len(columns) == np.ptp(columns) + 1
    assert (np.asarray(picture) == (1, 2, 3)).all()  # a copy is painted on
    published = build("CBBT", data_root, tmp_path / "a")
    steps = published.train_loader_x.dataset.transform.transforms
    (choice,) = [step for step in steps if isinstance(step, T.RandomChoice)]
    assert isinstance(choice.transforms[0], T.RandomResizedCrop)
    assert choice.transforms[1].transforms[1].keywords == {"share": 0.4}
    plain = build("CBBT", data_root, tmp_path / "b", "TRAINER.CBBT.CUTOUT", "0")
    kinds = [type(step) for step in plain.train_loader_x.dataset.transform.transforms]
    assert T.RandomResizedCrop in kinds and T.RandomChoice not in kinds


@pytest.mark.parametrize("name, switch", [("CBBT", "ADAPTER"), ("JOLT", "FEATURES")])
def test_features_of_more_images_than_a_query_takes(name, switch, data_root, tmp_path):
    """160 images are two queries where their features come back, and the texts' features are one a
    candidate all the same.
    """
    trainer = build(
        name,
        data_root,
        tmp_path,
        "ORACLE.GRANTS",
        "('contexts', 'logits', 'features')",
        f"TRAINER.{name}.{switch}",
        "True",
        "DATASET.NUM_SHOTS",
        16,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        160,
        "OPTIM.MAX_EPOCH",
        1,
    )
    trainer.train()
    queries, images = trainer.plan.step(0)
    assert (queries, images) == (trainer.optim.population + 2, 160)
    assert bill(tmp_path)["training"] == {"queries": queries, "image_queries": images}


# CraFT


def test_random_projection():
    start, generator = torch.randn(3, 40), torch.Generator().manual_seed(0)
    space = RandomProjection(start, 50, 0.2, generator)
    assert torch.equal(space(space.origin[None]).contexts[0], start)
    z = torch.randn(4, 50)
    expected = torch.stack([start + (space.A @ row).view(3, 40) for row in z])
    torch.testing.assert_close(space(z).contexts, expected)
    assert space.A.std().item() == pytest.approx(0.2, rel=0.05)


def test_divergence_by_hand():
    """KL((1/2, 1/2) ‖ (1/4, 3/4)) = ln(2)/2 + ln(2/3)/2."""
    p, q = torch.tensor([0.0, 0.0]), torch.tensor([0.0, math.log(3)])
    assert divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_craft_losses_by_hand(data_root, tmp_path):
    """Two classes; the head is made to add (0, ln 3), so that raw (0, 0) becomes probabilities
    (1/4, 3/4).
    """
    trainer = build("CraFT", data_root, tmp_path, "TRAINER.CRAFT.LAMBDA", "0.1")
    teacher = trainer.recipe.teacher
    teacher.head = head = PredictionRefinement(2, 4)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        head.mlp[2].bias.copy_(torch.tensor([0.0, math.log(3)]))
    raw, labels = torch.zeros(1, 2, 2), torch.tensor([0, 1])
    # fitness: CE(raw) = ln 2; KL(refined ‖ raw) = ln(1/2)/4 + 3 ln(3/2)/4
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert trainer.recipe.fitness(raw, labels).item() == pytest.approx(math.log(2) + 0.1 * kl)
    # head: CE(refined) = (ln 4 + ln(4/3)) / 2; KL(raw ‖ refined) = ln(2)/2 + ln(2/3)/2, on in the
    # first part of the budget alone
    ce, kl = 0.5 * math.log(4) + 0.5 * math.log(4 / 3), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    for steps_done, expected in ((0, ce + 0.1 * kl), (49, ce + 0.1 * kl), (50, ce)):
        teacher.begin(0, steps_done, 200)
        teacher.read(raw[0], labels)  # whose steps are the other head's
        assert teacher.last == pytest.approx(expected)


# BPT-VLM


def node(d_image, sigma):
    return SimpleNamespace(N_IMAGE=5, DIM_TEXT=500, DIM_IMAGE=d_image, SIGMA=sigma)


def test_two_projections_have_the_published_moments(data_root, tmp_path):
    description = build("BPTVLM", data_root, tmp_path).oracle.description
    start, generator = torch.zeros(8, description.width), torch.Generator().manual_seed(0)
    space = TwoProjections(description, start, node(400, 0.5), generator)
    assert space.A_text.mean().item() == pytest.approx(0, abs=1e-3 * description.token_std)
    assert space.A_text.std().item() == pytest.approx(
        description.token_std / (math.sqrt(500) * 0.5), rel=0.02
    )
    std = description.patch_std * math.sqrt(3072 / 400) * 0.5
    assert space.A_image.mean().item() == pytest.approx(
        description.patch_mean * 3072 / 400, abs=0.01 * std
    )
    assert space.A_image.std().item() == pytest.approx(std, rel=0.02)
    z = torch.randn(3, 900, generator=generator)
    prompt = space(z)
    torch.testing.assert_close(prompt.contexts[1], (space.A_text @ z[1, :500]).view(8, -1))
    torch.testing.assert_close(prompt.image_tokens[2], (space.A_image @ z[2, 500:]).view(5, -1))
    assert space(space.origin[None]).image_tokens.abs().max() == 0


def test_no_image_tokens_need_no_grant(data_root, tmp_path):
    with pytest.raises(AccessDenied, match="BPTVLM asked for 'image_tokens'"):
        build("BPTVLM", data_root, tmp_path, "ORACLE.GRANTS", "('contexts', 'logits')")
    trainer = build(
        "BPTVLM",
        data_root,
        tmp_path,
        "ORACLE.GRANTS",
        "('contexts', 'logits')",
        "TRAINER.BPTVLM.N_IMAGE",
        "0",
    )
    assert trainer.learner().image_tokens is None


def test_focal_loss_by_hand(data_root, tmp_path):
    trainer = build("BPTVLM", data_root, tmp_path, "TRAINER.BPTVLM.LOSS", "focal")
    logits = torch.log(torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))
    expected = (0.75**2 * math.log(4) + 0.5**2 * math.log(2)) / 2
    assert trainer.recipe.fitness(logits, torch.tensor([0, 1])).item() == pytest.approx(expected)


def test_best_so_far_is_what_is_used(data_root, tmp_path):
    trainer = build("BPTVLM", data_root, tmp_path, "ORACLE.MAX_QUERIES", "30")
    told, tell, ask = [], trainer.optim.tell, trainer.optim.ask

    def record():
        told.append(ask())
        return told[-1]

    losses = []
    trainer.optim.ask, trainer.optim.tell = (
        record,
        lambda values: (losses.append(values.clone()), tell(values)),
    )
    trainer.train()
    assert len(losses) == 5
    best = int(torch.cat(losses).argmin())
    torch.testing.assert_close(trainer.learner.theta, torch.cat(told)[best])


# CMA-ES


def test_cmaes_minimises_and_leaves_numpy_alone():
    np.random.seed(5)
    expected = np.random.RandomState(5).rand(3)
    optimizer = CMAES(torch.full((6,), 2.0), population=12, seed=1)
    for _ in range(60):
        candidates = optimizer.ask()
        optimizer.tell((candidates**2).sum(1))
    assert (optimizer.theta**2).sum() < 1e-4
    assert np.array_equal(np.random.rand(3), expected)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "vd", "vkd"])
def test_covariance_models_and_bounds(covariance):
    optimizer = CMAES(torch.zeros(30), bound=0.8, covariance=covariance, result="best")
    first = None
    for _ in range(30):
        candidates = optimizer.ask()
        assert candidates.abs().max() <= 0.8
        losses = ((candidates - 2) ** 2).sum(1)
        first = losses.min() if first is None else first
        optimizer.tell(losses)
    assert optimizer.best_loss < 0.9 * first
    assert ((optimizer.theta - 2) ** 2).sum().item() == pytest.approx(optimizer.best_loss, rel=1e-5)


# Costs, as the meter counts them


@pytest.mark.parametrize(
    "name, per_step, images",
    [
        ("CBBT", 257, 257 * 128),  # one mini-batch of 128
        # 160 images are two batches, the second of 32; the head's batch of 256 takes them at once:
        # 2 queries
        ("CraFT", 40 * 2 + 2, 40 * 160 + 160),
        ("BPTVLM", 30 * 2, 30 * 160),
    ],
)
def test_published_costs_with_a_partial_last_batch(name, per_step, images, data_root, tmp_path):
    # SMALL's own options come first, so these win
    options = (
        "DATASET.NUM_SHOTS",
        "16",
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        "128",
        "DATALOADER.TEST.BATCH_SIZE",
        "128",
        "TEST.NO_TEST",
        "True",
        "TRAINER.CBBT.Q",
        "256",
        "TRAINER.CRAFT.POPULATION",
        "40",
        "TRAINER.CRAFT.HEAD_BATCH",
        "256",
        "TRAINER.BPTVLM.POPULATION",
        "30",
        "ORACLE.MAX_QUERIES",
        str(per_step + per_step // 2),
    )
    trainer = build(name, data_root, tmp_path, *options)
    trainer.train()
    assert bill(tmp_path)["training"] == {"queries": per_step, "image_queries": images}


# Prompt spaces


@pytest.mark.parametrize("name", ["ZIP", "CBBT", "CraFT", "JOLT"])
@pytest.mark.parametrize(
    "space, kind",
    [("context", TokenSpace), ("lowrank", LowRankSpace), ("projection", RandomProjection)],
)
def test_every_space_with_every_method(name, space, kind, data_root, tmp_path):
    trainer = build(
        name,
        data_root,
        tmp_path,
        f"TRAINER.{name.upper()}.SPACE",
        space,
        f"TRAINER.{name.upper()}.CTX_INIT",
        "a photo of a",
    )
    assert type(trainer.space) is kind
    trainer.prepare()
    whole_set = trainer.recipe.whole_set
    trainer.forward_backward(next(iter(trainer.batches if whole_set else trainer.train_loader_x)))


# What bad input gets


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("CBBT", ("TRAINER.CBBT.Q", "0"), "TRAINER.CBBT.Q is 0"),
        ("CBBT", ("TRAINER.CBBT.ADAPTER", "True"), "CBBT asked for 'features'"),
        (
            "CBBT",
            (
                "TRAINER.CBBT.ADAPTER",
                "True",
                "ORACLE.GRANTS",
                "('contexts', 'logits', 'features')",
                "TRAINER.CBBT.ADAPTER_WIDTH",
                "0.0",
            ),
            "TRAINER.CBBT.ADAPTER_WIDTH is 0.0",
        ),
        ("CraFT", ("TRAINER.CRAFT.HEAD_WIDTH", "0"), "TRAINER.CRAFT.HEAD_WIDTH is 0"),
        (
            "CraFT",
            ("TRAINER.CRAFT.CMA_OPTIONS", "['CMA_actve', 1]"),
            "CMA_actve is not a valid option",
        ),
        ("CraFT", ("TRAINER.CRAFT.CMA_OPTIONS", "['CMA_active']"), "a list of pairs"),
        ("CraFT", ("TRAINER.CRAFT.COVARIANCE", "fulll"), "'full' or"),
        ("BPTVLM", ("TRAINER.BPTVLM.POPULATION", "1"), "POPULATION is 1; a whole number from 2"),
        ("BPTVLM", ("TRAINER.BPTVLM.LOSS", "mse"), "TRAINER.BPTVLM.LOSS"),
    ],
)
def test_bad_settings_are_sentences(name, options, sentence, data_root, tmp_path):
    with pytest.raises(BlackBoxError, match=sentence):
        build(name, data_root, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_bounds_that_exclude_the_start():
    with pytest.raises(BlackBoxError, match="within the given bounds.* Check BOUND"):
        CMAES(torch.full((3,), 6.0), bound=5.0)


def test_population_larger_than_the_budget(data_root, tmp_path):
    trainer = build(
        "BPTVLM", data_root, tmp_path, "TRAINER.BPTVLM.POPULATION", "50", "ORACLE.MAX_QUERIES", "49"
    )
    with pytest.raises(BlackBoxError, match="0 of 49 queries are used, the next request costs 50"):
        trainer.train()


def test_a_convolutional_tower_admits_no_image_tokens(data_root, tmp_path):
    description = build("ZIP", data_root, tmp_path).oracle.description
    model = replace(description, image_width=None)
    with pytest.raises(BlackBoxError, match="takes no image tokens"):
        TwoProjections(model, torch.zeros(2, 4), node(10, 1.0), torch.Generator())
