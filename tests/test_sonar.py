"""SONAR: its fit, choices, head and pool, what further texts cost, and what runs leave."""

import csv
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox import probe
from dassl_blackbox.trainers.blackbox.bank import further_texts, generic_names
from dassl_blackbox.trainers.blackbox.data import ordered_loader
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.heads import scores as scores_of
from dassl_blackbox.trainers.blackbox.heads import selection
from dassl_blackbox.trainers.blackbox.heads.scores import (
    ScoreHead,
    centred,
    coordinates,
    fit,
    gaussian,
    pooled,
    resolution,
    whitening,
)
from dassl_blackbox.trainers.blackbox.heads.selection import Gathered, agreement, sharpness
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import Meter, Prompt, Texts, TopK
from dassl_blackbox.trainers.blackbox.oracle.bill import Plan, total
from dassl_blackbox.trainers.sonar import affordable_texts, kept_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from support import accuracy, assert_same, bill, build, d64, difference, printed, run, seeded

from support import sentence, test_logits, trained  # isort: skip

ONE_VIEW = "TRAINER.SONAR.VIEWS", "1"
close = torch.testing.assert_close


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=d64)


def problem(N=60, r=5, C=3):
    prior, x = normal(N, C), normal(N, r, seed=1)
    return prior, x, (prior + x @ normal(r, C, seed=2) + normal(N, C, seed=3)).argmax(1)


# ------------------------------------------------------------------ the fit


@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01])
def test_the_fit_is_where_the_gradient_vanishes(penalty):
    """Of summed cross-entropies and both priors, so that it does not depend on the search."""
    prior, x, labels = problem()
    weight, bias = (part.requires_grad_() for part in fit(prior, x, labels, penalty))
    loss = F.cross_entropy((prior + x @ weight + bias)[0], labels, reduction="sum")
    loss = loss + penalty / 2 * weight.square().sum() + bias.square().sum() / 2
    assert max(g.abs().max() for g in torch.autograd.grad(loss, (weight, bias))) < 1e-3


def test_problems_at_once_are_those_one_by_one():
    prior, x, labels = problem()
    seen = torch.arange(60) % 3 != torch.arange(3)[:, None]
    together = fit(prior, x, labels, 0.1, seen, steps=200)
    for k in range(3):
        alone = fit(prior[seen[k]], x[seen[k]], labels[seen[k]], 0.1, steps=200)
        close(together.weight[k], alone.weight[0], atol=1e-3, rtol=0)
    start = fit(prior, x, labels, 1.0, seen)
    again = fit(prior, x, labels, 0.1, seen, start, steps=200)
    close(again.weight, together.weight, atol=1e-3, rtol=0)


def views(rows, labels=None):
    number = torch.arange(len(rows))
    return Gathered(rows, number if labels is None else labels, number)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_whitening_leaves_the_power_of_the_deviations(shape):
    """Where each image is a class of its own, the deviations are those about the mean of all."""
    rows = normal(*shape) * torch.logspace(0, -1, shape[1])
    mean, white = whitening(views(rows))
    close(mean, rows.mean(0))
    rows = rows - mean
    values = torch.linalg.svdvals(rows) / len(rows) ** 0.5
    values = values[values > 1e-3 * values[0]]
    assert white.shape == (shape[1], len(values)) and len(values) == min(8, shape[0] - 1)
    close((rows @ white).mT @ (rows @ white) / len(rows), torch.diag(values**0.6))


def test_what_differs_between_classes_is_not_whitened_away():
    """With many images a class, the deviations are nearly those about the classes' means."""
    labels = torch.arange(400) % 2
    rows = torch.stack([normal(400) + 50 * labels, normal(400, seed=1)], dim=1)
    told, untold = (
        whitening(part)[1].norm(dim=0).min() for part in (views(rows, labels), views(rows))
    )
    assert untold < 0.2 < 0.5 < told


def test_components_below_the_noise_are_cut():
    rows = normal(300, 4) @ normal(4, 20, seed=1)
    rounded = (rows / 0.25).round() * 0.25
    parts = [whitening(views(part))[1].shape[1] for part in (rows, rounded, 0 * rows)]
    assert parts == [4, 20, 0]
    # rounding filled the others
    assert whitening(views(rounded), resolution(rounded))[1].shape[1] == 4


