"""The bill equals what an independent count inside the inner oracle finds, whatever happens."""

import json
import math
import os

import pytest
import torch
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, BudgetSpent
from dassl_blackbox.trainers.blackbox.oracle import Images, Meter
from dassl_blackbox.trainers.blackbox.oracle.bill import query_cost
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from support import Random, Spy


def ask(oracle, candidates=1, images=1):
    return oracle.query(Images(images), Prompt(torch.zeros(candidates, 2, 4)))


def metered(tmp_path, inner=None, **limits):
    """A meter over a spy over an oracle that answers at random, and the path of its bill."""
    path = tmp_path / "queries.json"
    return Meter(Spy(inner or Random()), record=str(path), **limits), path


def on_disk(path):
    """Queries and image queries of training and evaluation together."""
    counts = json.loads(path.read_text())
    return tuple(
        sum(counts[purpose][unit] for purpose in ("training", "evaluation"))
        for unit in ("queries", "image_queries")
    )


@pytest.mark.parametrize(
    "candidates, images, cost",
    [
        (1, 1, (1, 1)),
        (1, 128, (1, 128)),
        (1, 129, (2, 129)),
        (10, 128, (10, 1280)),
        (10, 256, (20, 2560)),
        (3, 300, (9, 900)),
    ],
)
def test_the_cost_of_a_request(candidates, images, cost, tmp_path):
    assert query_cost(candidates, images) == cost
    meter, path = metered(tmp_path)
    ask(meter, candidates, images)
    assert on_disk(path) == (meter.inner.queries, meter.inner.image_queries) == cost


def test_the_bill_equals_the_count_inside_after_every_call(tmp_path):
    meter, path = metered(tmp_path, Random(fails={3, 4, 9}))
    calls = [
        lambda: ask(meter, 4, 17),
        lambda: ask(meter, 2, 129),
        lambda: ask(meter, 1, 128),
        lambda: ask(meter, 10, 500),
        lambda: meter.image_features(Images(130)),
        lambda: meter.text_features(Prompt(torch.zeros(5, 2, 4))),
    ]
    failed = 0
    for number in range(18):
        try:
            if number % 3:
                calls[number % len(calls)]()
            else:
                with meter.evaluation():
                    calls[number % len(calls)]()
        except ConnectionError:
            failed += 1
        assert on_disk(path) == (meter.inner.queries, meter.inner.image_queries)
        assert json.loads(path.read_text()) == meter.counts
    assert failed == 3


def test_the_bill_is_written_ahead_of_the_call(tmp_path):
    seen = []
    meter, path = metered(tmp_path)
    meter.inner.before = lambda: seen.append(on_disk(path))
    ask(meter, 10, 128)
    ask(meter, 3, 200)
    assert seen == [(10, 1280), (16, 1880)]


def test_a_call_that_fails_is_on_the_bill(tmp_path):
    meter, path = metered(tmp_path, Random(fails={1}))
    with pytest.raises(ConnectionError):
        ask(meter, 10, 64)
    assert on_disk(path) == (10, 640)


# Budgets


def spend(meter, *sizes):
    """Ask until the budget is spent; returns the number of answers."""
    for answers in range(1000):
        try:
            ask(meter, *sizes)
        except BudgetSpent:
            return answers


def test_37_queries_in_steps_of_10_stop_at_30(tmp_path):
    meter, path = metered(tmp_path, max_queries=37)
    assert spend(meter, 10, 128) == 3
    assert on_disk(path) == (30, 3840) and meter.inner.queries == 30 and meter.left() == 7
    with pytest.raises(BudgetSpent, match="30 of 37 queries are used, the next request costs 10"):
        ask(meter, 10, 128)
    ask(meter, 7, 1)  # what fits is answered
    assert meter.left() == 0 and meter.inner.queries == 37


