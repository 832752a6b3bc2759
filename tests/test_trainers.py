"""The contract of every black-box trainer, by being registered; the white-box ceiling;
registration, defaults, schedules, files.
"""

import re
from copy import deepcopy

import pytest
import torch
from dassl.config import get_cfg_default
from dassl_blackbox.trainers.blackbox import trainer as loop
from dassl_blackbox.trainers.blackbox.config import TEMPLATES, extend_cfg
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import newest
from dassl_blackbox.trainers.blackbox.losses import mean_cross_entropies
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied
from dassl_blackbox.trainers.blackbox.probe import ProbeTrainer
from dassl_blackbox.trainers.blackbox.search import SearchTrainer
from support import (
    BLACK_BOX,
    OURS,
    TRAINED,
    assert_same,
    bill,
    build,
    difference,
    last_checkpoint,
    spied,
    test_logits,
)

trained = pytest.mark.parametrize("name", TRAINED)


def defaults():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


def words_key(name):
    """The option that starts a trainer from words; None where it has none."""
    return (
        f"TRAINER.{name.upper()}.CTX_INIT"
        if "CTX_INIT" in defaults().TRAINER.get(name.upper(), {})
        else None
    )


def in_use(trainer):
    """Copies of what the prompt changes, None where it changes nothing; of the head where nothing
    is searched.
    """
    if isinstance(trainer, ProbeTrainer):
        parts = trainer.head.state_dict().values()  # or tensors and plain values in a dictionary
        parts = [p for part in parts for p in (part.values() if isinstance(part, dict) else [part])]
        return [part.clone() for part in parts if isinstance(part, torch.Tensor)]
    pixels = torch.zeros(1, 3, *trainer.description.image_size)
    prompt = trainer.learner.eval()(pixels)
    found = prompt.contexts, prompt.image_tokens, prompt.pictures
    return [part if part is None else part.clone() for part in found]


@pytest.fixture(scope="module", params=TRAINED)
def run(request, data_root, budget, tmp_path_factory):
    """A spied run of five steps with some queries to spare: (name, trainer, spy, folder, what was
    in use before training, sizes that were asked).
    """
    name, out, asked = request.param, tmp_path_factory.mktemp(request.param), []
    trainer, spy = spied(build(name, data_root, out, *budget(name, 5, rest=1)))
    before = in_use(trainer)
    if isinstance(trainer, SearchTrainer):
        ask = trainer.optim.ask

        def counted():
            candidates = ask()
            asked.append(len(candidates))
            return candidates

        trainer.optim.ask = counted
    trainer.train()
    return name, trainer, spy, out, before, asked


# A run


def test_asked_is_metered_is_answered(run):
    _, trainer, spy, out, _, asked = run
    counts = bill(out)
    queries, images = trainer.plan.until(5)
    if asked:
        optimizer = trainer.optim
        assert len(asked) == 5 * optimizer.rounds and sum(asked) == 5 * optimizer.population
    assert counts["training"] == {"queries": queries, "image_queries": images}
    assert spy.queries == counts["training"]["queries"] + counts["evaluation"]["queries"]
    assert (
        spy.image_queries
        == counts["training"]["image_queries"] + counts["evaluation"]["image_queries"]
    )
    assert trainer.oracle.counts == counts


def test_evaluation_runs_after_a_spent_budget(run):
    _, trainer, _, out, _, _ = run
    queries, images = trainer.evaluation(["test"])
    assert images == len(trainer.dm.dataset.test) > 50
    assert bill(out)["evaluation"] == {"queries": queries, "image_queries": images}


def test_the_run_costs_what_no_train_announces(run, data_root, budget, tmp_path):
    name, _, _, out, _, _ = run
    line = build(name, data_root, tmp_path, *budget(name, 5, rest=1)).describe_cost()
    queries, images = (
        int(n.replace(",", ""))
        for n in re.search(r"([\d,]+) training queries, ([\d,]+) image queries", line).groups()
    )
    assert {"queries": queries, "image_queries": images} == bill(out)["training"]
    assert not (tmp_path / "queries.json").exists()


def test_nothing_that_crossed_the_wall_had_a_graph(run):
    _, _, spy, _, _, _ = run
    assert len(spy.graphs) > 10 and not any(spy.graphs)


def test_what_is_in_use_moved(run):
    _, trainer, _, _, before, _ = run
    after = in_use(trainer)
    assert any(not torch.equal(a, b) for a, b in zip(before, after) if a is not None)
    if isinstance(trainer, SearchTrainer):
        assert torch.equal(trainer.learner.theta, trainer.optim.solution)


