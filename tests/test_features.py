"""Methods that read features once: their closed forms, losses, choices, costs, and resuming."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from dassl.data.datasets import DATASET_REGISTRY
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.heads.selection import (
    FeatureHead,
    blended,
    choose,
    discriminant,
    mapped,
    minibatches,
    spread,
)
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied
from dassl_blackbox.trainers.blackbox.probe import Answers, Gathered, descend
from dassl_blackbox.trainers.lfa import procrustes, reranking
from dassl_blackbox.trainers.tipadapter import TUNING_ALPHA, logits
from support import assert_same, bill, seeded, test_logits
from support import build as build_small

FEATURED = ["GDA", "CLAP", "TipAdapterF", "LFA", "RLA"]
featured = pytest.mark.parametrize("name", FEATURED)
N, C, E, SCALE = 40, 4, 6, 25.0


def build(name, root, out, *options):
    """A trainer of two views beside the image."""
    return build_small(name, root, out, f"TRAINER.{name.upper()}.VIEWS", 2, *options)


def trained(*args):
    trainer = build(*args)
    trainer.train()
    return trainer


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=seeded(seed)), dim=-1)


X, T = unit(N, E, seed=1), unit(C, E, seed=2)
LABELS = torch.arange(N) % C
# ten images in four views, the second half of the fourth not paid for
GATHERED = Gathered(X[:35], LABELS[:35] * 0, torch.arange(35) % 10, T)


# Heads


@featured
def test_a_head_begins_as_zero_shot(name, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path)
    head, model = trainer.head, trainer.description
    image, text = unit(5, model.embed_dim, seed=1), unit(10, model.embed_dim, seed=2)
    torch.testing.assert_close(head(image, text), model.logit_scale * image @ text.T)


def test_a_cache_is_tip_adapters_logits_by_hand():
    keys, values = torch.cat([X, 0 * X[:1]]), torch.cat([F.one_hot(LABELS, C), torch.zeros(1, C)])
    found = logits(SCALE, X[:5], T, torch.tensor(3.0), keys=keys, values=values, beta=2.5)
    expected = torch.zeros(5, C)
    for i in range(5):
        for c in range(C):
            expected[i, c] = SCALE * X[i] @ T[c]
            for n in range(N):
                if LABELS[n] == c:
                    expected[i, c] += 3.0 * math.exp(-2.5 * (1 - float(X[i] @ X[n])))
    torch.testing.assert_close(found, expected)


def test_a_key_is_the_mean_direction_of_an_images_views(data_root, tmp_path):
    trainer = trained("TipAdapterF", data_root, tmp_path, "TRAINER.TIPADAPTERF.FINETUNE", False)
    answers = trainer.answers.gathered()
    for n in range(30):
        mean = answers.rows[answers.index == n].mean(0)
        torch.testing.assert_close(trainer.head.keys[n], mean / mean.norm())
    labels = torch.tensor([item.label for item in trainer.dm.dataset.train_x])
    assert torch.equal(trainer.head.values, F.one_hot(labels, 10).float())


# GDA


def test_the_discriminant_is_the_papers_by_an_explicit_inverse():
    weight, bias = discriminant(X, LABELS, C)
    x = X.double()
    means = [x[LABELS == c].mean(0) for c in range(C)]
    residuals = torch.stack([row - means[label] for row, label in zip(x, LABELS)])
    covariance = sum(torch.outer(r, r) for r in residuals) / (N - 1)
    ridge = (N - 1) * covariance + covariance.trace() * torch.eye(E).double()
    inverse = E * torch.linalg.inv(ridge)
    for c, mean in enumerate(means):
        torch.testing.assert_close(weight[c], inverse @ mean)
        expected = -mean @ inverse @ mean / 2 - math.log(C)
        torch.testing.assert_close(bias[c], expected)


def test_a_class_without_rows_has_the_mean_of_all():
    kept = LABELS != 2
    weight, bias = discriminant(X[kept], LABELS[kept], C)
    alone, _ = discriminant(X[kept], LABELS[kept] % 2, 2)
    assert weight.isfinite().all() and bias.isfinite().all() and alone.isfinite().all()
    x = X[kept].double()
    # by linearity: P mu of the mean of all is the mean of P mu over the classes that there are
    torch.testing.assert_close(weight[2], weight[[0, 1, 3]].mean(0))
    assert len(x) == 30


def test_one_image_a_class_has_no_covariance_and_adds_nothing_but_a_constant():
    weight, bias = discriminant(X[:C], LABELS[:C], C)
    assert weight.abs().max() == 0 and bias.unique().numel() == 1


# CLAP


def test_the_multipliers_are_mean_probabilities_of_the_true_class(data_root, tmp_path, capsys):
    trainer = trained("CLAP", data_root, tmp_path, "TRAINER.CLAP.EPOCHS", 1)
    answers, found = trainer.answers.gathered(), []
    p = (trainer.description.logit_scale * answers.rows @ answers.texts.T).softmax(1)
    for c in range(10):
        found.append(p[answers.labels == c, c].mean().item())
    assert f"lambda {min(found):.3f} to {max(found):.3f}" in capsys.readouterr().out


def test_an_epoch_of_clap_has_as_many_rows_as_there_are_images():
    drawn = minibatches([torch.arange(3000)], 2, 0)
    parts = [next(drawn) for _ in range(4)]
    assert [len(part) for part in parts] == [256] * 4
    epochs = [torch.cat(parts[:2]), torch.cat(parts[2:])]
    assert all(len(epoch.unique()) == 512 for epoch in epochs)
    assert not torch.equal(*epochs)
    assert len(next(minibatches([torch.arange(50)], 1, 0))) == 50  # fewer than a batch are one


def test_without_a_penalty_the_prototypes_go_further(data_root, tmp_path):
    def distance(weight):
        out = tmp_path / str(weight)
        return trained("CLAP", data_root, out, "TRAINER.CLAP.WEIGHT", weight).head.shift.norm()

    assert 0 < distance(5.0) < 0.8 * distance(0.0)


def test_the_prototypes_do_not_decay(data_root, tmp_path):
    """Long ones hardly turn, so that what is left of the shift is their length's."""
    options = "TRAINER.CLAP.WEIGHT", 0, "TRAINER.CLAP.LENGTH", 1000
    assert trained("CLAP", data_root, tmp_path, *options).head.shift.norm(dim=-1).max() < 1e-3