@pytest.mark.parametrize(
    "limits, answers",
    [
        ({"max_queries": 40}, 4),
        ({"max_image_queries": 200}, 2),
        ({"max_queries": 40, "max_image_queries": 100}, 1),
        ({"max_queries": 9}, 0),
        ({}, None),
    ],
)
def test_both_budgets_bind(tmp_path, limits, answers):
    meter, _ = metered(tmp_path, **limits)
    if answers is None:
        for _ in range(50):
            ask(meter, 10, 8)
        assert meter.left() is meter.left("image_queries") is None
    else:
        assert spend(meter, 10, 8) == answers
        assert (meter.inner.queries, meter.inner.image_queries) == (10 * answers, 80 * answers)


def test_features_are_charged_and_refused_like_queries(tmp_path):
    meter, path = metered(tmp_path, max_queries=5)
    meter.image_features(Images(300))
    assert on_disk(path) == (3, 300)
    with pytest.raises(BudgetSpent):
        meter.text_features(Prompt(torch.zeros(3, 2, 4)))
    meter.text_features(Prompt(torch.zeros(2, 2, 4)))
    assert on_disk(path) == (5, 300) == (meter.inner.queries, meter.inner.image_queries)


def test_evaluation_is_counted_apart_and_never_limited(tmp_path):
    meter, path = metered(tmp_path, max_queries=10, max_image_queries=100)
    ask(meter, 10, 10)
    with pytest.raises(ZeroDivisionError), meter.evaluation():
        for _ in range(7):
            ask(meter, 3, 50)
        with meter.evaluation():
            ask(meter)
        ask(meter)
        raise ZeroDivisionError
    counts = json.loads(path.read_text())
    assert counts == {
        "training": {"queries": 10, "image_queries": 100},
        "evaluation": {"queries": 23, "image_queries": 1052},
    }
    with pytest.raises(BudgetSpent):
        ask(meter)


# The bill


def test_a_bill_is_continued(tmp_path):
    first, path = metered(tmp_path, max_queries=30)
    ask(first, 20, 2)
    second, _ = metered(tmp_path, max_queries=30)
    assert second.counts["training"] == {"queries": 20, "image_queries": 40} and second.left() == 10
    ask(second, 10, 2)
    assert on_disk(path) == (30, 60)
    second.at_least(
        {
            "training": {"queries": 25, "image_queries": 99},
            "evaluation": {"queries": 0, "image_queries": 0},
        }
    )
    assert second.counts["training"] == {"queries": 30, "image_queries": 99}


def whole(queries=3, **more):
    """A bill's text; `queries` is put where the training queries stand."""
    bill = {
        "training": {"queries": 0, "image_queries": 5},
        "evaluation": {"queries": 1, "image_queries": 1},
        **more,
    }
    return json.dumps(bill).replace("0", queries if isinstance(queries, str) else repr(queries), 1)