def test_the_checkpoint_holds_everything(run):
    name, trainer, _, out, _, _ = run
    path = (
        out / trainer.model_name / f"model.pth.tar-{trainer.max_epoch}"
    )  # so that --load-epoch finds it
    assert newest(path.parent) == path
    state = torch.load(path, weights_only=True)
    assert {
        "state_dict",
        "epoch",
        "optimizer",
        "scheduler",
        "val_result",
        "blackbox",
    } <= state.keys()
    assert {"identity", "batches_done", "rng", "best_result", "counts"} <= state["blackbox"].keys()
    assert state["epoch"] < trainer.max_epoch  # the true one
    assert state["blackbox"]["counts"]["training"] == bill(out)["training"]
    assert state["blackbox"]["identity"]["method"] == name
    assert_same(state["state_dict"], trainer.learner.state_dict())
    saved = {part: part in state and state[part] is not None for part in trainer.parts()}
    assert saved == {name: part is not None for name, part in trainer.parts().items()}


def test_evaluation_elsewhere_with_another_seed_is_the_same_to_the_bit(run, data_root, tmp_path):
    name, trainer, _, out, _, _ = run
    fresh = build(name, data_root, tmp_path, seed=99)
    with pytest.raises(AssertionError):
        assert_same(fresh.learner.state_dict(), trainer.learner.state_dict())
    fresh.load_model(str(out))
    assert torch.equal(test_logits(fresh), test_logits(trainer))
    assert fresh.test() == trainer.test()


def test_the_seed_decides_the_run(run, data_root, budget, tmp_path):
    name, trainer, _, _, _, _ = run
    for seed in (1, 0):
        other = build(name, data_root, tmp_path / str(seed), *budget(name, 5, rest=1), seed=seed)
        other.train()
        states = (dict(part.learner.state_dict()) for part in (other, trainer))
        if seed == 1:
            assert_same(*states)
        else:
            with pytest.raises(AssertionError):
                assert_same(*states)


def test_what_the_model_draws_while_it_is_built_does_not_reach_the_loaders(
    data_root, tmp_path, monkeypatch
):
    def drawing(*args, **kwargs):
        torch.rand(3)
        return build_oracle(*args, **kwargs)

    build_oracle, batches = loop.build_oracle, []
    for patch in (build_oracle, drawing):
        monkeypatch.setattr(loop, "build_oracle", patch)
        batches.append(next(iter(build("ZIP", data_root, tmp_path).train_loader_x)))
    assert batches[0]["impath"] == batches[1]["impath"] and torch.equal(
        batches[0]["img"], batches[1]["img"]
    )


def test_fitness_is_the_mean_cross_entropy_of_each_candidate():
    logits, labels = (
        torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 2, 1, 0]),
    )
    expected = torch.stack([-part.log_softmax(-1)[range(6), labels].mean() for part in logits])
    assert torch.allclose(mean_cross_entropies(logits, labels), expected)


# Budget, epochs, continuing

# whose losses or steps follow the share of the budget that is spent
UNBOUND = {"BAR": ("TRAINER.BAR.A_LAST", 10.0), "CraFT": ("TRAINER.CRAFT.LAMBDA", 0.0)}


@trained
def test_continuing_a_finished_run_equals_a_larger_budget_from_the_start(
    name, data_root, budget, tmp_path
):
    for out, options in (
        ("two lives", budget(name, 4, rest=1)),
        ("two lives", budget(name, 8)),
        ("one life", budget(name, 8)),
    ):
        build(name, data_root, tmp_path / out, *options, *UNBOUND.get(name, ())).train()
    one, two = (last_checkpoint(tmp_path / out) for out in ("one life", "two lives"))
    assert_same(one["state_dict"], two["state_dict"])
    assert (one["epoch"], one["blackbox"]["batches_done"]) == (
        two["epoch"],
        two["blackbox"]["batches_done"],
    )
    assert bill(tmp_path / "one life")["training"] == bill(tmp_path / "two lives")["training"]