@pytest.mark.parametrize("step", [0.01, 0.1, 0.0])
def test_the_step_of_rounded_answers_is_measured(step):
    scores = 5 + torch.randn(100, 80, generator=seeded())
    if step:
        scores = (scores / step).round() * step
    assert abs(resolution(scores) - step) <= 0.2 * step
    assert resolution(scores.half().float()) > 0


# ------------------------------------------------------------------ what is chosen


@given(st.integers(0, 99), st.sampled_from([0.0, 1.0]), st.floats(0.02, 20))
@settings(max_examples=20, deadline=None)
def test_sharpness_has_the_least_cross_entropy(seed, prior, scale):
    logits = scale * normal(12, 3, seed=seed)
    labels = (logits / scale + normal(12, 3, seed=seed + 100)).argmax(1)

    def cost(a):
        told = F.cross_entropy(a * logits, labels, reduction="sum")
        return (told + prior * torch.tensor(a).log() ** 2 / 2).item()

    grid = torch.logspace(-2, 2, 1001, dtype=d64).tolist()
    assert cost(sharpness(logits, labels, prior)) <= min(map(cost, grid)) + 1e-6


@given(st.integers(0, 99), st.floats(0, 2))
@settings(max_examples=20, deadline=None)
def test_agreement_knows_neither_names_nor_units(seed, noise):
    logits = centred(normal(30, 4, seed=seed), [4])
    rows = torch.cat([logits, noise * normal(30, 4, seed=seed + 100)], 1)
    found, order = agreement(logits, rows), torch.randperm(30, generator=seeded(seed))
    assert 0 <= found <= 1 and (found == 1 or noise > 0.1)
    assert agreement(9 * logits[order][:, [2, 0, 3, 1]], 0.1 * rows[order]) == pytest.approx(found)
    assert agreement(logits, normal(30, 4, seed=seed + 200)) < 0.5


def normals(n, C=3, A=6):
    """Views of n images of each of C classes that are normal with one covariance; the true logits
    of any rows.
    """
    mu, B = normal(C, A, seed=1), normal(A, A, seed=2)
    labels = torch.arange(C * n) % C
    rows = mu[labels] + normal(C * n, A, seed=3) @ B
    precise = torch.linalg.inv(B.T @ B)

    def logits(rows):
        return rows @ precise @ mu.T - ((mu @ precise) * mu).sum(1) / 2

    return Gathered(rows, labels, torch.arange(C * n)), logits


def test_the_gaussian_part_tends_to_the_true_logits_of_normal_classes():
    views, logits = normals(3000)
    found = gaussian(views, 3, coordinates(views))(views.rows)
    close(found.mean(1), torch.zeros(9000).double(), atol=1e-6, rtol=0)
    truth = centred(logits(views.rows), [3])
    assert torch.corrcoef(torch.stack([found.flatten(), truth.flatten()]))[0, 1] > 0.998
    few, _ = normals(4)  # and with fewer images than numbers of a row it still tells them apart
    found = gaussian(few, 3, coordinates(few))(views.rows).argmax(1)
    assert (found == logits(views.rows).argmax(1)).float().mean() > 0.6


def test_a_gaussian_part_that_is_chosen_is_in_the_head(monkeypatch):
    monkeypatch.setattr(scores_of, "SHARES", ())  # so that nothing else can be
    answers = gathered()
    head = ScoreHead(NAMES, 12, 12)
    assert "of zero-shot and a Gaussian, penalty" in head.fit(answers, FOLDS)
    assert right(head(answers.rows), answers.labels) > 0.9
    monkeypatch.setattr(scores_of, "PENALTIES", (1e6,))  # the fit adds nothing then
    alone = ScoreHead(NAMES, 12, 12)
    alone.fit(answers, FOLDS)
    assert right(alone(answers.rows), answers.labels) > 0.8


# ------------------------------------------------------------------ the head

NAMES, FOLDS = list("abcd"), torch.arange(80) % 5


def gathered(N=80, texts=16, seed=0):
    features = normal(N, 6, seed=seed).float()
    rows = features @ normal(texts, 6, seed=seed + 1).float().T
    return Gathered(
        rows, (features @ normal(6, 4, seed=seed + 2).float()).argmax(1), torch.arange(N)
    )


