"""SONAR: further texts and their cost, the whitening, the convex head, and what a run leaves."""

import csv

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox import billed, engine
from dassl_blackbox.trainers.blackbox.collector import Collector, Gathered
from dassl_blackbox.trainers.blackbox.data.loaders import ordered_loader
from dassl_blackbox.trainers.blackbox.heads import AffineScores
from dassl_blackbox.trainers.blackbox.heads.affine import centred
from dassl_blackbox.trainers.blackbox.heads.convex import PENALTIES, errors, fit, held_out_path
from dassl_blackbox.trainers.blackbox.heads.scores import fit_scores, held_out_rows
from dassl_blackbox.trainers.blackbox.heads.whitening import Whitening, components, resolution
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import Meter, Prompt, Texts, TopK
from dassl_blackbox.trainers.blackbox.plan import Cost, Plan
from dassl_blackbox.trainers.blackbox.probes import generic_names, probe_texts
from dassl_blackbox.trainers.blackbox.run.errors import BlackBoxError
from hypothesis import given, settings
from hypothesis import strategies as st
from support import accuracy, assert_same, bill, build, difference, run, seeded, trained

ONE_VIEW = "TRAINER.SONAR.VIEWS", "1"


def problem(N=60, r=5, C=3, seed=0):
    g = seeded(seed)
    x, prior = torch.randn(N, r, generator=g), torch.randn(N, C, generator=g)
    weight = torch.randn(r, C, generator=g)
    return prior, x, (prior + x @ weight + torch.randn(N, C, generator=g)).argmax(1)


# ------------------------------------------------------------------ the convex problem


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_the_fit_is_where_the_gradient_vanishes(penalty):
    prior, x, labels = problem()
    found = fit(prior.double(), x.double(), labels, penalty)
    parts = [part.clone().requires_grad_() for part in (found.scale, found.weight, found.bias)]
    logits = parts[0] * prior + x.double() @ parts[1] + parts[2]
    loss = F.cross_entropy(logits[0], labels) + penalty / 2 * parts[1].square().sum()
    gradients = torch.autograd.grad(loss, parts)
    assert max(g.abs().max() for g in gradients) < 1e-4


def test_problems_at_once_are_those_one_by_one():
    prior, x, labels = (part.double() if part.is_floating_point() else part for part in problem())
    seen = torch.arange(60) % 3 != torch.arange(3)[:, None]
    together = fit(prior, x, labels, 0.01, seen)
    for k in range(3):
        alone = fit(prior[seen[k]], x[seen[k]], labels[seen[k]], 0.01)
        torch.testing.assert_close(together.weight[k], alone.weight[0], atol=2e-3, rtol=0)


def test_the_path_judges_rows_that_were_held_out():
    prior, x, labels = problem()
    held_out = torch.arange(60) % 3 == torch.arange(3)[:, None]
    path = held_out_path(prior, x, labels, held_out)
    penalty = list(path)[2]
    total = 0.0
    for k in range(3):
        rows = ~held_out[k]
        found = fit(prior[rows], x[rows], labels[rows], penalty)
        total += errors(found, prior, x, labels)[0, held_out[k]].sum().item()
    assert abs(path[penalty] - total / 60) < 1e-2
    assert list(path) == list(PENALTIES[: len(path)])
    chosen = min(path, key=path.get)
    assert chosen not in (PENALTIES[0], PENALTIES[-1])


# ------------------------------------------------------------------ whitening


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_components_are_those_of_the_decomposition(shape):
    rows = torch.randn(*shape, generator=seeded(), dtype=torch.float64)
    values, vectors = components(rows)
    torch.testing.assert_close(values, torch.linalg.svdvals(rows))
    torch.testing.assert_close((rows @ vectors).norm(dim=0), values)


def test_whitening_leaves_the_power_of_the_values():
    rows = torch.randn(200, 6, generator=seeded(), dtype=torch.float64) * torch.logspace(0, -2, 6)
    whitening = Whitening(rows)
    for power in (0.0, 0.7, 1.0):
        x = whitening(rows, power)
        assert abs(x.square().sum(1).mean() - 1) < 1e-9
        lengths = x.norm(dim=0)
        wanted = whitening.values ** (1 - power)
        torch.testing.assert_close(lengths / lengths[0], wanted / wanted[0])