# LFA


def test_procrustes_is_scipys():
    scipy = pytest.importorskip("scipy.linalg")
    targets = unit(N, E, seed=4)
    expected, _ = scipy.orthogonal_procrustes(X.double().numpy(), targets.double().numpy())
    found = procrustes(X, targets)
    torch.testing.assert_close(found, torch.from_numpy(expected))
    torch.testing.assert_close(found @ found.T, torch.eye(E).double())


def test_procrustes_finds_a_rotation():
    rotation = torch.linalg.qr(torch.randn(E, E, generator=seeded(5)).double()).Q
    torch.testing.assert_close(procrustes(X.double(), X.double() @ rotation), rotation)


def test_procrustes_of_few_classes_is_the_map_nearest_to_the_identity():
    e, classes = 32, 10
    texts, common = unit(classes, e, seed=7), unit(1, e, seed=8)
    labels = torch.arange(60) % classes
    rows = F.normalize(unit(60, e, seed=9) + texts[labels] + 3 * common, dim=-1).double()
    targets = F.normalize(texts + 2 * common, dim=-1)[labels].double()
    found = procrustes(rows, targets)
    torch.testing.assert_close(found @ found.T, torch.eye(e).double())

    # among all that have the least distance, by another way to the open directions
    left, spread, right = torch.linalg.svd(rows.T @ targets)
    assert spread[classes - 1] > 1e-6 > spread[classes]
    pair = left[:, classes:].T, right[classes:]
    fixed = left[:, :classes] @ right[:classes]
    for turn in (torch.eye(e - classes), -torch.eye(e - classes)):
        other = fixed + pair[0].T @ turn.double() @ pair[1]
        assert (rows @ found - targets).norm() <= (rows @ other - targets).norm() * (1 + 1e-9)
        assert found.trace() > other.trace() + 1
    inner, _, outer = torch.linalg.svd(pair[0] @ pair[1].T)
    torch.testing.assert_close(
        found, fixed + pair[0].T @ inner @ outer @ pair[1], atol=1e-5, rtol=0
    )

    # whatever the order of the images, rounding and the axes
    order = torch.randperm(60, generator=seeded(0))
    noise = 1e-12 * torch.randn(60, e, generator=seeded(1)).double()
    axes = torch.linalg.qr(torch.randn(e, e, generator=seeded(2)).double()).Q
    for again in (
        procrustes(rows[order], targets[order]),
        procrustes(rows + noise, targets),
        procrustes(rows, targets + noise),
        axes @ procrustes(rows @ axes, targets @ axes) @ axes.T,
    ):
        torch.testing.assert_close(again, found, atol=1e-4, rtol=0)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_reranking_loss_by_loops(k):
    total = 0.0
    for n in range(N):
        y = int(LABELS[n])
        distances = [float((X[n] - T[c]).norm()) for c in range(C)]
        near = sorted(range(C), key=lambda c: distances[c])[: min(k, C)]
        for j in near:
            margin = (1 - float(T[j] @ T[y])) / 4
            total += max(0.0, distances[y] + margin - distances[j]) / (N * len(near))
    assert reranking(X, T, LABELS, k=k).item() == pytest.approx(total, rel=1e-4)


