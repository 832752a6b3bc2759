"""The contract of every black-box trainer, by being registered; the white-box ceiling."""

import re
import shutil
from copy import deepcopy
from itertools import zip_longest

import pytest
import torch
from dassl_blackbox.results import read_result
from dassl_blackbox.trainers.blackbox.bank import TEMPLATES
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import newest
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, AccessDenied
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
    spied,
    test_logits,
)

trained = pytest.mark.parametrize("name", TRAINED)
# a search, one with a teacher that reads a loader of its own, a probe
KINDS = ["ZIP", "CraFT", "GDA"]
SUM = "queries", "image_queries"


def in_use(trainer):
    """Copies of what the prompt changes, None where it changes nothing, and of the head."""
    if isinstance(trainer, ProbeTrainer):
        parts = trainer.head.state_dict().values()  # or tensors and plain values in a dictionary
        parts = [p for part in parts for p in (part.values() if isinstance(part, dict) else [part])]
        return [part.clone() for part in parts if isinstance(part, torch.Tensor)]
    prompt = trainer.learner.eval()(torch.zeros(1, 3, *trainer.description.image_size))
    head = trainer.head.parameters() if trainer.head else ()
    found = prompt.contexts, prompt.image_tokens, prompt.pictures, *head
    return [part if part is None else part.clone() for part in found]


def assert_moved(before, after):
    assert any(not torch.equal(a, b) for a, b in zip(before, after) if a is not None)


# whose losses or steps follow the share of the budget that is spent
UNBOUND = {"BAR": own("BAR", A_LAST=10.0), "CraFT": own("CraFT", LAMBDA=0.0)}


@pytest.fixture(scope="module", params=TRAINED)
def run(request, data_root, budget, tmp_path_factory):
    """A spied run of five steps with some queries to spare: (name, trainer, spy, folder, what was
    in use before training, numbers of candidates that were asked about).
    """
    name, out, asked = request.param, tmp_path_factory.mktemp(request.param), []
    options = *budget(name, 5, rest=1), *UNBOUND.get(name, ())
    trainer, spy = spied(build(name, data_root, out, *options))
    before, ask = in_use(trainer), getattr(trainer.optim, "ask", None)

    def counted():
        candidates = ask()
        asked.append(len(candidates))
        return candidates

    if ask:
        trainer.optim.ask = counted
    trainer.train()
    return name, trainer, spy, out, before, asked


def test_asked_is_announced_is_metered_is_answered(run, data_root, budget, tmp_path):
    """And evaluation runs after a spent budget."""
    name, trainer, spy, out, _, asked = run
    counts, optimizer, result = bill(out), trainer.optim, read_result(out)
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
    assert (result["trainer"], result["training"]) == (name, counts["training"]["queries"])
    assert result["access"] not in ("?", "weights")


def test_nothing_that_crossed_the_wall_had_a_graph_and_what_is_in_use_moved(run):
    _, trainer, spy, _, before, _ = run
    assert len(spy.graphs) > 10 and not any(spy.graphs)
    assert_moved(before, in_use(trainer))
    if isinstance(trainer, SearchTrainer):
        assert torch.equal(trainer.learner.theta, trainer.optim.theta)


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
    for part, found in trainer.parts.items():
        assert (state.get(part) is None) == (found is None), part


def test_evaluation_elsewhere_with_another_seed_is_the_same_to_the_bit(run, data_root, tmp_path):
    name, trainer, _, out, _, _ = run
    fresh = build(name, data_root, tmp_path, seed=99)
    with pytest.raises(AssertionError):
        assert_same(fresh.learner.state_dict(), trainer.learner.state_dict())
    fresh.load_model(str(out))
    assert torch.equal(test_logits(fresh), test_logits(trainer))
    assert fresh.test() == trainer.test()


