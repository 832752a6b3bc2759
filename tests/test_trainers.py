"""The contract of every black-box trainer, by being registered; the white-box ceiling."""

import re
from copy import deepcopy

import pytest
import torch
from dassl_blackbox.trainers.blackbox import engine
from dassl_blackbox.trainers.blackbox.config import TEMPLATES
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
    own,
    seeded,
    spied,
    test_logits,
)

trained = pytest.mark.parametrize("name", TRAINED)
# a search, one with a teacher that reads a loader of its own, a probe
KINDS = ["ZIP", "CraFT", "GDA"]
SUM = "queries", "image_queries"


def in_use(trainer):
    """Copies of what the prompt changes, None where it changes nothing; of the head where nothing
    is searched.
    """
    if isinstance(trainer, ProbeTrainer):
        parts = trainer.head.state_dict().values()  # or tensors and plain values in a dictionary
        parts = [p for part in parts for p in (part.values() if isinstance(part, dict) else [part])]
        return [part.clone() for part in parts if isinstance(part, torch.Tensor)]
    prompt = trainer.learner.eval()(torch.zeros(1, 3, *trainer.description.image_size))
    found = prompt.contexts, prompt.image_tokens, prompt.pictures
    return [part if part is None else part.clone() for part in found]


def assert_moved(before, after):
    assert any(not torch.equal(a, b) for a, b in zip(before, after) if a is not None)


@pytest.fixture(scope="module", params=TRAINED)
def run(request, data_root, budget, tmp_path_factory):
    """A spied run of five steps with some queries to spare: (name, trainer, spy, folder, what was
    in use before training, numbers of candidates that were asked about).
    """
    name, out, asked = request.param, tmp_path_factory.mktemp(request.param), []
    trainer, spy = spied(build(name, data_root, out, *budget(name, 5, rest=1)))
    before, ask = in_use(trainer), getattr(trainer.optim, "ask", None)

    def counted():
        candidates = ask()
        asked.append(len(candidates))
        return candidates

    if ask:
        trainer.optim.ask = counted
    trainer.train()
    return name, trainer, spy, out, before, asked


# A run


def test_asked_is_announced_is_metered_is_answered(run, data_root, budget, tmp_path):
    """And evaluation runs after a spent budget."""
    name, trainer, spy, out, _, asked = run
    counts, optimizer = bill(out), trainer.optim
    assert trainer.oracle.counts == counts
    assert counts["training"] == dict(zip(SUM, trainer.plan.until(5)))
    assert counts["evaluation"] == dict(zip(SUM, trainer.evaluation(["test"])))
    assert counts["evaluation"]["image_queries"] == len(trainer.dm.dataset.test) > 50
    for unit in SUM:
        assert getattr(spy, unit) == counts["training"][unit] + counts["evaluation"][unit]
    if isinstance(trainer, SearchTrainer):
        assert len(asked) == 5 * optimizer.rounds and sum(asked) == 5 * optimizer.population
    line = build(name, data_root, tmp_path, *budget(name, 5, rest=1)).describe_cost()
    told = re.search(r"([\d,]+) training queries, ([\d,]+) image queries", line).groups()
    assert [int(number.replace(",", "")) for number in told] == [*counts["training"].values()]
    assert not (tmp_path / "queries.json").exists()


def test_nothing_that_crossed_the_wall_had_a_graph_and_what_is_in_use_moved(run):
    _, trainer, spy, _, before, _ = run
    assert len(spy.graphs) > 10 and not any(spy.graphs)
    assert_moved(before, in_use(trainer))
    if isinstance(trainer, SearchTrainer):
        assert torch.equal(trainer.learner.theta, trainer.optim.solution)