def test_the_transferred_map_lies_between_the_identity_and_the_refined_one(data_root, tmp_path):
    own = trained("LFA", data_root, tmp_path / "own").head.matrix
    moved = trained("LFA", data_root, tmp_path / "moved", "TRAINER.LFA.TRANSFER", True).head.matrix
    start = torch.eye(len(own))
    assert 0 < (moved - start).norm() < (own - start).norm()


# RLA


def test_a_map_by_hand():
    matrix = torch.eye(E) + 0.1 * torch.randn(E, E, generator=seeded(6))
    found = mapped(SCALE, X, T, matrix)
    for n in range(N):
        moved = X[n] @ matrix
        torch.testing.assert_close(found[n], SCALE * T @ (moved / moved.norm()))


def test_rlas_penalty_holds_the_map_and_goes_with_the_shots(data_root, tmp_path, capsys):
    found = {}
    for weight in (0.0, 1.0, 1000.0):
        trainer = trained("RLA", data_root, tmp_path / str(weight), "TRAINER.RLA.PENALTY", weight)
        found[weight] = (trainer.head.matrix - torch.eye(128)).norm()
        assert f"RLA: lambda {weight / 3:.4f}" in capsys.readouterr().out  # three shots
    assert found[0.0] > found[1.0] > found[1000.0] > 0


# Choosing by held-out images


def parts_of(gathered, folds, class_bound):
    """What is fitted to and what is judged, and the number of the value that is chosen of two."""
    seen = []

    def logits_of(fitted, judged):
        seen.append((fitted, judged))
        return 2 * [judged.rows[:, :4]]

    return seen, choose(gathered, folds, [1.0, 0.0], logits_of, class_bound)


def test_all_views_of_an_image_are_held_out_and_the_un_augmented_ones_are_judged():
    folds = torch.arange(10) % 3
    seen = []
    for fitted, judged in parts_of(GATHERED, folds, False)[0]:
        assert not set(fitted.index.tolist()) & set(judged.index.tolist())
        assert torch.equal(judged.rows, X[:10][folds == folds[judged.index[0]]])  # the first ten
        assert len(fitted.index) + sum(
            int((GATHERED.index == n).sum()) for n in judged.index
        ) == len(GATHERED.index)
        seen += judged.index.tolist()
    assert sorted(seen) == list(range(10))
    assert parts_of(GATHERED, torch.zeros(10, dtype=torch.long), False) == ([], 1)