def test_components_below_the_noise_are_cut():
    g = seeded()
    rows = torch.randn(300, 4, generator=g, dtype=torch.float64)
    rows = rows @ torch.randn(4, 20, generator=g, dtype=torch.float64)
    rounded = (rows / 0.25).round() * 0.25
    assert len(Whitening(rows).values) == 4
    assert len(Whitening(rounded).values) == 20  # rounding fills the other directions
    assert len(Whitening(rounded, resolution(rounded)).values) == 4


@pytest.mark.parametrize("step", [0.01, 0.1, 0.0])
def test_the_step_of_rounded_answers_is_measured(step):
    scores = 5 + torch.randn(100, 80, generator=seeded())
    if step:
        scores = (scores / step).round() * step
    assert abs(resolution(scores) - step) <= 0.2 * step
    assert resolution(scores.half().float()) > 0


# ------------------------------------------------------------------ the head


def gathered(N=80, parts=(4, 12), seed=0):
    g = seeded(seed)
    features, texts = torch.randn(N, 6, generator=g), torch.randn(sum(parts), 6, generator=g)
    labels = (features @ torch.randn(6, parts[0], generator=g)).argmax(1)
    return Gathered(features @ texts.T, labels, torch.arange(N))


def test_a_fresh_head_is_the_answer_about_the_classes():
    scores = torch.randn(7, 9)
    assert torch.equal(AffineScores([4, 5])(scores), scores[:, :4])


@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_log_probabilities_lead_to_the_same_answers(a, b, seed):
    """They are logits less a number an image, another one for every list of texts."""
    answers, parts = gathered(seed=seed), (4, 12)
    scores, folds = answers.rows, torch.arange(80) % 5
    shift = torch.cat([torch.full((80, 4), a), torch.full((80, 12), b)], dim=1)
    shift = shift * torch.rand(80, 1, generator=seeded(9))
    heads = AffineScores(parts), AffineScores(parts)
    fit_scores(heads[0], answers, folds)
    fit_scores(heads[1], Gathered(scores + shift, answers.labels, answers.index), folds)
    assert (centred(scores, parts) - centred(scores + shift, parts)).abs().max() < 1e-4
    # two settings of the head can be worth the same to a digit
    a, b = heads[0](scores), heads[1](scores + shift)
    assert (a.argmax(1) == b.argmax(1)).float().mean() > 0.95


def test_the_head_is_the_fit_and_needs_its_further_texts():
    answers, folds = gathered(), torch.arange(80) % 5
    head, alone = AffineScores([4, 12]), AffineScores([4])
    line = fit_scores(head, answers, folds)
    assert "penalty" in line
    fit_scores(alone, Gathered(answers.rows[:, :4], answers.labels, answers.index), folds)

    def right(logits):
        return (logits.argmax(1) == answers.labels).float().mean()

    assert right(head(answers.rows)) > right(alone(answers.rows[:, :4])) > 0.25


@pytest.mark.parametrize("images, views, sets", [(1, 5, 2), (1, 1, 1), (2, 5, 1)])
def test_where_images_are_alone_in_their_class_views_are_held_out_too(images, views, sets):
    """A class is held out with its only image, and any learning about the others harms it."""
    index, labels = torch.arange(4 * images).repeat(views), torch.arange(4).repeat(images * views)
    answers = Gathered(torch.randn(len(index), 16, generator=seeded()), labels, index)
    problems = held_out_rows(answers, torch.arange(4 * images) % 2)
    assert [len(rows) for rows in problems] == [2, views][:sets]
    assert all((rows.sum(0) == 1).all() for rows in problems)
    assert all(len(set(index[row].tolist())) == row.sum() for rows in problems[1:] for row in rows)
    line = fit_scores(AffineScores([4, 12]), answers, torch.arange(4 * images) % 2)
    assert ("and views" in line) == (sets == 2)


def test_centring_is_by_list():
    rows = centred(torch.randn(5, 7), (3, 4))
    assert rows[:, :3].sum(1).abs().max() < 1e-5 and rows[:, 3:].sum(1).abs().max() < 1e-5


# ------------------------------------------------------------------ further texts