@trained
def test_epochs_that_end_before_the_budget_say_what_is_left(
    name, data_root, budget, tmp_path, capsys
):
    options = budget(name, 40)
    trainer = build(name, data_root, tmp_path, *options, "OPTIM.MAX_EPOCH", 2)
    trainer.train()
    spent = bill(tmp_path)["training"]["queries"]
    assert 0 < spent == trainer.plan.until(trainer.steps_total())[0] < options[1]
    line = (
        f"OPTIM.MAX_EPOCH 2 ended training with {options[1] - spent:,} of {options[1]:,} queries "
        "left"
    )
    # views of the training set are read once: there is nothing to raise
    assert (line in capsys.readouterr().out) == isinstance(trainer, SearchTrainer)
    state = last_checkpoint(tmp_path)
    assert (state["epoch"], state["blackbox"]["batches_done"]) == (2, 0)


@trained
def test_image_queries_are_a_budget_of_their_own(name, data_root, tmp_path):
    _, images = build(name, data_root, tmp_path).plan.step(0)
    trainer = build(
        name,
        data_root,
        tmp_path,
        "ORACLE.MAX_QUERIES",
        0,
        "ORACLE.MAX_IMAGE_QUERIES",
        3 * images - 1,
    )
    trainer.train()
    assert bill(tmp_path)["training"]["image_queries"] == 2 * images


# Selection on val


class Forbidden:
    """A loader that must not be read until it is opened."""

    def __init__(self, loader):
        self.loader, self.open = loader, False

    def __iter__(self):
        assert self.open, "the test split was looked at during training"
        return iter(self.loader)

    def __len__(self):
        return len(self.loader)


def test_best_val_selects_on_val_and_never_on_test(run, data_root, budget, tmp_path):
    name, plain = run[:2]
    trainer = build(
        name, data_root, tmp_path, *budget(name, 5, rest=1), "TEST.FINAL_MODEL", "best_val"
    )
    trainer.test_loader, test, end, results = (
        Forbidden(trainer.test_loader),
        trainer.test,
        trainer.after_train,
        [],
    )

    def tested(split=None):
        result = test(split)
        results.append((split, result, deepcopy(trainer.learner.state_dict())))
        return result

    def ended():
        trainer.test_loader.open = True
        end()

    trainer.test, trainer.after_train = tested, ended
    trainer.train()
    on_val = [entry for entry in results if entry[0] == "val"]
    # what is fitted at the end is looked at once it is
    assert len(on_val) == 1 if isinstance(trainer, ProbeTrainer) else len(on_val) >= 2
    assert [split for split, _, _ in results[len(on_val) :]] == [None]
    # where the budget ended is looked at too, and looking changes nothing
    assert_same(on_val[-1][2], plain.learner.state_dict())
    best = max(result for _, result, _ in on_val)
    found = next(found for _, result, found in on_val if result == best)
    assert_same(results[-1][2], found)  # what is deployed
    state = torch.load(tmp_path / trainer.model_name / "model-best.pth.tar", weights_only=True)
    assert state["val_result"] == best
    assert_same(dict(state["state_dict"]), dict(found))
    # the pointer is not redirected
    assert newest(tmp_path / trainer.model_name).name != "model-best.pth.tar"
    passes = [*["val"] * len(on_val), "test"]
    assert bill(tmp_path)["evaluation"]["queries"] == trainer.evaluation(passes)[0]


@pytest.mark.parametrize(
    "option", [("TEST.FINAL_MODEL", "best_val"), ("ORACLE.VAL_EVERY", 10), ("TEST.SPLIT", "val")]
)
@pytest.mark.parametrize("val", ["none", "the test split"])
@pytest.mark.parametrize("name", [name for name in OURS if name != "ZeroshotOracle"])
def test_val_that_is_missing_or_test_is_refused(name, vary_root, val, option, tmp_path):
    root = vary_root(lambda split: split.update(val=[] if val == "none" else split["test"]))
    with pytest.raises(BlackBoxError, match="Digits has no validation split of its own"):
        build(name, root, tmp_path / "out", *option).train()
    assert not (tmp_path / "out").exists()


# Where it starts

# what else changes the model before the first step
PLAIN = {"CraFT": ("TRAINER.CRAFT.HEAD", False), "BPTVLM": ("TRAINER.BPTVLM.N_IMAGE", 0)}


@pytest.mark.parametrize("name", [name for name in OURS if words_key(name)])
def test_at_step_0_from_the_templates_words_it_is_zero_shot(name, data_root, tmp_path):
    zeroshot = build("ZeroshotOracle", data_root, tmp_path / "zero-shot")
    trainer = build(
        name,
        data_root,
        tmp_path / "run",
        words_key(name),
        TEMPLATES["Digits"].split(" {}")[0],
        *PLAIN.get(name, ()),
    )
    with torch.no_grad():
        assert trainer.test() == zeroshot.test()
        if name in BLACK_BOX:
            assert difference(test_logits(trainer), test_logits(zeroshot)) < 1e-5