def fitted(answers, keep=12, folds=FOLDS):
    further = answers.rows.shape[1] - 4
    head = ScoreHead(NAMES, further, min(keep, further))
    assert "components" in head.fit(answers, folds)
    return head


def kept(head, scores):
    """The scores that evaluation asks about."""
    C = len(head.names)
    return torch.cat([scores[..., :C], scores[..., C:][..., head.kept]], -1)


def right(logits, labels):
    return (logits.argmax(1) == labels).float().mean()


@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(0, 3))
@settings(max_examples=4, deadline=None)
def test_log_probabilities_lead_to_the_same_answers(a, b, seed):
    """They are logits less a number an image, another one for every list of texts."""
    answers = gathered(seed=seed)
    shift = torch.tensor([a] * 4 + [b] * 12) * torch.rand(80, 1, generator=seeded(9))
    shifted = answers.rows + shift
    one = fitted(answers)(answers.rows)
    other = fitted(Gathered(shifted, answers.labels, answers.index))(shifted)
    # two settings of the head can be worth the same to a digit
    assert (one.argmax(1) == other.argmax(1)).float().mean() > 0.95


def test_the_head_learns_more_from_further_texts():
    answers = gathered()
    alone = Gathered(answers.rows[:, :4], answers.labels, answers.index)
    learnt = [right(fitted(part)(part.rows), part.labels) for part in (answers, alone)]
    assert learnt[0] > learnt[1] > right(alone.rows, answers.labels) + 0.1


@pytest.mark.parametrize("further", [0, 12])
def test_the_order_of_classes_and_of_images_does_not_matter(further):
    answers, order, images = gathered(texts=4 + further), [2, 0, 3, 1], torch.arange(80).flip(0)
    columns = torch.tensor(order + list(range(4, 4 + further)))
    labels = torch.tensor(order).argsort()[answers.labels]
    other = Gathered(answers.rows[:, columns], labels, answers.index).part(images)
    close(
        fitted(other)(other.rows),
        fitted(answers)(answers.rows)[images][:, order],
        atol=1e-2,
        rtol=1e-2,
    )


def test_classes_with_more_images_than_others_are_no_likelier():
    answers = gathered(N=320)
    shares = []
    for rows in (answers.labels >= 0, (answers.labels > 0) | (answers.index % 8 == 0)):
        logits = fitted(answers.part(rows), folds=torch.arange(320) % 5)(answers.rows)
        shares.append((logits.argmax(1) == 0).float().mean())
    assert shares[1] > 0.7 * shares[0] > 0.1


def test_a_class_without_images_is_zero_shot_less_its_mean(monkeypatch):
    monkeypatch.setattr(selection, "agreement", lambda *parts: 0.7)
    answers = gathered()
    part = answers.part(answers.labels != 2)
    head = fitted(part, keep=5)
    z, logits = centred(part.rows[:, :4], [4]), head(kept(head, part.rows))
    known = [0, 1, 3]  # on average over the images it is as far up as the others' zero-shot
    level = (head.scale * z.mean(0))[known].mean()
    wanted = head.fresh * (z[:, 2] - head.bold * z[:, 2].mean()) + head.bold * level
    close(logits[:, 2], wanted, atol=1e-4, rtol=1e-4)
    assert right(logits[:, known], torch.tensor([0, 1, 9, 2])[part.labels]) > 0.9
    assert head.prototypes[2].abs().max() == 0 < head.prototypes[known].abs().amin(1).max()


def test_with_one_image_a_class_the_prior_decides():
    answers = gathered()
    answers = answers.part(torch.stack([(answers.labels == c).nonzero()[0, 0] for c in range(4)]))
    head = ScoreHead(NAMES, 12, 12)
    assert "one image a class" in head.fit(answers, FOLDS)
    assert right(head(answers.rows), answers.labels) == 1