def test_further_texts_are_drawn_from_the_bank(tmp_path):
    texts = probe_texts("names", 30, ["tench", "cat"], "a {}.", seeded())
    assert len(set(texts.names)) == 30 and set(texts.names) <= set(generic_names()) - {"tench"}
    assert texts == probe_texts("names", 30, ["tench", "cat"], "a {}.", seeded())
    assert texts.id != probe_texts("names", 30, ["tench", "cat"], "a {}.", seeded(1)).id
    assert len(probe_texts("names", 5000, ["tench"], "{}", seeded())) == 999
    phrases = probe_texts("phrases", 5, ["cat", "dog"], "{}", seeded()).names
    assert [name.split()[-1] for name in phrases] == ["cat.", "dog.", "cat.", "dog.", "cat."]
    (tmp_path / "bank.txt").write_text("\ufeffa lamp\n\na chair\nCat\n")
    own = probe_texts(str(tmp_path / "bank.txt"), 5, ["cat"], "my {}.", seeded())
    assert set(own.names) == {"a lamp", "a chair"} and own.template == "my {}."
    assert probe_texts("names", 0, ["cat"], "{}", seeded()) is None
    for path in ("no such file", tmp_path):
        with pytest.raises(BlackBoxError, match="BANK"):
            probe_texts(str(path), 5, ["cat"], "{}", seeded())


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


def test_views_of_its_own_are_none_of_the_input_s(data_root, tmp_path):
    rows = []
    for views in (0, 1):
        options = "INPUT.VIEWS", views, *ONE_VIEW, "TRAINER.SONAR.PROBES", 0
        trainer = trained("SONAR", data_root, tmp_path / str(views), *options)
        rows.append(trainer.head_optim.kept)
    assert_same(*rows)


@pytest.mark.parametrize("rows", [torch.ones(6, 3), torch.zeros(1, 3)])
def test_images_that_score_alike_teach_nothing(rows):
    head, index = AffineScores([3]), torch.arange(len(rows))
    gathered = Gathered(rows, index % 3, index)
    assert "nothing is learnt" in fit_scores(head, gathered, index % 2)
    assert torch.equal(head(rows), AffineScores([3])(rows))


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


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 400),
)
@settings(max_examples=100, deadline=None)
def test_a_plan_counts_what_its_steps_cost(sizes, epochs, candidates, each, features, limit):
    plan = Plan(sizes, epochs, candidates, each, features=features, text_once=True)
    steps = plan.steps({"queries": limit, "image_queries": 0})
    costs = [plan.step(k) for k in range(epochs * len(sizes))]
    assert plan.until(steps) == sum(costs[:steps], Cost())
    assert not limit or plan.until(steps).queries <= limit
    assert steps == len(costs) or sum(costs[: steps + 1], Cost()).queries > limit > 0


# ------------------------------------------------------------------ runs


def test_a_run_is_billed_for_what_its_plan_says(data_root, tmp_path, capsys):
    trainer = build("SONAR", data_root, tmp_path, "TRAINER.SONAR.VIEWS", "2")
    assert "15 training queries" in trainer.describe_cost()  # 30 images: a batch a view
    trainer.train()
    assert bill(tmp_path)["training"] == {"queries": 15, "image_queries": 90}
    assert isinstance(trainer.head_optim, Collector)
    fresh, found = AffineScores([10, 40]), trainer.head
    assert not torch.equal(found.matrix, fresh.matrix)


def test_a_budget_that_ends_first_still_leads_to_a_head(data_root, tmp_path, capsys):
    for budget, views in ((10, 1), (5, 0)):
        folder = tmp_path / str(budget)
        assert run("SONAR", data_root, folder, "ORACLE.MAX_QUERIES", str(budget)) == 0
        assert bill(folder)["training"]["image_queries"] == 30 * (1 + views)
        assert "chosen on held-out images" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("name", ["SONAR", "GDA"])
def test_the_curve_has_what_was_fitted(name, data_root, tmp_path, capsys):
    """Before all answers are there nothing is fitted, and nothing is looked at."""
    options = "ORACLE.VAL_EVERY", 1, "TEST.FINAL_MODEL", "best_val"
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
    for module in (billed, engine):
        monkeypatch.setattr(module, "QUERY_IMAGES", 8)
    trainer = build("GDA", data_root, tmp_path, "ORACLE.MAX_IMAGE_QUERIES", "8")
    trainer.train()
    assert "pays for 8 images, one of each of so many classes; of the other 2" in (
        capsys.readouterr().out
    )


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