# Small runs of two epochs, and how far they led: the norm of what they changed, and its sum with
# weights of either sign. A row is a setting that changes the mathematics or the draws of a method.
RECORDED = [
    ("BAR", {"A_LAST": 10.0}, 42.81, 32.34),
    ("BAR", {}, 37.28, 14.69),
    ("BPTVLM", {"N_IMAGE": 0}, 1.332, -1.55),
    ("BPTVLM", {}, 63.5, -1.469),
    ("BlackVIP", {}, 22.75, -1.724),
    ("CBBT", {"ADAPTER": True, "ADAPTER_EPOCH": 1}, 0.4184, 0.4424),
    ("CBBT", {"CUTOUT": 0.0}, 0.02916, -0.02233),
    ("CBBT", {}, 0.02908, 0.003125),
    ("CLAP", {"WEIGHT": 0.0}, 5.692, 1.615),
    ("CLAP", {}, 4.147, 0.7563),
    ("CraFT", {"BOUND": 0.1}, 1.396, -0.8442),
    ("CraFT", {"COVARIANCE": "diagonal"}, 24.64, -18.44),
    ("CraFT", {"COVARIANCE": "vd"}, 26.63, 15.64),
    ("CraFT", {"COVARIANCE": "vkd"}, 5.192, 1.449),
    ("CraFT", {"HEAD": False}, 24.73, -18.37),
    ("CraFT", {"SPACE": "context"}, 27.6, 18.43),
    ("CraFT", {}, 24.73, -18.47),
    ("GDA", {}, 504.8, 221.6),
    ("JOLT", {"FEATURES": True}, 4.444, 1.009),
    ("JOLT", {"HEAD_FOLDS": 1}, 1.682, 0.519),
    ("JOLT", {"SPACE": "projection"}, 2.899, 0.2085),
    ("JOLT", {}, 4.444, 1.009),
    ("LFA", {"TRANSFER": True}, 11.28, -0.08887),
    ("LFA", {}, 11.33, -3.647),
    ("RLA", {}, 11.33, 0.4402),
    ("SONAR", {"TEXTS": 0}, 6.354, -1.59),
    ("SONAR", {}, 57.7, -23.85),
    ("TipAdapterF", {"FINETUNE": False}, 38.34, 32.66),
    ("TipAdapterF", {}, 22.67, 18.86),
    ("ZIP", {"RULE": "spsa"}, 10.45, -2.783),
    ("ZIP", {"RULE": "spsa-gc"}, 46.09, -14.6),
    ("ZIP", {"SPACE": "context"}, 0.4522, -0.07129),
    ("ZIP", {"SPACE": "projection"}, 2.037, -0.5517),
    ("ZIP", {}, 0.808, 0.6652),
]
# where JOLT's rows lead on another CPU, by their norm
OTHER_CPU = {4.444: (4.344, 1.073), 1.682: (1.668, 0.5337)}


@pytest.mark.parametrize("name, settings, norm, turn", RECORDED)
def test_a_run_leads_where_it_did(name, settings, norm, turn, data_root, tmp_path):
    assert {row[0] for row in RECORDED} == set(TRAINED)
    everything = "ORACLE.MAX_QUERIES", 0, "OPTIM.MAX_EPOCH", 2, "TEST.NO_TEST", True
    granted = "ORACLE.GRANTS", list(GRANTS)
    trainer = build(name, data_root, tmp_path, *everything, *granted, *own(name, **settings))
    before = [] if isinstance(trainer, ProbeTrainer) else in_use(trainer)
    trainer.train()
    after = in_use(trainer)
    moved = [b if a is None else b - a for a, b in zip_longest(before, after) if b is not None]
    numbers = torch.cat([part.double().flatten() for part in moved])
    weights = torch.arange(len(numbers)).double().cos()
    told, approx = (numbers.norm().item(), (numbers @ weights).item()), pytest.approx
    rows = (norm, turn), OTHER_CPU.get(norm, (norm, turn))
    wanted = [(approx(a, rel=0.02), approx(b, rel=0.02, abs=0.002 * a)) for a, b in rows]
    assert told in wanted


def test_a_finished_run_goes_on_as_if_its_budget_had_been_larger(run, data_root, budget, tmp_path):
    name, _, _, out, _, _ = run
    shutil.copytree(out, tmp_path / "two")
    for life in ("one", "two"):
        options = *budget(name, 8), *UNBOUND.get(name, ())
        build(name, data_root, tmp_path / life, *options).train()
    one, two = (last_checkpoint(tmp_path / life) for life in ("one", "two"))
    assert_same(one["state_dict"], two["state_dict"])
    assert one["epoch"] == two["epoch"]
    assert one["blackbox"]["batches_done"] == two["blackbox"]["batches_done"]
    assert bill(tmp_path / "one")["training"] == bill(tmp_path / "two")["training"]


