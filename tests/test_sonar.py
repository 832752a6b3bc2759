"""SONAR: its fit, head and pool, what further texts cost, and what runs leave."""

import csv
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox import probe
from dassl_blackbox.trainers.blackbox.bank import further_texts, generic_names
from dassl_blackbox.trainers.blackbox.data import ordered_loader
from dassl_blackbox.trainers.blackbox.heads import scores, selection
from dassl_blackbox.trainers.blackbox.heads.scores import ScoreHead, centred
from dassl_blackbox.trainers.blackbox.heads.selection import Gathered
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import Meter, Prompt, Texts, TopK
from dassl_blackbox.trainers.blackbox.oracle.bill import Plan, total
from dassl_blackbox.trainers.sonar import affordable_texts, kept_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from support import assert_same, bill, build, d64, difference, own, printed, run, seeded

from support import sentence, test_logits  # isort: skip

close = torch.testing.assert_close
NAMES, FOLDS = list("abcd"), torch.arange(80) % 5


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=d64)


def gathered(texts=16, seed=0):
    features = normal(80, 6, seed=seed).float()
    rows = features @ normal(texts, 6, seed=seed + 1).float().T
    labels = (features @ normal(6, 4, seed=seed + 2).float()).argmax(1)
    return Gathered(rows, labels, torch.arange(80))


def fitted(answers, keep=12):
    further = answers.rows.shape[1] - 4
    head = ScoreHead(NAMES, further, min(keep, further))
    assert "components" in head.fit(answers, FOLDS)
    return head


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_the_fit_is_where_the_gradient_vanishes(penalty):
    """Of summed cross-entropies and both priors, so that it does not depend on the search."""
    prior, x, noise = normal(60, 3), normal(60, 5, seed=1), normal(60, 3, seed=3)
    labels = (prior + x @ normal(5, 3, seed=2) + noise).argmax(1)
    weight, bias = (part.requires_grad_() for part in scores.fit(prior, x, labels, penalty))
    loss = F.cross_entropy((prior + x @ weight + bias)[0], labels, reduction="sum")
    loss = loss + penalty / 2 * weight.square().sum() + bias.square().sum() / 2
    assert max(g.abs().max() for g in torch.autograd.grad(loss, (weight, bias))) < 1e-3


def test_a_part_of_many_views_is_of_all_classes(monkeypatch):
    monkeypatch.setattr(scores, "ROWS", 30)
    turns = torch.arange(60) % 10
    assert len(turns[::2].unique()) == 5 and len(turns[scores.sample(turns)].unique()) == 10


def test_components_that_rounding_filled_are_cut():
    rows, each = normal(300, 4) @ normal(4, 20, seed=1), torch.arange(300)
    rounded = (rows / 0.25).round() * 0.25
    noise = scores.resolution(rounded)
    parts = (rows, 0), (rounded, 0), (0 * rows, 0), (rounded, noise)
    read = [scores.whitening(Gathered(part, each, each), step) for part, step in parts]
    kept = [white.weight.shape[1] for white in read]
    assert kept == [4, 20, 0, 4]
    assert noise == pytest.approx(0.25, rel=0.2) and scores.resolution(rows) == 0


@pytest.mark.parametrize("rows", [torch.ones(6, 5), torch.randn(1, 5)])
def test_images_that_score_alike_teach_nothing(rows):
    """The head is as it begins, which is the model's answer about the classes."""
    head, index = ScoreHead(NAMES[:3], 2, 2), torch.arange(len(rows))
    assert "nothing is learnt" in head.fit(Gathered(rows, index % 3, index), index % 2)
    asked = torch.randn(7, 5)
    close(head(asked), centred(asked[:, :3], [3]))


def test_zero_shot_is_left_alone_where_held_out_images_want_nothing_else(monkeypatch):
    """The n-th image of a class looks like the class n places on, the next one like the next."""
    classes, turns, N = torch.arange(320) % 8, torch.arange(320) // 8 % 8, 24
    looks = 5 * normal(8, 60, seed=1)[(classes + turns) % 8] + normal(320, 60, seed=2)
    # two classes more, without images
    rows = torch.cat([F.one_hot(classes, 10) + normal(320, 10), looks], dim=1).float()
    new = turns > 2

    def labels(*trusts):
        monkeypatch.setattr(scores, "TRUSTS", trusts)
        head = ScoreHead([*map(str, range(10))], 60, 60)
        head.fit(Gathered(rows[:N], classes[:N], torch.arange(N)), turns[:N])
        return head(rows).argmax(1)[new]

    told, alone = classes[new], rows[:, :10].argmax(1)[new]
    assert torch.equal(labels(*scores.TRUSTS), alone)
    assert (labels(1.0) == told).sum() < 0.9 * (alone == told).sum()