@pytest.mark.parametrize("bound, sizes", [(True, [1, 2]), (False, [2, 2]), (True, [])])
def test_an_image_alone_in_its_class_is_neither_held_out_nor_judged(bound, sizes):
    """Where what is fitted has numbers of every class."""
    labels = torch.tensor([0, 0, 1, 0] if sizes else [0, 1, 2, 3]).repeat(3)  # in three views
    answers = Gathered(X[:12], labels, torch.arange(4).repeat(3), T)
    parts, value = parts_of(answers, torch.arange(4) % 2, bound)
    assert [len(judged.index) for _, judged in parts] == sizes
    assert all((2 in fitted.index) or not bound for fitted, _ in parts)
    assert value == 1  # equal answers, or none: the prior decides


def test_blending_trusts_what_tells_the_classes_apart_and_its_scale_does_not_matter():
    gathered, folds = Gathered(X, LABELS, torch.arange(N), T), torch.arange(N) // C % 5
    told = F.one_hot(LABELS, C).float()

    def logits(scale, image, text, added):
        return scale * image @ text.T + added[[int((X == x).all(1).nonzero()) for x in image]]

    def chosen(*fits):
        head, numbers = FeatureHead(logits, 5.0), [{"added": added} for added in fits]
        return blended(gathered, folds, head, lambda fitted: numbers, [0.0] * len(fits))

    noise = torch.randn(N, C, generator=seeded(3))
    assert chosen(noise, told)[1]["added"] is told and chosen(told, noise)[1]["added"] is told
    assert chosen(told)[0] > 1.5 * chosen(noise)[0] * spread(noise) / spread(told)
    assert chosen(9 * told)[0] == pytest.approx(chosen(told)[0] / 9)


def test_answers_are_in_the_order_of_the_images_view_by_view():
    """However they were asked for."""
    answers, labels = Answers(torch.device("cpu")), torch.tensor([5, 6, 7, 5, 6])
    answers.batches = [(torch.arange(5.0)[:, None], labels, torch.tensor([2, 0, 1, 2, 0]))]
    gathered = answers.gathered()
    assert gathered.index.tolist() == [0, 1, 2, 0, 2] and gathered.views.tolist() == [0, 0, 0, 1, 1]
    assert gathered.rows[:, 0].tolist() == [1, 2, 0, 4, 3]
    assert gathered.labels.tolist() == [6, 7, 5, 6, 5]


def test_the_first_of_the_best_values_is_chosen():
    gathered = Gathered(X, LABELS, torch.arange(N), T)
    folds = torch.arange(N) % 5

    def logits_of(fitted, judged):
        truth = F.one_hot(judged.labels, C).float()
        return (-truth, truth, truth)

    assert choose(gathered, folds, [0.0] * 3, logits_of, True) == 1
    assert choose(gathered, folds * 0, [0.0] * 3, logits_of, True) == 0  # nothing to judge by


def test_views_that_the_budget_cut_short_are_left_out():
    views = GATHERED.by_view()
    assert [view.tolist() for view in views] == [list(range(10 * v, 10 * v + 10)) for v in range(3)]


# The runs


@featured
def test_a_run_costs_a_query_a_batch_and_view_and_one_for_the_texts(name, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path, "DATASET.NUM_SHOTS", 16)
    assert "6 steps of 1 queries: 7 training queries, 480 image queries" in trainer.describe_cost()
    trainer.train()
    images = len(trainer.dm.dataset.train_x)
    assert images == 160
    expected = math.ceil(images / 128) * (1 + 2) + 1
    assert bill(tmp_path)["training"] == {"queries": expected, "image_queries": 3 * images}


@featured
def test_features_alone_are_enough_and_needed(name, data_root, tmp_path):
    trainer = build(name, data_root, tmp_path / "a", "ORACLE.GRANTS", "('features',)")
    assert trainer.needs == ("features",)
    with pytest.raises(AccessDenied, match=f"{name} asked for 'features'"):
        build(name, data_root, tmp_path / "b", "ORACLE.GRANTS", "('contexts', 'logits')")


