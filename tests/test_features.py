"""Methods that read features once: closed forms, losses, choices, costs."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.heads.selection import choose, discriminant
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied
from dassl_blackbox.trainers.blackbox.probe import Answers, Gathered, ProbeTrainer, descend
from dassl_blackbox.trainers.lfa import procrustes, reranking
from dassl_blackbox.trainers.tipadapter import logits
from support import bill, own, seeded, test_logits
from support import build as build_small

featured = pytest.mark.parametrize("name", ["GDA", "CLAP", "TipAdapterF", "LFA", "RLA"])
N, C, E, SCALE = 40, 4, 6, 25.0
close = torch.testing.assert_close


def build(name, root, out, *options):
    """A trainer of two views beside the image."""
    return build_small(name, root, out, *own(name, VIEWS=2), *options)


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=seeded(seed)), dim=-1)


X, T = unit(N, E, seed=1), unit(C, E, seed=2)
LABELS = torch.arange(N) % C
ALL = Gathered(X, LABELS, torch.arange(N), T)
# ten images in four views, the second half of the fourth not paid for
VIEWED = Gathered(X[:35], LABELS[:35] * 0, torch.arange(35) % 10, T)


def test_a_cache_is_tip_adapters_logits_by_hand():
    keys, values = torch.cat([X, 0 * X[:1]]), torch.cat([F.one_hot(LABELS, C), torch.zeros(1, C)])
    found = logits(SCALE, X[:5], T, torch.tensor(3.0), keys=keys, values=values, beta=2.5)
    expected = SCALE * X[:5] @ T.T
    for n in range(N):
        expected[:, LABELS[n]] += 3.0 * torch.exp(-2.5 * (1 - X[:5] @ X[n]))
    close(found, expected)


def test_the_discriminant_is_the_papers_by_an_explicit_inverse():
    weight, bias = discriminant(X, LABELS, C)
    x = X.double()
    means = torch.stack([x[LABELS == c].mean(0) for c in range(C)])
    residuals = x - means[LABELS]
    covariance = residuals.T @ residuals / (N - 1)
    ridge = (N - 1) * covariance + covariance.trace() * torch.eye(E).double()
    inverse = E * torch.linalg.inv(ridge)
    close(weight, means @ inverse)
    close(bias, -(means @ inverse * means).sum(1) / 2 - math.log(C))
    # a class without rows has the mean of all; P mu of it is, by linearity, the mean of P mu
    weight, bias = discriminant(X[LABELS != 2], LABELS[LABELS != 2], C)
    close(weight[2], weight[[0, 1, 3]].mean(0))
    # of one image a class there is no covariance, and nothing but a constant is added
    weight, bias = discriminant(X[:C], LABELS[:C], C)
    assert weight.abs().max() == 0 and bias.unique().numel() == 1


def test_procrustes_of_few_classes_is_the_map_nearest_to_the_identity():
    rotation = torch.linalg.qr(torch.randn(E, E, generator=seeded(5)).double()).Q
    close(procrustes(X.double(), X.double() @ rotation), rotation)
    e, classes = 32, 10
    texts, common = unit(classes, e, seed=7), unit(1, e, seed=8)
    labels = torch.arange(60) % classes
    rows = F.normalize(unit(60, e, seed=9) + texts[labels] + 3 * common, dim=-1).double()
    targets = F.normalize(texts + 2 * common, dim=-1)[labels].double()
    found = procrustes(rows, targets)
    close(found @ found.T, torch.eye(e).double())
    # the classes leave directions open; there the distance is the least whatever the map does
    left, spread, right = torch.linalg.svd(rows.T @ targets)
    assert spread[classes - 1] > 1e-6 > spread[classes]
    first, second, fixed = left[:, classes:].T, right[classes:], left[:, :classes] @ right[:classes]
    inner, _, outer = torch.linalg.svd(first @ second.T)
    close(found, fixed + first.T @ inner @ outer @ second, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_reranking_loss_by_loops(k):
    total = 0.0
    for n in range(N):
        y = int(LABELS[n])
        distances = [float((X[n] - T[c]).norm()) for c in range(C)]
        near = sorted(range(C), key=lambda c: distances[c])[:k]
        for j in near:
            margin = (1 - float(T[j] @ T[y])) / 4
            total += max(0.0, distances[y] + margin - distances[j]) / (N * len(near))
    assert reranking(X, T, LABELS, k=k).item() == pytest.approx(total, rel=1e-4)


def test_all_views_of_an_image_are_held_out_and_the_un_augmented_ones_are_judged():
    seen = []

    def chosen(folds):
        """The number of the value that is chosen of two."""
        seen.clear()

        def logits_of(fitted, judged):
            seen.append((fitted, judged))
            return 2 * [judged.rows[:, :4]]

        return choose(VIEWED, folds, [1.0, 0.0], logits_of, False)

    assert chosen(torch.zeros(10, dtype=torch.long)) == 1 and not seen
    folds = torch.arange(10) % 3
    chosen(folds)
    for fitted, judged in seen:
        held_out = torch.isin(VIEWED.index, judged.index)
        assert torch.equal(fitted.index, VIEWED.index[~held_out])
        assert torch.equal(judged.rows, X[:10][folds == folds[judged.index[0]]])  # the first ten
    assert sorted(torch.cat([judged.index for _, judged in seen]).tolist()) == list(range(10))
    # views that the budget cut short are left out
    views = [view.tolist() for view in VIEWED.by_view()]
    assert views == [list(range(10 * v, 10 * v + 10)) for v in range(3)]


def test_answers_are_gathered_view_by_view_and_none_is_lost():
    class Probe(ProbeTrainer):
        def __init__(self):
            self.answers, self.num_classes, self.found = Answers(torch.device("cpu")), 2, []
            self.dm = SimpleNamespace(dataset=SimpleNamespace(train_x=range(3)))
            self.cfg = SimpleNamespace(ORACLE=SimpleNamespace(VAL_EVERY=0))

        def one_thread(self, small):
            return nullcontext()

        def fit(self, gathered):
            self.found.append(gathered)

    probe = Probe()
    for index, rows in (([2, 0, 1], [12, 10, 11]), ([1, 0, 2], [21, 20, 22])):
        asked = torch.tensor(index)
        probe.answers.batches.append([torch.tensor(rows), asked % 2, asked])
    probe.finish()
    (found,) = probe.found
    assert found.index.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.rows.tolist() == [10, 11, 12, 20, 21, 22]
    assert found.labels.tolist() == [0, 1, 0, 0, 1, 0]


def test_a_fit_that_is_not_finite_is_told():
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(BlackBoxError, match=r"not finite\. Lower its learning rate"):
        descend(torch.optim.SGD([weight], lr=1e38), 5, lambda step: weight.pow(4).sum())


@featured
def test_a_head_begins_as_zero_shot_and_beats_it_at_its_price(name, data_root, tmp_path):
    """And a query for the texts; features alone are enough, and needed."""
    options = "DATASET.NUM_SHOTS", 16, "ORACLE.GRANTS"
    trainer = build(name, data_root, tmp_path / "run", *options, "('features',)")
    assert "6 steps of 1 queries: 7 training queries, 480 image queries" in trainer.describe_cost()
    zero_shot = trainer.test()
    assert zero_shot == build_small("ZeroshotOracle", data_root, tmp_path / "z").test()
    trainer.train()
    assert bill(tmp_path / "run")["training"] == {"queries": 7, "image_queries": 480}
    assert trainer.test() > zero_shot + 5
    with pytest.raises(AccessDenied, match=f"{name} asked for 'features'"):
        build(name, data_root, tmp_path / "b", *options, "('contexts', 'logits')")


@featured
def test_only_a_map_moves_to_other_classes(name, data_root, tmp_path):
    build(name, data_root, tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base").train()
    other = build(name, data_root, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new")
    if name in ("LFA", "RLA"):
        other.load_model(str(tmp_path / "base"))
        assert not torch.equal(other.head.matrix, torch.eye(128))
        assert other.test() > 20  # five classes by chance
    else:
        with pytest.raises(BlackBoxError, match="has a head for the classes"):
            other.load_model(str(tmp_path / "base"))


@featured
def test_a_budget_that_ends_in_the_first_view_still_fits(name, data_root, tmp_path):
    options = "DATASET.NUM_SHOTS", 16, "ORACLE.MAX_QUERIES", 2  # 128 of 160 images
    trainer = build(name, data_root, tmp_path, *options)
    trainer.train()
    assert bill(tmp_path)["training"]["queries"] == 2
    assert test_logits(trainer).isfinite().all()
    assert all(part.isfinite().all() for part in trainer.head.state_dict().values())