@pytest.mark.parametrize("further", [0, 2])
@pytest.mark.parametrize("rows", [torch.ones(6, 5), torch.zeros(1, 5), torch.randn(1, 5)])
def test_images_that_score_alike_teach_nothing(rows, further):
    """The head is as it begins, which is the model's answer about the classes."""
    head, index = ScoreHead(list("abcde")[further:], further, further), torch.arange(len(rows))
    assert "nothing is learnt" in head.fit(Gathered(rows, index % 3, index), index % 2)
    scores = torch.randn(7, 5)
    classes = scores[:, : 5 - further]
    close(head(scores), classes - classes.mean(1, keepdim=True))


def test_fewer_texts_lead_to_the_same_answers():
    """Six numbers lie behind the scores, and nine centred ones tell them."""
    answers = gathered(texts=40)
    short, full = fitted(answers, keep=6), fitted(answers, keep=36)
    assert len(set(short.kept)) == 6 and short.kept != list(range(6))
    wanted = full(answers.rows)
    assert difference(short(kept(short, answers.rows)), wanted) < 0.02
    first = fitted(answers, keep=1)  # and one leaves something out
    assert difference(first(kept(first, answers.rows)), wanted) > 0.05


def test_a_checkpoint_holds_a_head_and_its_texts_whatever_their_numbers(tmp_path):
    answers = gathered()
    head, fresh = fitted(answers, keep=5), ScoreHead(NAMES, 3, 2)
    head.texts, head.template = [f"text {n}" for n in range(12)], "my {}."
    torch.save(head.state_dict(), tmp_path / "head")
    fresh.load_state_dict(torch.load(tmp_path / "head", weights_only=True))
    assert_same(dict(fresh.state_dict()), dict(head.state_dict()))
    scores = kept(head, answers.rows)
    assert torch.equal(fresh(scores), head(scores))
    assert (fresh.texts, fresh.template) == (head.texts, "my {}.")


def test_moved_it_keeps_what_it_knows_and_the_others_are_zero_shot_less_the_mean(monkeypatch):
    monkeypatch.setattr(selection, "agreement", lambda *parts: 0.7)
    answers, order = gathered(), [3, 1, 0, 2]
    head, moved = fitted(answers), fitted(answers)
    scores, z = answers.rows, centred(answers.rows[:, :4], [4])
    here = head(scores)
    moved.move([NAMES[c] for c in order], z[:, order].mean(0))
    asked = torch.cat([scores[:, order], scores[:, 4:]], 1)
    close(moved(asked), here[:, order])
    asked[:, [0, 3]] = normal(80, 2, seed=8).float()  # two new ones among those that it knows
    moved, new = fitted(answers), centred(asked[:, :4], [4])
    moved.move(["new", "b", "a", "newer"], new.mean(0))
    logits = moved(asked)
    for number, own in ((1, 1), (2, 0)):
        wanted = here[:, own] + head.scale[own] * (new[:, number] - z[:, own])
        close(logits[:, number], wanted, atol=1e-4, rtol=1e-4)
    level = (moved.scale * new.mean(0))[[1, 2]].mean()
    for number in (0, 3):
        less = head.bold * new[:, number].mean()
        wanted = head.fresh * (new[:, number] - less) + head.bold * level + head.level
        close(logits[:, number], wanted, atol=1e-4, rtol=1e-4)
    assert moved.names == NAMES and moved.moves and not ScoreHead(NAMES).moves