def kept(head, rows):
    """The scores that evaluation asks about."""
    return torch.cat([rows[:, :4], rows[:, 4:][:, head.kept]], 1)


def test_fewer_texts_lead_to_the_same_answers_and_a_checkpoint_holds_them(tmp_path):
    """Six numbers lie behind the scores, and nine centred ones tell them."""
    answers = gathered(texts=40)
    short, full, first = (fitted(answers, keep=keep) for keep in (6, 36, 1))
    assert len(set(short.kept)) == 6 and short.kept != list(range(6))
    wanted, asked = full(answers.rows), kept(short, answers.rows)
    assert difference(short(asked), wanted) < 0.02
    assert difference(first(kept(first, answers.rows)), wanted) > 0.05  # leaves something out
    fresh = ScoreHead(NAMES, 3, 2)  # whatever their numbers
    short.texts, short.template = [f"text {n}" for n in range(36)], "my {}."
    torch.save(short.state_dict(), tmp_path / "head")
    fresh.load_state_dict(torch.load(tmp_path / "head", weights_only=True))
    assert_same(dict(fresh.state_dict()), dict(short.state_dict()))
    assert torch.equal(fresh(asked), short(asked))


def test_moved_it_keeps_what_it_knows_and_the_others_are_zero_shot_less_the_mean(monkeypatch):
    monkeypatch.setattr(selection, "agreement", lambda *parts: 0.7)
    answers, order = gathered(), [3, 1, 0, 2]
    head, moved = fitted(answers), fitted(answers)
    rows, z = answers.rows, centred(answers.rows[:, :4], [4])
    here = head(rows)
    moved.move([NAMES[c] for c in order], z[:, order].mean(0))
    asked = torch.cat([rows[:, order], rows[:, 4:]], 1)
    close(moved(asked), here[:, order])
    asked[:, [0, 3]] = normal(80, 2, seed=8).float()  # two new ones among those that it knows
    moved, new = fitted(answers), centred(asked[:, :4], [4])
    moved.move(["new", "b", "a", "newer"], new.mean(0))
    logits = moved(asked)
    for number, known in ((1, 1), (2, 0)):
        wanted = here[:, known] + head.scale[known] * (new[:, number] - z[:, known])
        close(logits[:, number], wanted, atol=1e-4, rtol=1e-4)
    level = (moved.scale * new.mean(0))[[1, 2]].mean()
    for number in (0, 3):
        less = head.bold * new[:, number].mean()
        wanted = head.fresh * (new[:, number] - less) + head.bold * level + head.level
        close(logits[:, number], wanted, atol=1e-4, rtol=1e-4)


def test_the_cache_learns_what_no_linear_map_of_scores_tells(tmp_path):
    """It is scikit-learn's kernel ridge regression, moves with its classes, and is saved."""
    signs = normal(1000, 4).float()
    labels = 2 * (signs[:, 0] * signs[:, 1] > 0) + (signs[:, 2] * signs[:, 3] > 0)
    rows, N = signs @ normal(4, 20, seed=1).float(), 600
    answers, head = Gathered(rows[:N], labels[:N], torch.arange(N)), ScoreHead(NAMES, 16, 8)
    head.fit(answers, torch.arange(N) % 5)
    told = head(kept(head, rows[N:]))
    assert (told.argmax(1) == labels[N:]).float().mean() > 0.7

    part = scores.Cache.of(answers, 4, scores.whitening(answers, 0, 0.5, mixed=False))
    own = F.one_hot(labels[:N], 4).float()
    peer = KernelRidge(alpha=0.3, kernel="rbf", gamma=0.75).fit(part.keys, own - own.mean(0))
    wanted = peer.predict(scores.unit_rows(rows[N:], part.axes))
    close(part(rows[N:]), torch.as_tensor(wanted).float(), atol=1e-3, rtol=1e-3)

    torch.save(head.state_dict(), tmp_path / "head")
    moved, order = ScoreHead(NAMES, 3, 2), [2, 0, 3, 1]
    moved.load_state_dict(torch.load(tmp_path / "head", weights_only=True))
    assert torch.equal(moved(kept(head, rows[N:])), told)
    moved.move([NAMES[c] for c in order], torch.zeros(4))
    asked = torch.cat([rows[N:][:, order], rows[N:, 4:]], 1)
    close(moved(asked), told[:, order], atol=0.05, rtol=0.05)