@featured
def test_the_head_is_fitted_at_the_end_and_beats_zero_shot(name, data_root, tmp_path):
    options = "DATASET.NUM_SHOTS", 16
    trainer = build(name, data_root, tmp_path / name, *options)
    before = trainer.test()
    trainer.train()
    zero_shot = build_small("ZeroshotOracle", data_root, tmp_path / "z").test()
    assert before == zero_shot and trainer.test() > zero_shot + 5


@featured
def test_only_a_map_moves_to_other_classes(name, data_root, tmp_path):
    trained(name, data_root, tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base")
    other = build(name, data_root, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new")
    if name in ("LFA", "RLA"):
        other.load_model(str(tmp_path / "base"))
        assert not torch.equal(other.head.matrix, torch.eye(128))
        assert other.test() > 20  # five classes by chance
    else:
        with pytest.raises(BlackBoxError, match="has a head for the classes"):
            other.load_model(str(tmp_path / "base"))


@featured
def test_what_is_fitted_does_not_depend_on_global_draws(name, data_root, tmp_path):
    heads = []
    for folder in ("a", "b"):
        trainer = build(name, data_root, tmp_path / folder)
        if folder == "b":
            finish = trainer.finish

            def disturbed_finish(finish=finish):
                torch.rand(7)
                finish()

            trainer.finish = disturbed_finish
        trainer.train()
        heads.append(dict(trainer.head.state_dict()))
    assert_same(*heads)


@featured
def test_stopped_in_the_middle_it_fits_the_same_head(name, data_root, tmp_path):
    options = "ORACLE.SAVE_EVERY", 1, f"TRAINER.{name.upper()}.VIEWS", 4
    whole = trained(name, data_root, tmp_path / "whole", *options)
    first = build(name, data_root, tmp_path / "parts", *options)
    step = first.forward_backward

    def interrupted(batch):
        if first.steps_done == 3:
            raise KeyboardInterrupt
        return step(batch)

    first.forward_backward = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trained(name, data_root, tmp_path / "parts", *options)
    assert_same(dict(second.learner.state_dict()), dict(whole.learner.state_dict()))
    assert bill(tmp_path / "parts")["training"] == bill(tmp_path / "whole")["training"]


@featured
def test_a_budget_that_ends_in_the_first_view_still_fits(name, data_root, tmp_path):
    options = "DATASET.NUM_SHOTS", 16, "ORACLE.MAX_QUERIES", 2  # 128 of 160 images
    trainer = trained(name, data_root, tmp_path, *options)
    assert bill(tmp_path)["training"]["queries"] == 2
    assert test_logits(trainer).isfinite().all()
    moved = SimpleNamespace(**trainer.head.state_dict())
    assert all(part.isfinite().all() for part in vars(moved).values())


def test_a_fit_that_is_not_finite_is_an_error():
    part = torch.ones(2, requires_grad=True)
    with pytest.raises(BlackBoxError, match="not finite. Lower its learning rate"):
        descend(torch.optim.SGD([part], lr=1e30), 3, lambda step: (part**4).sum())


def test_tip_adapter_keeps_its_keys(data_root, tmp_path):
    still = trained("TipAdapterF", data_root, tmp_path / "a", "TRAINER.TIPADAPTERF.FINETUNE", False)
    tuned = trained("TipAdapterF", data_root, tmp_path / "b")
    assert torch.allclose(still.head.keys.norm(dim=-1), torch.ones(30), atol=1e-5)
    assert torch.equal(still.head.values, tuned.head.values)
    assert not torch.allclose(still.head.keys, tuned.head.keys, atol=1e-3)


def test_the_keys_are_tuned_by_the_data_sets_alpha(data_root, tmp_path, monkeypatch):
    assert set(TUNING_ALPHA) <= set(DATASET_REGISTRY.registered_names())
    fixed = trained("TipAdapterF", data_root, tmp_path / "one").head.keys
    monkeypatch.setitem(TUNING_ALPHA, "Digits", 0.0)
    untouched = trained("TipAdapterF", data_root, tmp_path / "none").head.keys
    assert torch.allclose(untouched.norm(dim=-1), torch.ones(30), atol=1e-3)
    assert not torch.allclose(fixed, untouched, atol=1e-3)
