"""Money: what is known before it is spent, what a refusal leaves on the bill."""

import re
import threading
import time

import pytest
import torch
import uvicorn
from dassl_blackbox.serve.__main__ import listen, parse_args
from dassl_blackbox.serve.access import Account
from dassl_blackbox.serve.application import build_app
from dassl_blackbox.serve.service import build_service
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, BudgetSpent
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, Meter, Prompt
from dassl_blackbox.trainers.blackbox.oracle.services import Http, Refused, RemoteOracle
from dassl_blackbox.trainers.blackbox.probe import Answers
from services import TEXTS, at, embed_texts, local_logits, oracle_at
from support import assert_same, bill, build, difference, last_checkpoint, own, run, sentence

UNITS = ("queries", "image_queries")
BUDGETS = {"rich": 0, "nineteen": 19, "twenty": 20, "one": 1, "five": 5}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A server of ours in this process, with a key of every budget; (service, URL)."""
    accounts = [
        Account(name=name, key=f"key-of-{name}", grants=GRANTS, max_queries=most)
        for name, most in BUDGETS.items()
    ]
    state = str(tmp_path_factory.mktemp("ours") / "state")
    service = build_service(parse_args(["--backbone", "tiny", "--state", state]), accounts)
    with listen("127.0.0.1", 0) as bound:
        server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield service, f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def key(ours, monkeypatch):
    """`key(name)`: has its key in the environment; returns the server's count of its queries."""
    service, _ = ours

    def use(name):
        monkeypatch.setenv("BLACKBOX_KEY", f"key-of-{name}")
        account = next(a for a in service.accounts.accounts if a.name == name)
        return lambda: service.ledger.usage(account)["queries"]

    return use


@pytest.fixture
def bound(ours, monkeypatch):
    """`bound(bytes)`: of a body and of an answer, for this test."""
    service, _ = ours
    return lambda size: monkeypatch.setattr(service, "most", size)


def far(ours, *options):
    return "ORACLE.URL", ours[1], "ORACLE.PATIENCE", "5.0", *options


def asked(ours, classes=3):
    oracle = RemoteOracle(Http(ours[1], 30, 5.0), torch.device("cpu"), "tiny", "a test")
    oracle.set_classes([f"name {i}" for i in range(classes)])
    return oracle


def test_a_budget_below_training_and_evaluation_is_not_begun(
    ours, key, data_root, tmp_path, capsys
):
    """A step costs 10 and a test batch 5; the test set has two batches."""
    options = far(ours, *own("SONAR", TEXTS=90), "ORACLE.MAX_QUERIES", 10)
    used = key("nineteen")
    said = sentence(capsys, "SONAR", data_root, tmp_path / "a", *options)
    assert "20 queries are needed (10 for training, 10 for evaluation)" in said
    assert "the budget of this key has 19 left" in said and used() == 0
    assert not (tmp_path / "a" / "prompt_learner").exists()
    used = key("twenty")
    assert run("SONAR", data_root, tmp_path / "b", *options) == 0 and used() == 20
    # a run that is finished asks for its evaluation alone, and a longer one for the rest
    for more, words in (([], "10 queries are needed (0 for"), ([20], "20 queries are needed (10")):
        said = sentence(capsys, "SONAR", data_root, tmp_path / "b", *options[:-1], *more or [10])
        assert words in said and "10 for evaluation)" in said and "0 left" in said
    evaluated = ("--eval-only", "--model-dir", tmp_path / "b")
    said = sentence(capsys, "SONAR", data_root, tmp_path / "c", *options, flags=evaluated)
    assert "10 queries are needed" in said and used() == 20
    used = key("one")  # a method without training is told, too
    said = sentence(capsys, "ZeroshotOracle", data_root, tmp_path, *far(ours))
    assert "2 queries are needed" in said and used() == 0


def test_no_train_tells_evaluation_and_the_rest(ours, key, service, data_root, tmp_path, capsys):
    def told(trainer, *options):
        assert run(trainer, data_root, tmp_path, *options, flags=("--no-train",)) == 0
        return capsys.readouterr().out.splitlines()[-1]

    options = at(service())
    said = told("GDA", *options, *own("GDA", VIEWS=1))
    assert "3 training queries, 60 image queries; 3 evaluation queries, 61 image queries" in said
    assert re.search(r"about 4 calls, 61 pictures, .*; evaluation 2 calls, 61 pictures", said)
    said = told("ZeroshotOracle", *options)
    assert " 0 training queries, 0 image queries; 2 evaluation queries, 61 image queries" in said
    used = key("five")
    said = told("ZIP", *far(ours, "ORACLE.MAX_QUERIES", 20))
    assert "2 evaluation queries" in said and said.endswith("this key has 5 queries left")
    assert used() == 0 and not list(tmp_path.iterdir())