def test_classes_without_images_can_compete_with_those_that_were_learnt():
    """Half of the classes have images; the level helps those that have none, by more than it costs.

    With one image a class there is nothing to choose it by.
    """
    means, names = F.normalize(normal(12, 20), dim=1), [f"class {n}" for n in range(12)]
    texts = torch.cat([means + 0.15 * normal(12, 20, seed=1), normal(30, 20, seed=2) / 20**0.5])

    def images(classes, each, seed):
        labels = torch.arange(classes).repeat(each)
        rows = means[labels] + 0.3 * normal(len(labels), 20, seed=seed)
        return (30 * F.normalize(rows, dim=1) @ texts.mT).float(), labels

    (seen, labels), (tested, truth) = images(6, 20, 3), images(12, 40, 4)
    own = torch.cat([seen[:, :6], seen[:, 12:]], 1)
    index, head = torch.arange(len(seen)), ScoreHead(names[:6], 30, 30)
    head.fit(Gathered(own, labels, index), index // 6 % 4)
    head.move(names, centred(seen[:, :12], [12]).mean(0))
    raised = head(tested)
    level = torch.zeros(12).index_fill(0, torch.arange(6, 12), head.level)
    hits = [(logits.argmax(1) == truth).float() for logits in (raised - level, raised)]
    assert head.level > 0 and hits[1].mean() > hits[0].mean() + 0.02
    assert hits[1][truth >= 6].mean() > hits[0][truth >= 6].mean() + 0.1
    one = ScoreHead(names[:6], 30, 30)
    one.fit(Gathered(own[:6], labels[:6], index[:6]), index[:6])
    assert one.level == 0


# ------------------------------------------------------------------ the pool


def test_pictures_unlike_any_other_keep_their_own_answers_and_two_alike_meet():
    rows, logits, none = torch.eye(8), normal(8, 3).float(), torch.zeros(3, 8)
    own = (2 * logits).softmax(1)
    close(pooled(logits, rows, none), own)
    found = pooled(logits, torch.cat([rows[:7], rows[:1]]), none)  # the last is the first
    close(found[1:7], own[1:7])
    wanted = (4 * own[0] + 3 * own[7]) / 7  # of F = (Y + 3 F') / 4, twice
    close(found[0], wanted, atol=1e-3, rtol=0)
    like = pooled(0 * logits, rows, 5 * rows[[4, 5, 6]])[[4, 5, 6]]  # the classes' mean images
    assert like.argmax(1).tolist() == [0, 1, 2] and like.amax(1).min() > 0.4


@given(st.integers(1, 7), st.booleans(), st.sampled_from([0.0, 1e-3, 30.0]))
@settings(max_examples=20, deadline=None)
def test_pooled_answers_are_probabilities_whatever_the_order(N, trained, scale):
    logits, rows = normal(N, 3).float(), scale * normal(N, 5, seed=1).float() + 1
    prototypes = trained * torch.tensor([[1.0], [0.0], [1.0]]) * normal(3, 5, seed=2).float()
    found, order = pooled(logits, rows, prototypes), torch.randperm(N, generator=seeded())
    close(found.sum(1), torch.ones(N))
    assert found.min() >= 0
    if N == 1 and not trained:
        close(found, (2 * logits).softmax(1))
    if scale:  # of equal pictures any five are the nearest
        close(pooled(logits[order], rows[order], prototypes), found[order], atol=1e-4, rtol=0)


def test_a_run_that_pools_tells_the_pooled_accuracy(data_root, tmp_path, capsys):
    options, pool = (*ONE_VIEW, "DATASET.NUM_SHOTS", 1), ("TRAINER.SONAR.POOL", True)
    assert run("SONAR", data_root, tmp_path / "a", *options, *pool) == 0
    told, flags = printed(tmp_path / "a"), ("--eval-only", "--model-dir", tmp_path / "a")
    trainer = build("SONAR", data_root, tmp_path / "b", *options, *pool)
    trainer.load_model(str(tmp_path / "a"))
    logits, rows = test_logits(trainer).tensor_split([10], dim=1)
    labels = torch.tensor([item.label for item in trainer.dm.dataset.test])
    answers = pooled(logits, rows, trainer.head.prototypes)
    assert f"{100 * right(answers, labels):.1f}%" == told
    assert run("SONAR", data_root, tmp_path / "c", *options, flags=flags) == 0
    assert printed(tmp_path / "c") == f"{100 * right(logits, labels):.1f}%"
    assert not torch.equal(answers.argmax(1), logits.argmax(1))
    bills = [bill(tmp_path / name)["evaluation"] for name in "ac"]
    assert bills[0] == bills[1]


# ------------------------------------------------------------------ further texts


def test_further_texts_are_drawn_from_the_bank(tmp_path):
    texts = further_texts("names", 30, ["tench", "cat"], "a {}.", seeded())
    assert len(set(texts.names)) == 30 and set(texts.names) <= set(generic_names()) - {"tench"}
    assert texts == further_texts("names", 30, ["tench", "cat"], "a {}.", seeded())
    assert texts.id != further_texts("names", 30, ["tench", "cat"], "a {}.", seeded(1)).id
    assert len(further_texts("names", 5000, ["tench"], "{}", seeded())) == 999
    phrases = further_texts("phrases", 5, ["cat", "dog"], "{}", seeded()).names
    assert [name.split()[-1] for name in phrases] == ["cat.", "dog.", "cat.", "dog.", "cat."]
    (tmp_path / "bank.txt").write_text("\ufeffa lamp\n\na chair\nCat\n")
    own = further_texts(str(tmp_path / "bank.txt"), 5, ["cat"], "my {}.", seeded())
    assert set(own.names) == {"a lamp", "a chair"} and own.template == "my {}."
    assert further_texts("names", 0, ["cat"], "{}", seeded()) is None
    for path in ("no such file", tmp_path):
        with pytest.raises(BlackBoxError, match="BANK"):
            further_texts(str(path), 5, ["cat"], "{}", seeded())


def test_a_bank_with_fewer_texts_is_told_and_its_content_counts(data_root, tmp_path, capsys):
    bank, options = tmp_path / "bank.txt", ("TRAINER.SONAR.VIEWS", 0, "INPUT.VIEWS", 1)
    for content, words in (("lamp\nchair\n", None), ("lamp\ndoor\n", "TRAINER.SONAR.BANK")):
        bank.write_text(content)
        named = "TRAINER.SONAR.BANK", bank
        capsys.readouterr()
        status = run("SONAR", data_root, tmp_path / "run", *named, *options, flags=["--skip-done"])
        out, err = capsys.readouterr()
        assert status == bool(words)
        if words:
            assert "another configuration (TRAINER.SONAR.BANK" in err
        else:
            assert "has 2 further texts of the 40" in out and "reads no INPUT.VIEWS" in out


def test_evaluation_needs_no_bank(data_root, tmp_path, capsys):
    """A checkpoint has its texts."""
    bank, folder = tmp_path / "bank.txt", tmp_path / "run"
    bank.write_text("lamp\nchair\ndoor\n")
    named = "TRAINER.SONAR.BANK", bank, "TRAINER.SONAR.TEXTS", 3, *ONE_VIEW
    assert run("SONAR", data_root, folder, *named) == 0
    bank.unlink()
    flags = "--eval-only", "--model-dir", folder
    assert run("SONAR", data_root, tmp_path / "e", *named, flags=flags) == 0
    assert printed(tmp_path / "e") == printed(folder)
    for flags in ((), ("--no-train",)):
        assert "bank.txt" in sentence(capsys, "SONAR", data_root, tmp_path, *named, flags=flags)


def test_views_of_its_own_are_none_of_the_input_s(data_root, tmp_path):
    rows = []
    for views in (0, 1):
        options = "INPUT.VIEWS", views, *ONE_VIEW, "TRAINER.SONAR.TEXTS", 0
        trainer = trained("SONAR", data_root, tmp_path / str(views), *options)
        rows.append(trainer.answers.batches)
    assert_same(*rows)


def test_further_texts_are_scored_after_the_classes_and_charged(digits):
    oracle = LocalOracle(load_model("tiny"))
    oracle.set_classes(["one", "two", "three"])
    meter = Meter(oracle)
    meter.set_classes(["one", "two", "three"])
    more = Texts.of(["a cat", "a dog", "a red circle", "four"])
    images = meter.upload(digits[:5])
    both = meter.query(images, Prompt(texts=more))
    assert both.shape == (1, 5, 7)
    # ceil((3 + 4) / 3) candidates; every image is seen once
    assert meter.counts["training"] == {"queries": 3, "image_queries": 5}
    assert difference(both[..., :3], meter.query(images, Prompt())) < 1e-6
    meter.set_classes(list(more.names))
    assert difference(both[..., 3:], meter.query(images, Prompt())) < 1e-5
    top = TopK(oracle, 2)
    top.set_classes(["one", "two", "three"])
    answer = top.query(images, Prompt(texts=more)).exp()
    torch.testing.assert_close(answer[..., :3].sum(-1), torch.ones(1, 5))
    torch.testing.assert_close(answer[..., 3:].sum(-1), torch.ones(1, 5))


# ------------------------------------------------------------------ plan


PRICES = st.tuples(st.integers(0, 20), st.integers(0, 300))


@given(st.lists(PRICES, min_size=1, max_size=4), st.integers(1, 4), PRICES, st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_plan_counts_what_its_steps_cost(prices, epochs, first, limit):
    plan = Plan(prices, epochs, first)
    steps = plan.steps({"queries": limit, "image_queries": 20 * limit})
    costs = [plan.step(k) for k in range(epochs * len(prices))]
    assert total(costs) == total([*epochs * prices, first]) == plan.until(len(costs))
    assert plan.until(steps) == total(costs[:steps])
    assert not (limit and steps) or plan.until(steps) <= (limit, 20 * limit)
    more = total(costs[: steps + 1])
    assert steps == len(costs) or more[0] > limit > 0 or more[1] > 20 * limit > 0


@given(st.integers(1, 50), st.integers(0, 2000), st.integers(0, 400), st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_a_batch_costs_half_in_evaluation_and_a_budget_pays_for_all_images_once(
    classes, texts, limit, images
):
    def cost(further):
        return 1 + -(-further // classes)

    found = kept_texts(classes, texts)
    assert min(classes, texts) <= found <= texts and cost(found) <= max(2, cost(texts) // 2)
    cfg = SimpleNamespace(
        TRAINER=SimpleNamespace(SONAR=SimpleNamespace(TEXTS=texts)),
        ORACLE=SimpleNamespace(MAX_QUERIES=limit),
    )
    count, batches = affordable_texts(cfg, classes, images), -(-images // 128)
    assert not limit or count == 0 or cost(count) * batches <= limit
    assert count == texts or cost(count + 1) * batches > limit > 0


# ------------------------------------------------------------------ runs


def test_a_run_is_billed_for_what_its_plan_says(data_root, tmp_path):
    trainer = build("SONAR", data_root, tmp_path, "TRAINER.SONAR.VIEWS", "2")
    # 30 images: a batch a view, of 1 + 40 / 10 queries; half of them for one of evaluation
    tested, images = 2 * len(trainer.test_loader), len(trainer.dm.dataset.test)
    line = f"15 training queries, 90 image queries; {tested} evaluation queries, {images} image"
    assert line in trainer.describe_cost()
    trainer.train()
    assert bill(tmp_path)["training"] == {"queries": 15, "image_queries": 90}
    assert bill(tmp_path)["evaluation"] == {"queries": tested, "image_queries": images}
    assert len(trainer.head.kept) == 10
    assert len(trainer.prompt().texts) == 40 and len(trainer.prompt(tested=True).texts) == 10
    # what is left of the texts answers as all of them do
    rows = torch.cat([rows for rows, _, _ in trainer.answers.batches])
    short = trainer.head(kept(trainer.head, rows))
    trainer.head.move(trainer.head.names[::-1], torch.zeros(10))
    full = trainer.head(torch.cat([rows[:, :10].flip(1), rows[:, 10:]], 1)).flip(1)
    assert (short.argmax(1) == full.argmax(1)).float().mean() > 0.9


def test_a_budget_that_ends_first_still_leads_to_a_head(data_root, tmp_path, capsys):
    flags = "--eval-only", "--model-dir"
    for limit, views, texts in ((10, 1, 40), (5, 0, 40), (4, 0, 30), (1, 0, 0)):
        folder = tmp_path / str(limit)
        assert run("SONAR", data_root, folder, "ORACLE.MAX_QUERIES", limit) == 0
        out = capsys.readouterr().out
        used = {"queries": (1 + views) * (1 + texts // 10), "image_queries": 30 * (1 + views)}
        assert bill(folder)["training"] == used
        assert (f"the budget pays for {texts} further texts of the 40" in out) == (texts < 40)
        assert "chosen on held-out images" in out
        if texts == 40:
            continue
        # evaluation has no budget, and its plan is that of the head that it finds
        assert run("SONAR", data_root, tmp_path / "e", flags=(*flags, folder)) == 0
        assert accuracy(capsys.readouterr().out) == printed(folder)
    trainer = build("SONAR", data_root, tmp_path / "f")
    trainer.load_model(str(tmp_path / "4"))
    tested, _ = trainer.evaluation(["test"])
    before = trainer.oracle.counts["evaluation"]["queries"]
    trainer.test()
    assert trainer.oracle.counts["evaluation"]["queries"] - before == tested


def test_base_to_new(data_root, tmp_path, capsys):
    base, subset = tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES"
    assert run("SONAR", data_root, base, *ONE_VIEW, subset, "base") == 0
    flags = "--eval-only", "--model-dir", base
    for name, classes in (("new", 5), ("all", 10)):
        folder = tmp_path / name
        assert run("SONAR", data_root, folder, *ONE_VIEW, subset, name, flags=flags) == 0
        assert "less the means over 15 training images" in capsys.readouterr().out
        zero = trained("ZeroshotOracle", data_root, tmp_path / "zero", subset, name)
        images = len(zero.dm.dataset.test)
        # all further texts of every batch; the class texts of those that were learnt from
        queries = 1 + len(zero.test_loader) * (1 + 40 // classes)
        assert bill(folder)["evaluation"] == {"queries": queries, "image_queries": 15 + images}
        assert float(printed(folder)[:-1]) > 45  # of five classes, or ten
    trainer = build("SONAR", data_root, tmp_path / "n", *ONE_VIEW, subset, "new")
    trainer.load_model(str(base))
    zero = build("ZeroshotOracle", data_root, tmp_path / "z", subset, "new")
    shift = test_logits(trainer) - trainer.head.fresh * centred(test_logits(zero), [5])
    close(shift, shift[:1].expand_as(shift), atol=1e-3, rtol=0)
    alone = "TRAINER.SONAR.TEXTS", 0, *ONE_VIEW, subset
    assert run("SONAR", data_root, tmp_path / "alone", *alone, "base") == 0
    flags = "--eval-only", "--model-dir", tmp_path / "alone"
    assert "cannot move to others" in sentence(
        capsys, "SONAR", data_root, tmp_path / "x", *alone, "new", flags=flags
    )


@pytest.mark.parametrize("name", ["SONAR", "GDA"])
def test_the_curve_has_what_was_fitted(name, data_root, tmp_path, capsys):
    """Before all answers are there nothing is fitted, and nothing is looked at."""
    options = "ORACLE.VAL_EVERY", 1, "TEST.FINAL_MODEL", "best_val", f"TRAINER.{name}.VIEWS", 9
    assert run(name, data_root, tmp_path, *options) == 0
    ((queries, _, on_val),) = csv.reader((tmp_path / "val_curve.csv").open())
    assert int(queries) == bill(tmp_path)["training"]["queries"]
    assert f"* accuracy: {float(on_val):.1f}%" in (tmp_path / "log.txt").read_text()


def test_classes_take_turns(data_root, tmp_path):
    trainer = build("SONAR", data_root, tmp_path)
    items = trainer.dm.dataset.train_x
    loader = ordered_loader(trainer.cfg, items, trainer.pictures, batch_size=10, in_turns=True)
    for batch in loader:
        assert sorted(batch["label"].tolist()) == list(range(10))
        of_index = [items[number].label for number in batch["index"]]
        assert batch["label"].tolist() == of_index


def test_classes_that_the_budget_does_not_reach_are_told(data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probe, "QUERY_IMAGES", 8)
    trainer = build("GDA", data_root, tmp_path, "ORACLE.MAX_IMAGE_QUERIES", "8")
    trainer.train()
    assert "pays for 8 images; 2 classes have none" in capsys.readouterr().out


def test_a_checkpoint_holds_its_further_texts(data_root, tmp_path, capsys):
    run("SONAR", data_root, tmp_path / "a", *ONE_VIEW)
    first = accuracy(capsys.readouterr().out)
    flags = ("--eval-only", "--model-dir", tmp_path / "a")
    run("SONAR", data_root, tmp_path / "b", *ONE_VIEW, seed=7, flags=flags)  # another draw of texts
    assert accuracy(capsys.readouterr().out) == first


def test_top_k_answers_serve(data_root, tmp_path, capsys):
    run("ZeroshotOracle", data_root, tmp_path / "zero")
    zero = float(accuracy(capsys.readouterr().out)[:-1])
    for k in (10, 3):
        run("SONAR", data_root, tmp_path / str(k), *ONE_VIEW, "ORACLE.TOP_K", str(k))
        assert float(accuracy(capsys.readouterr().out)[:-1]) > zero + 10