def test_the_checkpoint_holds_everything(run):
    name, trainer, _, out, _, _ = run
    # so that --load-epoch finds it
    path = out / trainer.model_name / f"model.pth.tar-{trainer.max_epoch}"
    assert newest(path.parent) == path
    state = torch.load(path, weights_only=True)
    dassls = {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    ours = {"identity", "batches_done", "rng", "best_result", "counts"}
    assert dassls <= state.keys() and ours <= state["blackbox"].keys()
    assert state["epoch"] < trainer.max_epoch  # the true one
    assert state["blackbox"]["counts"]["training"] == bill(out)["training"]
    assert state["blackbox"]["identity"]["method"] == name
    assert_same(state["state_dict"], trainer.learner.state_dict())
    for part, found in trainer.parts().items():
        assert (state.get(part) is None) == (found is None), part


def test_evaluation_elsewhere_with_another_seed_is_the_same_to_the_bit(run, data_root, tmp_path):
    name, trainer, _, out, _, _ = run
    fresh = build(name, data_root, tmp_path, seed=99)
    with pytest.raises(AssertionError):
        assert_same(fresh.learner.state_dict(), trainer.learner.state_dict())
    fresh.load_model(str(out))
    assert torch.equal(test_logits(fresh), test_logits(trainer))
    assert fresh.test() == trainer.test()


def test_what_the_model_draws_while_it_is_built_does_not_reach_the_loaders(
    data_root, tmp_path, monkeypatch
):
    def drawing(*args, **kwargs):
        torch.rand(3)
        return build_oracle(*args, **kwargs)

    build_oracle, batches = engine.build_oracle, []
    for patch in (build_oracle, drawing):
        monkeypatch.setattr(engine, "build_oracle", patch)
        batches.append(next(iter(build("ZIP", data_root, tmp_path).train_loader_x)))
    assert batches[0]["impath"] == batches[1]["impath"]
    assert torch.equal(batches[0]["img"], batches[1]["img"])


def test_fitness_is_the_mean_cross_entropy_of_each_candidate():
    logits, labels = torch.randn(4, 6, 3, generator=seeded()), torch.tensor([0, 1, 2, 2, 1, 0])
    expected = torch.stack([-part.log_softmax(-1)[range(6), labels].mean() for part in logits])
    torch.testing.assert_close(mean_cross_entropies(logits, labels), expected)


# Budget, epochs, continuing

# whose losses or steps follow the share of the budget that is spent
UNBOUND = {"BAR": own("BAR", A_LAST=10.0), "CraFT": own("CraFT", LAMBDA=0.0)}


@trained
def test_continuing_a_finished_run_equals_a_larger_budget_from_the_start(
    name, data_root, budget, tmp_path
):
    spare, whole = budget(name, 4, rest=1), budget(name, 8)
    for life, limit in (("two", spare), ("two", whole), ("one", whole)):
        build(name, data_root, tmp_path / life, *limit, *UNBOUND.get(name, ())).train()
    one, two = (last_checkpoint(tmp_path / life) for life in ("one", "two"))
    assert_same(one["state_dict"], two["state_dict"])
    assert one["epoch"] == two["epoch"]
    assert one["blackbox"]["batches_done"] == two["blackbox"]["batches_done"]
    assert bill(tmp_path / "one")["training"] == bill(tmp_path / "two")["training"]


@pytest.mark.parametrize("name", KINDS)
def test_epochs_that_end_before_the_budget_say_what_is_left(
    name, data_root, budget, tmp_path, capsys
):
    options = budget(name, 40)
    trainer = build(name, data_root, tmp_path, *options, "OPTIM.MAX_EPOCH", 2)
    trainer.train()
    spent = bill(tmp_path)["training"]["queries"]
    assert 0 < spent == trainer.plan.until(trainer.steps_total())[0] < options[1]
    left = f"with {options[1] - spent:,} of {options[1]:,} queries left"
    told = f"OPTIM.MAX_EPOCH 2 ended training {left}" in capsys.readouterr().out
    # views of the training set are read once: there is nothing to raise
    assert told == isinstance(trainer, SearchTrainer)
    state = last_checkpoint(tmp_path)
    assert (state["epoch"], state["blackbox"]["batches_done"]) == (2, 0)


@pytest.mark.parametrize("name", KINDS)
def test_image_queries_are_a_budget_of_their_own(name, data_root, tmp_path):
    _, images = build(name, data_root, tmp_path).plan.step(0)
    options = "ORACLE.MAX_QUERIES", 0, "ORACLE.MAX_IMAGE_QUERIES", 3 * images - 1
    build(name, data_root, tmp_path, *options).train()
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


@pytest.mark.parametrize("name", [*KINDS, "SONAR"])
def test_best_val_selects_on_val_and_never_on_test(name, data_root, budget, tmp_path):
    plain = build(name, data_root, tmp_path / "plain", *budget(name, 5, rest=1))
    plain.train()
    options = *budget(name, 5, rest=1), "TEST.FINAL_MODEL", "best_val"
    trainer = build(name, data_root, tmp_path / "best", *options)
    trainer.test_loader = Forbidden(trainer.test_loader)
    test, end, results = trainer.test, trainer.after_train, []

    def tested(split=None):
        result = test(split)
        results.append((split, result, deepcopy(trainer.learner.state_dict())))
        return result

    def ended():
        trainer.test_loader.open = True
        end()

    trainer.test, trainer.after_train = tested, ended
    trainer.train()
    *on_val, deployed = results
    splits = [split for split, _, _ in results]
    assert len(on_val) >= 2 and splits == ["val"] * len(on_val) + [None]
    # where the budget ended is looked at too, and looking changes nothing
    assert_same(on_val[-1][2], plain.learner.state_dict())
    best = max(result for _, result, _ in on_val)
    found = next(found for _, result, found in on_val if result == best)
    assert_same(deployed[2], found)
    folder = tmp_path / "best" / trainer.model_name
    state = torch.load(folder / "model-best.pth.tar", weights_only=True)
    assert state["val_result"] == best
    assert_same(dict(state["state_dict"]), dict(found))
    assert newest(folder).name != "model-best.pth.tar"  # the pointer is not redirected
    passes = [*["val"] * len(on_val), "test"]
    assert bill(tmp_path / "best")["evaluation"]["queries"] == trainer.evaluation(passes)[0]


LOOKS = ("TEST.FINAL_MODEL", "best_val"), ("ORACLE.VAL_EVERY", 10), ("TEST.SPLIT", "val")


@pytest.mark.parametrize("option", LOOKS)
@pytest.mark.parametrize("val", ["none", "the test split"])
@pytest.mark.parametrize("name", [*KINDS, "WhiteBox"])
def test_val_that_is_missing_or_test_is_refused(name, vary_root, val, option, tmp_path):
    root = vary_root(lambda split: split.update(val=[] if val == "none" else split["test"]))
    with pytest.raises(BlackBoxError, match="Digits has no validation split of its own"):
        build(name, root, tmp_path / "out", *option).train()
    assert not (tmp_path / "out").exists()


# Where it starts

# what else changes the model before the first step
PLAIN = {"CraFT": own("CraFT", HEAD=False), "BPTVLM": own("BPTVLM", N_IMAGE=0)}


@pytest.mark.parametrize("name", [name for name, cls in OURS.items() if "CTX_INIT" in cls.keys])
def test_at_step_0_from_the_templates_words_it_is_zero_shot(name, data_root, tmp_path):
    zeroshot = build("ZeroshotOracle", data_root, tmp_path / "zero-shot")
    words = own(name, CTX_INIT=TEMPLATES["Digits"].split(" {}")[0])
    trainer = build(name, data_root, tmp_path / "run", *words, *PLAIN.get(name, ()))
    with torch.no_grad():
        assert trainer.test() == zeroshot.test()
        if name in BLACK_BOX:
            assert difference(test_logits(trainer), test_logits(zeroshot)) < 1e-5


def test_zero_shot_spends_no_training_query(data_root, tmp_path):
    trainer, spy = spied(build("ZeroshotOracle", data_root, tmp_path))
    trainer.train()
    assert bill(tmp_path)["training"] == {"queries": 0, "image_queries": 0}
    images = len(trainer.dm.dataset.test)
    assert bill(tmp_path)["evaluation"] == {"queries": spy.queries, "image_queries": images}
    assert not any(spy.graphs)


@trained
def test_what_a_method_needs_must_be_granted(name, data_root, tmp_path):
    needs = build(name, data_root, tmp_path / "out").needs
    for missing in needs:
        granted = "ORACLE.GRANTS", [grant for grant in needs if grant != missing]
        words = f"^{name} asked for '{missing}', which this oracle does not grant"
        with pytest.raises(AccessDenied, match=words):
            build(name, data_root, tmp_path / "out", *granted)
    assert not (tmp_path / "out").exists()


# White-box


def test_the_white_box_learns_the_context_alone_and_encodes_a_picture_once(
    data_root, tmp_path, monkeypatch
):
    options = "DATALOADER.TRAIN_X.BATCH_SIZE", 30, "OPTIM.MAX_EPOCH", 12, "OPTIM.LR", 0.05
    plain = "INPUT.TRANSFORMS", ["normalize"]
    trainer = build("WhiteBox", data_root, tmp_path, *options, *plain)
    weights = deepcopy(trainer.loaded.model.state_dict())
    losses, step, local = [], trainer.forward_backward, trainer.local
    encoded, encode, prompts, text = [], local.encode_pixels, [], local.text

    def kept(batch):
        summary = step(batch)
        losses.append(summary["loss"])
        return summary

    monkeypatch.setattr(trainer, "forward_backward", kept)
    monkeypatch.setattr(local, "encode_pixels", lambda x: encoded.append(len(x)) or encode(x))
    trainer.train()
    assert len(losses) == 12 and losses[-1] < 0.9 * losses[0]
    assert sum(encoded) == len(trainer.dm.dataset.train_x) + len(trainer.dm.dataset.test)
    assert [name for name, _ in trainer.model.named_parameters()] == ["ctx"]
    assert_same(dict(trainer.loaded.model.state_dict()), dict(weights))
    assert all(p.grad is None and not p.requires_grad for p in trainer.loaded.model.parameters())
    assert not (tmp_path / "queries.json").exists() and not hasattr(trainer, "oracle")
    assert set(last_checkpoint(tmp_path)["state_dict"]) == {"ctx"}
    # evaluation encodes the prompt once, and answers as training does
    batches = [batch["img"] for batch in trainer.test_loader]
    logits = [trainer.model_inference(images).detach() for images in batches]
    monkeypatch.setattr(local, "text", lambda ctx: prompts.append(ctx) or text(ctx))
    local.last = None
    with torch.no_grad():
        assert_same([trainer.model_inference(images) for images in batches], logits)
    assert len(batches) > 1 and len(prompts) == 1


# On a GPU


@pytest.mark.cuda
@trained
def test_a_run_on_cuda(name, data_root, budget, tmp_path):
    trainer = build(name, data_root, tmp_path, *budget(name, 3), "USE_CUDA", True)
    before = in_use(trainer)
    trainer.train()
    assert all(part.is_cuda for part in trainer.learner.buffers())
    assert_moved(before, in_use(trainer))
    assert bill(tmp_path)["training"]["queries"] == trainer.plan.until(3)[0]
    cpu = build(name, data_root, tmp_path / "cpu")
    cpu.load_model(str(tmp_path))
    assert difference(test_logits(cpu), test_logits(trainer).cpu()) < 1e-3