LOOKS = "ORACLE.VAL_EVERY", 20
BEST = (*LOOKS, "TEST.FINAL_MODEL", "best_val")


EVALUATED = [
    ("ZIP", (*BEST, "TEST.SPLIT", "val", "ORACLE.MAX_QUERIES", 50)),
    ("GDA", (*BEST, *own("GDA", VIEWS=1))),
    ("GDA", (*LOOKS, "TEST.NO_TEST", True, "ORACLE.MAX_QUERIES", 3)),
    ("CBBT", (*own("CBBT", ADAPTER=True), "ORACLE.MAX_QUERIES", 20)),
]


@pytest.mark.parametrize("name, options", EVALUATED)
def test_evaluation_costs_what_it_is_said_to_cost(name, options, data_root, tmp_path, capsys):
    granted = "ORACLE.GRANTS", str(GRANTS), "DATASET.NUM_SHOTS", 2
    trainer = build(name, data_root, tmp_path, *granted, *options)
    told = re.search(r"([\d,]+) evaluation queries, ([\d,]+) image", trainer.describe_cost())
    trainer.train()
    found = bill(tmp_path)["evaluation"]
    assert [int(n.replace(",", "")) for n in told.groups()] == [found[unit] for unit in UNITS]
    # a fit may take long, and is announced
    assert ("GDA: fitting the head\nGDA: alpha" in capsys.readouterr().out) == (name == "GDA")


QUOTA = "You exceeded your current quota, please check your plan and billing details."
HARD = {"error": {"message": "Limit", "code": "billing_hard_limit_reached"}}
SPENT = [
    (429, {"error": {"message": QUOTA, "type": "insufficient_quota", "code": None}}),
    (400, HARD),
    (429, {"detail": QUOTA}),
    (429, "Your team has either used all available credits or reached its spending limit."),
    (429, {"detail": "Account balance not enough to run this query, please recharge."}),
    (403, {"error": {"message": "Quota", "code": "insufficient_user_quota"}}),
    (402, {"error": "You have exceeded your monthly included credits for Inference."}),
]


@pytest.mark.parametrize("status, content", SPENT)
def test_no_money_is_said_at_once(status, content, service, data_root, tmp_path, capsys):
    server = service()
    server.always = status, {}, content
    start = time.monotonic()
    said = sentence(capsys, "ZeroshotOracle", data_root, tmp_path, *at(server))
    assert "refuses, since a budget is spent: " in said and len(server.requests) == 1
    assert time.monotonic() - start < 5


HASTE = [
    ({}, "Rate limit reached for requests per min. Check your billing to raise it."),
    ({}, f"{QUOTA} Please retry in 0.1s."),
    ({"Retry-After": "0"}, QUOTA),
    ({}, "The load balancer has reached its limit."),
]


@pytest.mark.parametrize("headers, message", HASTE)
def test_haste_is_waited_for(headers, message, service, digits):
    server = service()
    oracle = oracle_at(server)
    server.faults = [(429, headers, {"error": {"message": message, "code": "rate_limit_exceeded"}})]
    assert oracle.query(oracle.upload(digits[:3]), Prompt()).shape == (1, 3, 3)


def test_a_quota_that_ends_in_training_leaves_a_checkpoint(service, data_root, tmp_path, capsys):
    server, budget = service(), "ORACLE.MAX_QUERIES"
    assert run("GDA", data_root, tmp_path, *at(server), budget, 2) == 0
    server.always = 429, {}, {"error": {"message": QUOTA, "code": "insufficient_quota"}}
    assert "a budget is spent" in sentence(capsys, "GDA", data_root, tmp_path, *at(server))
    assert last_checkpoint(tmp_path)["blackbox"]["steps_done"] == 1
    server.always = None
    assert run("GDA", data_root, tmp_path, *at(server), budget, 3) == 0
    assert last_checkpoint(tmp_path)["blackbox"]["steps_done"] == 2
    assert bill(tmp_path)["training"]["queries"] == 3


def indexed(indices):
    """An answer about the three texts, its rows with such indices."""
    rows = embed_texts(TEXTS).tolist()
    return 200, {}, {"data": [{**at, "embedding": row} for at, row in zip(indices, rows)]}