@pytest.mark.parametrize("name", [*KINDS, "SONAR"])
def test_best_val_selects_on_val_and_never_on_test(name, data_root, budget, tmp_path):
    options = budget(name, 5, rest=1)
    plain = build(name, data_root, tmp_path / "plain", *options)
    plain.train()
    trainer = build(name, data_root, tmp_path, *options, "TEST.FINAL_MODEL", "best_val")
    loader, test, end, results = trainer.test_loader, trainer.test, trainer.after_train, []
    trainer.test_loader = [None] * len(loader)  # batches that cannot be read

    def tested(split=None):
        result = test(split)
        results.append((split, result, deepcopy(trainer.learner.state_dict())))
        return result

    def ended():
        trainer.test_loader = loader
        end()

    trainer.test, trainer.after_train = tested, ended
    trainer.train()
    *on_val, (last, _, deployed) = results
    # what is fitted at the end is looked at once it is
    assert len(on_val) >= (1 if isinstance(plain, ProbeTrainer) else 2)
    assert {split for split, _, _ in on_val} == {"val"} and last is None
    # where the budget ended is looked at too, and looking changes nothing
    assert_same(on_val[-1][2], plain.learner.state_dict())
    best = max(result for _, result, _ in on_val)
    found = next(found for _, result, found in on_val if result == best)
    folder = tmp_path / trainer.model_name
    state = torch.load(folder / "model-best.pth.tar", weights_only=True)
    assert state["val_result"] == best
    assert_same(deployed, found)
    assert_same(dict(state["state_dict"]), dict(found))
    assert newest(folder).name != "model-best.pth.tar"  # the pointer is not redirected
    passes = [*["val"] * len(on_val), "test"]
    assert bill(tmp_path)["evaluation"]["queries"] == trainer.evaluation(passes)[0]


LOOKS = [
    ("ZIP", "none", ("ORACLE.VAL_EVERY", 10)),
    ("CraFT", "the test split", ("TEST.SPLIT", "val")),
    ("GDA", "the test split", ("TEST.FINAL_MODEL", "best_val")),
    ("WhiteBox", "none", ("TEST.FINAL_MODEL", "best_val")),
]


@pytest.mark.parametrize("name, val, option", LOOKS)
def test_val_that_is_missing_or_test_is_refused(name, vary_root, val, option, tmp_path):
    root = vary_root(lambda split: split.update(val=[] if val == "none" else split["test"]))
    with pytest.raises(BlackBoxError, match="Digits has no validation split of its own"):
        build(name, root, tmp_path / "out", *option).train()
    assert not (tmp_path / "out").exists()


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


@trained
def test_what_a_method_needs_must_be_granted(name, data_root, tmp_path):
    needs = build(name, data_root, tmp_path / "out").needs
    for missing in needs:
        granted = "ORACLE.GRANTS", [grant for grant in needs if grant != missing]
        words = f"^{name} asked for '{missing}', which this oracle does not grant"
        with pytest.raises(AccessDenied, match=words):
            build(name, data_root, tmp_path / "out", *granted)
    assert not (tmp_path / "out").exists()


def test_the_white_box_learns_the_context_alone(data_root, tmp_path, monkeypatch):
    options = "DATALOADER.TRAIN_X.BATCH_SIZE", 30, "OPTIM.MAX_EPOCH", 12, "OPTIM.LR", 0.05
    plain = "INPUT.TRANSFORMS", ["normalize"]
    trainer = build("WhiteBox", data_root, tmp_path, *options, *plain)
    model, local, losses = trainer.loaded.model, trainer.local, []
    weights, step = deepcopy(model.state_dict()), trainer.forward_backward
    trainer.forward_backward = lambda batch: losses.append(step(batch)) or losses[-1]
    trainer.train()
    assert len(losses) == 12 and losses[-1]["loss"] < 0.9 * losses[0]["loss"]
    assert [name for name, _ in trainer.model.named_parameters()] == ["ctx"]
    assert_same(dict(model.state_dict()), dict(weights))
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not (tmp_path / "queries.json").exists() and not trainer.counted
    assert set(last_checkpoint(tmp_path)["state_dict"]) == {"ctx"}
    # evaluation encodes the prompt once, and answers as training does
    prompts, text, batches = [], local.text, [batch["img"] for batch in trainer.test_loader]
    logits = [trainer.model_inference(images).detach() for images in batches]
    monkeypatch.setattr(local, "text", lambda ctx: prompts.append(ctx) or text(ctx))
    local.last = None
    with torch.no_grad():
        assert_same([trainer.model_inference(images) for images in batches], logits)
    assert len(batches) > 1 and len(prompts) == 1


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