COUNTS = ["Infinity", "-Infinity", "NaN", "-1", "2.5", "3.0", "1e3", "true", "null", '"3"', "[3]"]
COUNTS += ["{}", str(2**63), "1" + "0" * 5000]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe\x00",
        b'\xef\xbb\xbf{"training": {}}',
        b"[" * 100_000,
        b'{"training": ' * 100_000,
        whole().encode()[:-9],
        whole().encode("utf-16"),
        b'{"training": {"queries": 3}}',
        b'{"training": 3, "evaluation": 4}',
        whole(lost=3).encode(),
        whole(lost={"queries": 1}).encode(),
        whole(lost={"queries": 1, "image_queries": -1}).encode(),
        *(whole(count).encode() for count in COUNTS),
    ],
    ids=lambda content: repr(content[:60]),
)
def test_a_corrupt_bill_is_a_sentence(tmp_path, content):
    (tmp_path / "queries.json").write_bytes(content)
    with pytest.raises(
        BlackBoxError,
        match=f"^(The bill )?{tmp_path}/queries.json cannot be read .*Mend it, or move it away",
    ) as caught:
        metered(tmp_path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert (tmp_path / "queries.json").read_bytes() == content


@pytest.mark.parametrize("count", [True, 2.0, "3", None, -1, 2**63, math.inf])
def test_counts_of_a_damaged_checkpoint_are_a_sentence(tmp_path, count):
    meter, _ = metered(tmp_path)
    counts = {"training": {"queries": count, "image_queries": 1}, "evaluation": {}}
    with pytest.raises(BlackBoxError, match="not a whole number"):
        meter.at_least(counts)
    with pytest.raises(BlackBoxError, match="no section 'training'"):
        meter.at_least({})
    assert meter.counts["training"] == {"queries": 0, "image_queries": 0}


def a_pipe(path):
    os.mkfifo(path)


def a_link_to_nothing(path):
    path.symlink_to(path.with_name("absent"))


def a_link_to_itself(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [a_pipe, a_link_to_nothing, a_link_to_itself])
def test_a_bill_that_is_no_file_is_a_sentence(tmp_path, make):
    make(tmp_path / "queries.json")
    with pytest.raises(BlackBoxError, match="queries.json cannot be read .*Mend it, or move it"):
        metered(tmp_path)


def test_what_a_newer_version_wrote_is_kept(tmp_path):
    """Unknown sections and keys, whatever they hold, in the bill and in that of another run."""
    path, newer = tmp_path / "queries.json", {"wished": [1, 2.5, {"deep": None}], "été": "ü"}
    bill = json.loads(whole(7, **newer))
    bill["training"]["tokens"] = 11
    bill["lost"] = {"queries": 2, "image_queries": 4, "why": "killed"}
    path.write_text(json.dumps(bill))
    meter, _ = metered(tmp_path)
    ask(meter, 10, 2)
    with meter.evaluation():
        ask(meter, 1, 1)
    bill["training"].update(queries=17, image_queries=25)
    bill["evaluation"].update(queries=2, image_queries=2)
    assert json.loads(path.read_text()) == bill
    (tmp_path / "elsewhere").mkdir()
    other, there = metered(tmp_path / "elsewhere")
    other.take_over(path)
    ask(other)
    bill["training"].update(queries=18, image_queries=26)
    assert json.loads(there.read_text()) == bill


def test_what_was_lost_is_on_the_bill(tmp_path):
    meter, path = metered(tmp_path)
    ask(meter, 40, 128)
    assert "lost" not in json.loads(path.read_text()) and "lost" not in meter.summary()
    meter.set_lost(30, 3840)
    meter.set_lost(20, 3840)  # is raised, never lowered
    assert meter.lost == {"queries": 30, "image_queries": 3840}
    assert json.loads(path.read_text())["lost"] == meter.lost
    assert meter.summary().splitlines()[-1] == "* lost queries: 30 (image queries: 3,840)"
    assert set(meter.counts) == {"training", "evaluation"}
    again, _ = metered(tmp_path)
    assert again.lost == meter.lost and again.counts == meter.counts
    ask(again)
    assert json.loads(path.read_text())["lost"] == meter.lost
    without = Meter(Random())
    without.set_lost(1, 2)
    assert without.lost == {"queries": 1, "image_queries": 2}


def test_a_run_that_lost_its_folder_is_charged_nothing(tmp_path):
    """`holds` is asked before every charge is written, and forbids the call."""
    asked, held = [], [True]

    def holds():
        asked.append(spy.queries)
        if not held[0]:
            raise BlackBoxError("the folder is another run's")

    spy, path = Spy(Random()), tmp_path / "queries.json"
    meter = Meter(spy, record=path, holds=holds)
    ask(meter, 3, 2)
    bill, held[0] = path.read_text(), False
    for call in (
        lambda: ask(meter, 3, 2),
        lambda: meter.image_features(Images(2)),
        lambda: meter.text_features(Prompt(torch.zeros(2, 2, 4))),
        lambda: meter.set_lost(3, 6),
    ):
        with pytest.raises(BlackBoxError, match="another run's"):
            call()
    assert asked == [0, 3, 3, 3, 3] and spy.queries == 3 and path.read_text() == bill
    assert meter.counts["training"] == {"queries": 3, "image_queries": 6}
    assert meter.lost == {"queries": 0, "image_queries": 0}


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_a_bill_that_cannot_be_written_raises_no_count(tmp_path, purpose):
    """The call was not made: once there is room again, bill and calls agree."""
    path = tmp_path / "run" / "queries.json"
    meter = Meter(Spy(Random()), record=path)
    meter.purpose = purpose
    ask(meter, 3, 2)
    path.rename(tmp_path / "kept")
    path.mkdir()  # the bill cannot take its place
    for _ in range(3):
        with pytest.raises(BlackBoxError, match=f"Could not write {path}"):
            ask(meter, 10, 64)
        with pytest.raises(BlackBoxError, match=f"Could not write {path}"):
            meter.set_lost(3, 6)
    assert meter.inner.queries == meter.counts[purpose]["queries"] == 3
    path.rmdir()
    (tmp_path / "kept").rename(path)
    ask(meter, 10, 64)
    assert on_disk(path) == (meter.inner.queries, meter.inner.image_queries) == (13, 646)
    assert json.loads(path.read_text()) == meter.counts


def below_a_file(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file" / "queries.json"


def a_folder(tmp_path):
    (tmp_path / "queries.json").mkdir()
    return tmp_path / "queries.json"


@pytest.mark.parametrize("place", [below_a_file, a_folder])
def test_a_bill_that_cannot_be_written_forbids_the_call(tmp_path, place):
    path, spy = place(tmp_path), Spy(Random())
    with pytest.raises(BlackBoxError, match=str(path)):
        ask(Meter(spy, record=str(path)))
    assert spy.queries == 0


def test_a_bill_that_can_no_longer_be_written_forbids_the_call(tmp_path):
    path, spy = tmp_path / "run" / "queries.json", Spy(Random())
    meter = Meter(spy, record=str(path))
    (tmp_path / "run").touch()
    with pytest.raises(BlackBoxError, match=f"Could not write {path}"):
        ask(meter)
    assert spy.queries == 0


def test_a_meter_without_a_bill_counts_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meter = Meter(Spy(Random()), max_queries=5)
    assert spend(meter) == 5 == meter.inner.queries == meter.counts["training"]["queries"]
    assert list(tmp_path.iterdir()) == []


def test_the_summary_has_every_count(tmp_path):
    meter, _ = metered(tmp_path)
    ask(meter, 1000, 2)
    with meter.evaluation():
        ask(meter, 3, 4)
    assert meter.summary().splitlines() == [
        "=> queries",
        "* training queries: 1,000 (image queries: 2,000)",
        "* evaluation queries: 3 (image queries: 12)",
    ]


# Answers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_answers_that_are_not_finite_name_the_query(tmp_path, value):
    meter, path = metered(tmp_path)
    ask(meter, 10, 8)
    meter.inner.inner.value = value
    with pytest.raises(BlackBoxError, match="logits of training query 20 are not finite"):
        ask(meter, 10, 8)
    with (
        meter.evaluation(),
        pytest.raises(BlackBoxError, match="image features of evaluation query 1 are not finite"),
    ):
        meter.image_features(Images(8))
    assert on_disk(path)[0] == 21


def test_the_answer_is_the_inner_oracles(tmp_path):
    class Fixed(Random):
        def query(self, images, prompt):
            return prompt.contexts.sum() + prompt.image_tokens.sum() + torch.arange(3.0)

    inner = Fixed()
    inner.description = object()
    meter, _ = metered(tmp_path, inner)
    assert (
        meter.description is inner.description
        and meter.grants == inner.grants
        and meter.client == inner.client
    )
    assert torch.equal(
        meter.query(Images(1), Prompt(torch.ones(1, 2, 4), torch.ones(1, 5, 6))),
        38 + torch.arange(3.0),
    )