@pytest.mark.parametrize("index", [{}, {"index": None}])
def test_embeddings_without_an_index_are_in_order(index, service, digits):
    server = service()
    oracle = oracle_at(server)
    server.faults = [indexed([index] * 3)]
    answer = oracle.query(oracle.upload(digits[:3]), Prompt())[0]
    assert difference(answer, local_logits(digits[:3], TEXTS)) < 1e-5
    assert len(server.requests) == 3  # the sample, the texts, the pictures


@pytest.mark.parametrize("indices", [(0, 0, 0), (1, 2, 3), (0, None, 2)])
def test_indices_that_are_none_are_named(indices, service, digits):
    server = service()
    oracle = oracle_at(server, PATIENCE=30.0)
    server.always = indexed([{"index": i} for i in indices])
    words = re.escape(f"an index of {list(indices)}, not of 0 to 2")
    with pytest.raises(BlackBoxError, match=words):
        oracle.query(oracle.upload(digits[:3]), Prompt())
    assert len(server.requests) == 3  # the sample, and two tries


def test_a_refused_part_leaves_the_parts_before_it_on_the_bill(ours, key, bound, tmp_path):
    bound(2**16)
    used = key("rich")
    before = used()
    meter = Meter(asked(ours, 300), record=tmp_path / "queries.json")
    meter.set_classes([f"name {i}" for i in range(300)])
    images = meter.upload(torch.zeros(40, 3, 32, 32))
    contexts = torch.zeros(3, 1, 128)
    meter.query(images, Prompt(contexts))
    assert used() - before == bill(tmp_path)["training"]["queries"] == 3
    contexts[2] = torch.nan  # which the server refuses
    with pytest.raises(BlackBoxError, match="not finite") as caught:
        meter.query(images, Prompt(contexts))
    assert not isinstance(caught.value, BudgetSpent)
    assert used() - before == 5 and bill(tmp_path)["training"]["queries"] == 6
    contexts[0] = torch.nan  # the first part: nothing is billed on either side
    with pytest.raises(Refused, match="not finite"):
        meter.query(images, Prompt(contexts))
    assert used() - before == 5 and bill(tmp_path)["training"]["queries"] == 6


def test_when_the_second_call_is_refused_the_first_was_paid(service, data_root, tmp_path, capsys):
    options = at(service(), BATCH=40)  # the texts are answered, 40 pictures are too many
    said = sentence(capsys, "ZeroshotOracle", data_root, tmp_path, *options)
    assert "at most 32 items" in said
    found = bill(tmp_path)
    assert found["evaluation"] == {"queries": 1, "image_queries": 40}
    assert found["service"]["texts"] == 11


IN_PARTS = [
    ("CraFT", 24, {"POPULATION": 20}),
    ("CBBT", 14, {"ADAPTER": True, "ADAPTER_EPOCH": 0, "Q": 12}),
]


@pytest.mark.parametrize("name, budget, settings", IN_PARTS)
def test_answers_come_in_parts(name, budget, settings, ours, key, bound, data_root, tmp_path):
    used, found = key("rich"), []
    options = far(ours, "DATASET.NUM_SHOTS", 6, *own(name, **settings))
    for size in (2**28, 2**15):
        bound(size)
        before, out = used(), tmp_path / str(size)
        assert run(name, data_root, out, *options, "ORACLE.MAX_QUERIES", budget) == 0
        counts = bill(out)
        assert used() - before == sum(counts[part]["queries"] for part in counts)
        assert counts["training"]["queries"] == budget
        found.append(last_checkpoint(out)["state_dict"])
    if name == "CraFT":
        assert_same(*found)
    else:  # texts that are encoded in other batches are equal to rounding
        assert difference(found[1]["theta"], found[0]["theta"]) < 1e-5


def test_an_answer_about_one_prompt_above_the_bound_is_a_sentence(ours, key, bound):
    used = key("rich")
    before = used()
    bound(30_000)
    oracle = asked(ours, 400)
    with pytest.raises(Refused, match="32,000 bytes.*--max-mb.*TEST.BATCH_SIZE.*NUM_SHOTS"):
        oracle.query(oracle.upload(torch.zeros(20, 3, 32, 32)), Prompt())
    assert used() == before


def test_answers_are_loaded_onto_the_device_of_the_run(data_root, tmp_path):
    kept = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), torch.arange(4)
    answers = Answers(torch.device("meta"))  # the only other one that is everywhere
    answers.load_state_dict({"batches": [list(kept)], "text": torch.zeros(3, 5)})
    assert {part.device.type for part in (*answers.batches[0], answers.text)} == {"meta"}
    trainer = build("SONAR", data_root, tmp_path)
    assert trainer.answers.device is trainer.device