def test_a_number_an_image_and_list_changes_nothing():
    """So that log-probabilities serve as logits do."""
    scores, shift = normal(5, 9), normal(5, 1, seed=3)
    shifted = torch.cat([scores[:, :4] + shift, scores[:, 4:] - 2 * shift], dim=1)
    close(centred(shifted, [4]), centred(scores, [4]))


def test_pictures_unlike_any_other_keep_their_own_answers_and_two_alike_meet():
    rows, logits = torch.eye(8), normal(8, 3).float()
    close(ScoreHead(["a", "b", "c"]).pooled(logits, rows), logits.softmax(1))
    near = scores.neighbours(torch.cat([rows[:7], rows[:1]]))  # the last is the first
    alone = logits.softmax(1)
    found = scores.settled(alone, near, 3.0).exp().float()
    close(found[1:7], alone[1:7])
    wanted = (4 * alone[0] + 3 * alone[7]) / 7  # of F = (Y + 3 F') / 4, twice
    close(found[0], wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("of_one_class", [True, False])
def test_neighbours_are_believed_in_a_pool_where_they_served_held_out_images(of_one_class):
    number, classes = torch.arange(80), torch.arange(80) // 5 % 4
    groups = number // 5 if of_one_class else number // 20 * 5 + number % 5
    looks = 5 * normal(20, 16, seed=1)[groups] + normal(80, 16, seed=2)
    rows = torch.cat([F.one_hot(classes, 4) + normal(80, 4) / 3, looks], 1).float()
    head = ScoreHead(NAMES, 16, 16)
    head.fit(Gathered(rows, classes, number), FOLDS)
    single = head(rows).softmax(1)
    answers = head.pooled(head(rows), head.read(rows))
    assert (difference(answers, single) > 0.01) == of_one_class


def test_a_run_that_pools_tells_the_pooled_accuracy(data_root, tmp_path):
    options, pool = (*own("SONAR", VIEWS=1), "DATASET.NUM_SHOTS", 1), own("SONAR", POOL=True)
    a, b = tmp_path / "a", tmp_path / "b"
    assert run("SONAR", data_root, a, *options, *pool) == 0
    trainer = build("SONAR", data_root, tmp_path, *options, *pool)
    trainer.load_model(str(a))
    logits, rows = test_logits(trainer).tensor_split([10], dim=1)
    labels = torch.tensor([item.label for item in trainer.dm.dataset.test])
    answers = trainer.head.pooled(logits, rows)
    assert run("SONAR", data_root, b, *options, flags=("--eval-only", "--model-dir", a)) == 0
    for folder, found in ((a, answers), (b, logits)):
        assert printed(folder) == f"{100 * (found.argmax(1) == labels).float().mean():.1f}%"
    assert not torch.equal(answers.argmax(1), logits.argmax(1))
    assert bill(a)["evaluation"] == bill(b)["evaluation"]


def test_further_texts_are_drawn_from_the_bank(tmp_path):
    texts = further_texts("names", 30, ["tench", "cat"], "a {}.", seeded())
    assert len(set(texts.names)) == 30 and set(texts.names) <= set(generic_names()) - {"tench"}
    assert texts == further_texts("names", 30, ["tench", "cat"], "a {}.", seeded())
    assert texts.id != further_texts("names", 30, ["tench", "cat"], "a {}.", seeded(1)).id
    assert len(further_texts("names", 5000, ["tench"], "{}", seeded())) == 999
    phrases = further_texts("phrases", 5, ["cat", "dog"], "{}", seeded()).names
    assert [name.split()[-1] for name in phrases] == ["cat.", "dog.", "cat.", "dog.", "cat."]
    (tmp_path / "bank.txt").write_text("\ufeffa lamp\n\na chair\nCat\n")
    given = further_texts(str(tmp_path / "bank.txt"), 5, ["cat"], "my {}.", seeded())
    assert set(given.names) == {"a lamp", "a chair"} and given.template == "my {}."
    assert further_texts("names", 0, ["cat"], "{}", seeded()) is None


def test_the_content_of_a_bank_counts_and_evaluation_needs_none(data_root, tmp_path, capsys):
    bank, folder = tmp_path / "bank.txt", tmp_path / "run"
    options = *own("SONAR", VIEWS=0, BANK=bank), "INPUT.VIEWS", 1
    bank.write_text("lamp\nchair\n")
    assert run("SONAR", data_root, folder, *options) == 0
    out = capsys.readouterr().out
    assert "has 2 further texts of the 40" in out and "reads no INPUT.VIEWS" in out
    bank.write_text("lamp\ndoor\n")
    error = sentence(capsys, "SONAR", data_root, folder, *options, flags=["--skip-done"])
    assert "another configuration (TRAINER.SONAR.BANK" in error
    bank.unlink()
    flags = "--eval-only", "--model-dir", folder
    assert run("SONAR", data_root, tmp_path / "e", *options, flags=flags) == 0
    assert printed(tmp_path / "e") == printed(folder)
    assert "bank.txt" in sentence(capsys, "SONAR", data_root, tmp_path, *options)


def test_further_texts_are_scored_after_the_classes_and_charged(digits):
    oracle, names = LocalOracle(load_model("tiny")), ["one", "two", "three"]
    meter, top = Meter(oracle), TopK(oracle, 2)
    meter.set_classes(names)
    more = Texts.of(["a cat", "a dog", "a red circle", "four"])
    images = meter.upload(digits[:5])
    both = meter.query(images, Prompt(texts=more))
    assert both.shape == (1, 5, 7)
    # ceil((3 + 4) / 3) candidates; every image is seen once
    assert meter.counts["training"] == {"queries": 3, "image_queries": 5}
    assert difference(both[..., :3], meter.query(images, Prompt())) < 1e-6
    meter.set_classes(list(more.names))
    assert difference(both[..., 3:], meter.query(images, Prompt())) < 1e-5
    top.set_classes(names)
    answer = top.query(images, Prompt(texts=more)).exp()
    for part in (answer[..., :3], answer[..., 3:]):
        close(part.sum(-1), torch.ones(1, 5))


PRICES = st.tuples(st.integers(0, 20), st.integers(0, 300))


@given(st.lists(PRICES, min_size=1, max_size=4), st.integers(1, 4), PRICES, st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_plan_counts_what_its_steps_cost(prices, epochs, first, limit):
    plan = Plan(prices, epochs, {"queries": limit, "image_queries": 20 * limit}, first)
    steps = plan.steps
    costs = [plan.step(k) for k in range(epochs * len(prices))]
    assert total(costs) == total([*epochs * prices, first]) == plan.until(len(costs))
    assert plan.until(steps) == total(costs[:steps])
    assert not (limit and steps) or plan.until(steps) <= (limit, 20 * limit)
    more = total(costs[: steps + 1])
    assert steps == len(costs) or more[0] > limit > 0 or more[1] > 20 * limit > 0


@given(st.integers(1, 50), st.integers(0, 2000), st.integers(0, 400), st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_half_the_texts_in_evaluation_and_as_many_as_a_budget_pays_for(
    classes, texts, limit, images
):
    def cost(further):
        return 1 + -(-further // classes)

    found = kept_texts(classes, texts)
    assert min(classes, texts) <= found <= texts and cost(found) <= max(2, cost(texts) // 2)
    node = SimpleNamespace(SONAR=SimpleNamespace(TEXTS=texts))
    cfg = SimpleNamespace(TRAINER=node, ORACLE=SimpleNamespace(MAX_QUERIES=limit))
    count, batches = affordable_texts(cfg, classes, images), -(-images // 128)
    assert not limit or count == 0 or cost(count) * batches <= limit
    assert count == texts or cost(count + 1) * batches > limit > 0


@pytest.mark.parametrize("limit, views, texts", [(10, 1, 40), (4, 0, 30), (1, 0, 0)])
def test_a_budget_that_ends_first_leads_to_a_head(limit, views, texts, data_root, tmp_path, capsys):
    """30 images: a batch a view, of 1 + 40 / 10 queries; half of them for one of evaluation."""
    folder, options = tmp_path / "run", own("SONAR", VIEWS=2)
    assert run("SONAR", data_root, folder, "ORACLE.MAX_QUERIES", limit, *options) == 0
    out = capsys.readouterr().out
    used = {"queries": (1 + views) * (1 + texts // 10), "image_queries": 30 * (1 + views)}
    assert bill(folder)["training"] == used and "chosen on held-out images" in out
    assert (f"the budget pays for {texts} further texts of the 40" in out) == (texts < 40)
    # evaluation has no budget, and its plan is that of the head that it finds
    trainer = build("SONAR", data_root, tmp_path / "e", *options)
    trainer.load_model(str(folder))
    tested = trainer.evaluation(["test"])[0] + trainer.oracle.counts["evaluation"]["queries"]
    assert f"{trainer.test():.1f}%" == printed(folder)
    assert trainer.oracle.counts["evaluation"]["queries"] == tested
    if texts == 40:
        assert tested == bill(folder)["evaluation"]["queries"] == 2 * len(trainer.test_loader)
        assert len(trainer.prompt().texts) == 40
        assert len(trainer.head.kept) == len(trainer.prompt(tested=True).texts) == 10


def test_base_to_new(data_root, tmp_path, capsys):
    base, subset, view = tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", own("SONAR", VIEWS=1)
    assert run("SONAR", data_root, base, *view, subset, "base") == 0
    flags = "--eval-only", "--model-dir"
    for name, classes in (("new", 5), ("all", 10)):
        folder, options = tmp_path / name, (*view, subset, name)
        assert run("SONAR", data_root, folder, *options, flags=(*flags, base)) == 0
        assert "less the means over 15 training images" in capsys.readouterr().out
        zero = build("ZeroshotOracle", data_root, tmp_path / "zero", subset, name)
        # all further texts of every batch; the class texts of those that were learnt from
        queries = 1 + len(zero.test_loader) * (1 + 40 // classes)
        images = 15 + len(zero.dm.dataset.test)
        assert bill(folder)["evaluation"] == {"queries": queries, "image_queries": images}
        assert float(printed(folder)[:-1]) > 45  # of five classes, or ten
    alone, folder = (*own("SONAR", TEXTS=0, VIEWS=1), subset), tmp_path / "alone"
    assert run("SONAR", data_root, folder, *alone, "base") == 0
    flags = *flags, folder
    error = sentence(capsys, "SONAR", data_root, tmp_path / "x", *alone, "new", flags=flags)
    assert "cannot move to others" in error


def test_the_curve_has_what_was_fitted_and_top_k_answers_serve(data_root, tmp_path):
    """Before all answers are there nothing is fitted, and nothing is looked at."""
    options = "ORACLE.VAL_EVERY", 1, "TEST.FINAL_MODEL", "best_val", "ORACLE.TOP_K", 3
    assert run("SONAR", data_root, tmp_path, *options, *own("SONAR", VIEWS=9)) == 0
    ((queries, _, on_val),) = csv.reader((tmp_path / "val_curve.csv").open())
    assert int(queries) == bill(tmp_path)["training"]["queries"]
    assert f"* accuracy: {float(on_val):.1f}%" in (tmp_path / "log.txt").read_text()
    zero_shot = build("ZeroshotOracle", data_root, tmp_path / "0").test()
    assert float(printed(tmp_path)[:-1]) > zero_shot + 10


def test_classes_take_turns_and_are_told_without_images(data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probe, "QUERY_IMAGES", 8)
    trainer = build("GDA", data_root, tmp_path, "ORACLE.MAX_IMAGE_QUERIES", "8")
    items = trainer.dm.dataset.train_x
    loader = ordered_loader(trainer.cfg, trainer.pictures, items, batch_size=10, in_turns=True)
    for batch in loader:
        assert sorted(batch["label"].tolist()) == list(range(10))
        assert batch["label"].tolist() == [items[number].label for number in batch["index"]]
    trainer.train()
    assert "pays for 8 images; 2 classes have none" in capsys.readouterr().out