def test_zero_shot_spends_no_training_query(data_root, tmp_path):
    trainer, spy = spied(build("ZeroshotOracle", data_root, tmp_path))
    trainer.train()
    assert bill(tmp_path)["training"] == {"queries": 0, "image_queries": 0}
    assert bill(tmp_path)["evaluation"] == {
        "queries": spy.queries,
        "image_queries": len(trainer.dm.dataset.test),
    }
    assert not any(spy.graphs)


@trained
def test_what_a_method_needs_must_be_granted(name, data_root, tmp_path):
    needs = build(name, data_root, tmp_path / "out").needs
    for missing in needs:
        with pytest.raises(
            AccessDenied, match=f"^{name} asked for '{missing}', which this oracle does not grant"
        ):
            build(
                name,
                data_root,
                tmp_path / "out",
                "ORACLE.GRANTS",
                [grant for grant in needs if grant != missing],
            )
    assert not (tmp_path / "out").exists()


# White-box


@pytest.fixture(scope="module")
def white_box(data_root, tmp_path_factory):
    """A trained ceiling, its steps' losses, the weights before, the pictures encoded meanwhile."""
    out = tmp_path_factory.mktemp("WhiteBox")
    trainer = build(
        "WhiteBox",
        data_root,
        out,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        30,
        "OPTIM.MAX_EPOCH",
        12,
        "OPTIM.LR",
        0.05,
        "INPUT.TRANSFORMS",
        ["normalize"],
    )
    weights = {k: v.clone() for k, v in trainer.loaded.model.state_dict().items()}
    losses, step = [], trainer.forward_backward
    encoded, encode = [], trainer.local.encode_pixels

    def kept(batch):
        summary = step(batch)
        losses.append(summary["loss"])
        return summary

    def noted(pixels):
        encoded.append(len(pixels))
        return encode(pixels)

    trainer.forward_backward, trainer.local.encode_pixels = kept, noted
    trainer.train()
    return trainer, losses, weights, encoded, out


def test_the_white_box_learns_the_context_alone(white_box):
    trainer, losses, weights, _, _ = white_box
    assert losses[-1] < 0.9 * losses[0]
    assert [name for name, _ in trainer.model.named_parameters()] == ["ctx"]
    assert_same(dict(trainer.loaded.model.state_dict()), weights)
    assert all(p.grad is None and not p.requires_grad for p in trainer.loaded.model.parameters())


def test_the_white_box_encodes_a_picture_once(white_box):
    trainer, losses, _, encoded, _ = white_box
    pictures = len(trainer.dm.dataset.train_x) + len(trainer.dm.dataset.test)
    assert len(losses) == 12 and sum(encoded) == pictures


def test_the_white_box_encodes_its_prompt_once_an_evaluation(white_box, monkeypatch):
    trainer, prompts = white_box[0], []
    batches = [batch["img"] for batch in trainer.test_loader]
    logits = [trainer.model_inference(images).detach() for images in batches]  # as in training
    text = trainer.local.text
    monkeypatch.setattr(trainer.local, "text", lambda ctx: prompts.append(ctx) or text(ctx))
    trainer.local.last = None
    with torch.no_grad():
        evaluated = [trainer.model_inference(images) for images in batches]
    assert len(batches) > 1 and len(prompts) == 1
    assert_same(evaluated, logits)


def test_the_white_box_counts_no_query(white_box):
    trainer, _, _, _, out = white_box
    assert not (out / "queries.json").exists() and not trainer.counted
    assert set(
        torch.load(out / "prompt_learner" / "model.pth.tar-12", weights_only=True)["state_dict"]
    ) == {"ctx"}


# On a GPU


@pytest.mark.cuda
@trained
def test_a_run_on_cuda(name, data_root, budget, tmp_path):
    trainer = build(name, data_root, tmp_path, *budget(name, 3), "USE_CUDA", True)
    before = in_use(trainer)
    trainer.train()
    assert trainer.learner.theta.is_cuda
    assert any(not torch.equal(a, b) for a, b in zip(before, in_use(trainer)) if a is not None)
    assert bill(tmp_path)["training"]["queries"] == trainer.plan.until(3)[0]
    cpu = build(name, data_root, tmp_path / "cpu")
    cpu.load_model(str(tmp_path))
    assert difference(test_logits(cpu), test_logits(trainer).cpu()) < 1e-3
