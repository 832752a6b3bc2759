"""Runs over services of other people's: what came back equals the local model, is asked for once,
and again within bounds where it is damaged.
"""

import base64
import re
import sqlite3
import threading
import time
import zlib
from contextlib import closing

import pytest
import torch
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import Prompt
from dassl_blackbox.trainers.blackbox.oracle.interface import AccessDenied
from dassl_blackbox.trainers.blackbox.oracle.prompt import Texts
from dassl_blackbox.trainers.blackbox.oracle.services import Refused, png
from dassl_blackbox.trainers.blackbox.oracle.wire import open_cache, to_8bit
from services import (
    KEY,
    SCALE,
    TEXTS,
    Served,
    at,
    embed_images,
    embed_texts,
    local_logits,
    oracle_at,
    tiny,
)
from support import REPO, accuracy, bill, build, difference, own, printed, run, test_logits, trained

PROBES = "SONAR", "GDA", "CLAP", "LFA", "RLA", "TipAdapterF"
VIEWS = {name: own(name, VIEWS=1) for name in PROBES}
# of a head that makes more of the last bits of features: so much comes of noise of 3e-8 as well
APART = {"SONAR": 1e-2}
LOCAL = ("ORACLE.GRANTS", "('logits', 'features')")


@pytest.mark.parametrize("spelling", ["modality", "items", "data_uri"])
def test_answers_are_the_local_models(service, digits, spelling):
    server = service(spelling, scale=3.0)
    oracle = oracle_at(server, IMAGES=spelling, BATCH=25)
    images = oracle.upload(digits)
    expected = local_logits(digits, [*TEXTS, "an image of cat", "an image of a dog"])
    more = Prompt(texts=Texts.of(["cat", "a_dog"], "an image of {}"))
    assert difference(oracle.query(images, more)[0], expected) < 1e-5
    assert difference(oracle.query(images, Prompt())[0], expected[:, :3]) < 1e-5
    assert oracle.description.embed_dim == 128
    feature, text = oracle.image_features(images), oracle.text_features(Prompt())
    assert torch.allclose(feature.norm(dim=-1), torch.ones(60)) and text.shape == (1, 3, 128)
    assert difference(SCALE * feature @ text[0].mT, expected[:, :3]) < 1e-5
    distinct = len(set(images.ids))
    # the first picture comes twice: its answer must not depend on how its file is written
    assert [len(body["input"]) for body in server.requests[2:6]] == [25, 1, 25, distinct - 50]
    sent = {"calls": 6, "pictures": distinct + 1, "texts": 6}
    kept = {"pictures_cached": 60 - distinct + 2 * 60, "texts_cached": 3 + 3}
    told = {"tokens": 7 * (distinct + 1 + 6)} if spelling == "items" else {}
    assert oracle.usage() == {**sent, **kept, **told}
    assert (server.pictures, server.texts) == (distinct + 1, 6)


def test_changed_pictures_are_asked_about_each_time(service, digits, tmp_path):
    server = service()
    oracle = oracle_at(server, cache=tmp_path, BATCH=2, THREADS=4)
    changed = torch.stack([digits[:5], digits[5:10]])
    expected = local_logits(digits[:10], TEXTS).unflatten(0, (2, 5))
    for _ in range(2):
        answer = oracle.query(oracle.upload(digits[:5]), Prompt(pictures=changed))
        assert difference(answer, expected) < 1e-5
    assert server.pictures == 20 + 1  # the first one twice
    with pytest.raises(BlackBoxError, match="not finite"):
        to_8bit(digits * float("nan"), tiny().description)


@pytest.mark.parametrize(
    "name, api",
    [
        *(("SONAR", "openai"), ("SONAR", "hf"), ("GDA", "openai")),
        *(pytest.param(n, "openai", marks=pytest.mark.long) for n in list(VIEWS)[2:]),
    ],
)
def test_a_run_is_the_local_one(service, data_root, tmp_path, name, api):
    server, found = service("hf" if api == "hf" else "modality"), []
    for options in (LOCAL, at(server, api=api)):
        out = tmp_path / str(len(found))
        trainer = trained(name, data_root, out, *options, *VIEWS[name])
        found.append((test_logits(trainer), bill(out)["training"], trainer.test()))
    assert api == "hf" or difference(found[0][0], found[1][0]) < APART.get(name, 1e-4)
    assert found[0][1:] == found[1][1:] and server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "name, kind, words", [("ZIP", "modality", "contexts.*SONAR"), ("GDA", "hf", "'features'")]
)
def test_what_a_service_does_not_give_is_refused(service, data_root, tmp_path, name, kind, words):
    server = service(kind)
    with pytest.raises(AccessDenied, match=words):
        build(name, data_root, tmp_path, *at(server, api="hf" if kind == "hf" else "openai"))
    assert server.pictures == 0


def test_scores_are_logits_up_to_a_number_an_image(service, digits):
    server = service("hf")
    oracle = oracle_at(server, api="hf")
    twice = Texts.of(["cat", "cat", "a_dog"], "an image of {}")
    images = oracle.upload(digits[:6])
    answer = oracle.query(images, Prompt(texts=twice))[0]
    further = ["an image of cat", "an image of cat", "an image of a dog"]
    apart = answer - local_logits(digits[:6], TEXTS + further)
    assert (apart - apart.mean(-1, keepdim=True)).abs().max() < 1e-4
    assert server.texts == 6 * 5 and server.pictures == 6  # a text that is there twice is sent once
    oracle.query(images, Prompt(texts=twice))
    assert oracle.usage()["pictures"] == 6 and oracle.usage()["pictures_cached"] == 6
    # a probability that underflows counts as the smallest
    scores = zip(TEXTS, (1.0, 0.0, 1e-300))
    server.faults = [(200, {}, [{"label": text, "score": score} for text, score in scores])]
    answer = oracle.query(oracle.upload(digits[7:8]), Prompt())[0, 0]
    assert torch.allclose(answer, torch.tensor([0.0, -87.3365, -87.3365]))
    # two classes of one text are one label
    oracle, texts = oracle_at(server, ["b_a", "c", "b a"], api="hf"), server.texts
    answer = oracle.query(oracle.upload(digits[:1]), Prompt())[0, 0]
    assert answer[0] == answer[2] != answer[1] and server.texts == texts + 2


def test_what_a_run_comes_to_is_told_before_it_and_stands_on_the_bill(service, digits):
    oracle = oracle_at(service(), PRICE=0.0001)
    # ten texts are new, and one picture is sent once more
    asked = [([800], [Texts.of(map(str, range(10)))])]
    told = {"calls": 27, "pictures": 801, "texts": 10, "money": 0.0801}
    assert oracle.quote(asked) == told
    told = {"calls": 800, "pictures": 800, "texts": 8000}
    assert oracle_at(service("hf"), api="hf").quote(asked) == told
    oracle.query(oracle.upload(digits[:2]), Prompt())
    assert oracle.usage()["money"] == pytest.approx(0.0002) and "tokens" not in oracle.usage()
    # tokens are as the service says, afterwards, and so is what they cost
    oracle = oracle_at(service("items"), IMAGES="items", PRICE=0.5, PRICE_TOKENS=1000.0)
    assert "money" not in oracle.quote(asked)
    oracle.query(oracle.upload(digits[:2]), Prompt())
    tokens = 7 * (1 + len(TEXTS) + 2)  # and the sample
    assert oracle.usage()["tokens"] == tokens
    assert oracle.usage()["money"] == pytest.approx(2 * 0.5 + tokens / 1000)


# Faults


def test_calls_about_a_picture_are_made_several_at_a_time(digits):
    """In order, and exact on the bill and in the cache where one of them fails."""
    lock, now, most, bad = threading.Lock(), [], [], []

    def answer(service, path, body):
        with lock:
            now.append(1)
            most.append(len(now))
        time.sleep(0.05)
        with lock:
            now.pop()
            if body["inputs"] in bad:
                return 400, {}, {"error": "damaged"}
            service.pictures += 1
        return 200, {}, scores(body)

    def scores(body):
        labels = body["parameters"]["candidate_labels"]
        found = [zlib.crc32((body["inputs"] + text).encode()) % 97 / 97 for text in labels]
        return [{"label": text, "score": score} for text, score in zip(labels, found)]

    server = Served(answer)
    with closing(server):
        oracle = oracle_at(server, api="hf", PATIENCE=60.0, THREADS=4)
        images = oracle.upload(digits)
        bad.append(base64.b64encode(png(images.pixels[20])).decode())
        start = time.monotonic()
        with pytest.raises(Refused, match="answers 400: damaged") as raised:
            oracle.query(images, Prompt())
        assert raised.value.status == 400 and time.monotonic() - start < 20
        answered = server.pictures
        assert 19 <= oracle.usage()["pictures"] == oracle.usage()["calls"] == answered < 55
        assert len(server.requests) == answered + 1  # the one that failed was asked once
        bad.clear()
        rows = oracle.query(images, Prompt())[0]
        assert max(most[:8]) == 1 and 2 <= max(most) <= 4
        assert server.pictures == len(set(images.ids)) == len(server.requests) - 1
        assert oracle.usage()["pictures"] == server.pictures > answered
        sent = {body["inputs"]: scores(body) for body in server.requests}
        for row, picture in zip(rows, images.pixels):
            found = sent[base64.b64encode(png(picture)).decode()]
            assert row.exp().tolist() == pytest.approx([entry["score"] for entry in found])


@pytest.mark.parametrize(
    "always, words, requests",
    [
        ((404, {}, {"detail": "Not Found"}), "embeddings answers 404: .*ORACLE.URL", 2),
        (None, "422: .*at most 32 items.*ORACLE.BATCH", 3),
    ],
)
def test_what_no_repetition_cures_is_not_repeated(service, digits, always, words, requests):
    server = service()
    oracle, server.always = oracle_at(server, BATCH=40), always
    with pytest.raises(Refused, match=words) as raised:
        oracle.query(oracle.upload(digits), Prompt())
    assert len(server.requests) == requests
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def rows_of(*rows):
    return {"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]}


DAMAGED = {
    "garbage": (200, {}, b"\x00\xff<html>"),
    "cut": (200, {}, b'{"object": "list", "data": [{"embed'),
    "none": (200, {}, {"data": []}),
    "one twice": (200, {}, {"data": [{"index": 0, "embedding": [1.0, 2.0]}] * 3}),
    "of words": (200, {}, rows_of(*[["a", "b"]] * 3)),
    "cut base64": (200, {}, rows_of(*["AAAAAAA="] * 3)),
    "not finite": (200, {}, rows_of([float("nan")], [1], [1])),
    "ragged": (200, {}, rows_of([1.0], [1.0] * 2, [1.0] * 3)),
    "half way": (200, {"Content-Length": "1000"}, b'{"data": ['),
    "the request": (400, {}, b'{"error":{"code":"damaged","message":"m"}}'),
}


@pytest.mark.parametrize("fault", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_answer_is_asked_for_again(service, digits, fault):
    server = service()
    oracle = oracle_at(server)
    server.faults = [fault]
    answer = oracle.query(oracle.upload(digits[:10]), Prompt())[0]
    assert difference(answer, local_logits(digits[:10], TEXTS)) < 1e-5


def test_answers_that_stay_damaged_are_not_bought_for_ever(service, digits):
    server = service("hf")
    oracle = oracle_at(server, api="hf", PATIENCE=60.0)
    server.always = 200, {}, [{"label": "another", "score": 0.5}]
    with pytest.raises(BlackBoxError, match="answers, but not as expected.*ORACLE.API"):
        oracle.query(oracle.upload(digits), Prompt())
    assert len(server.requests) == oracle.usage()["calls"] == 2
    server = service()
    oracle = oracle_at(server)
    server.faults = [(200, {}, rows_of(*[[1.0] * 64] * 3))]  # a space of pictures alone
    with pytest.raises(BlackBoxError, match=r"\[3, 64\] numbers, not \[3, 128\] finite ones"):
        oracle.query(oracle.upload(digits), Prompt())


def test_no_key_is_written_anywhere(service, data_root, tmp_path, capsys, monkeypatch):
    server = service()
    for status in (0, 1):
        out = tmp_path / f"{status}"
        assert run("ZeroshotOracle", data_root, out, *at(server, tmp_path / "cache")) == status
        server.always = 401, {}, {"detail": "Unauthorized"}
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3 and not any(KEY.encode() in path.read_bytes() for path in written)
    monkeypatch.setenv("BLACKBOX_KEY", "ein Schlüssel")
    with pytest.raises(BlackBoxError, match="characters that no header can") as found:
        oracle_at(server)
    assert "Schl" not in str(found.value)


def test_names_that_cannot_be_sent_are_sentences(service):
    oracle = oracle_at(service())
    for names, template, words in (
        (["a", 3], "{}", r"Class names are words in UTF-8.*are \[3\]"),
        (["a", "\ud800"], "{}", r"are \['.ud800'\]"),
        (["a"], "a photo", "has a slot {}: .* and 'a photo'"),
    ):
        with pytest.raises(BlackBoxError, match=words):
            oracle.set_classes(names, template)


# What is kept of answers


def asked(server, digits, cache, api="openai", **more):
    """Pictures that a new oracle sends."""
    before, oracle = server.pictures, oracle_at(server, cache=cache, api=api, **more)
    answer = oracle.query(oracle.upload(digits), Prompt())[0]
    if api == "openai":
        assert difference(answer, local_logits(digits, TEXTS)) < 1e-5
    return server.pictures - before


def test_answers_outlive_the_process_by_what_they_are_about(
    service, digits, tmp_path, monkeypatch, capsys
):
    server, cache = service(), tmp_path / "kept"
    monkeypatch.setenv("HOME", str(tmp_path))
    first = asked(server, digits[:20], "~/kept")
    assert first > 10 and asked(server, digits[:20], cache) == 0
    assert asked(server, digits[:20], cache, LOGIT_SCALE=SCALE) == 0
    assert asked(server, digits[:20], "") == first
    scores = service("hf")
    assert asked(scores, digits[:20], cache, "hf") == first - 1  # features: the first twice
    assert asked(scores, digits[:20], cache, "hf") == 0
    server.faults = [(200, {}, rows_of(torch.randn(128).tolist()))]  # another model by this name
    assert asked(server, digits[:20], cache) > 0
    assert "no longer holds the tiny of ORACLE.CACHE" in capsys.readouterr().out


def test_a_folder_that_cannot_be_used_is_passed_over(service, digits, tmp_path, capsys):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "cache.db").write_bytes(b"noise" * 5000)
    (tmp_path / "file").write_text("a file")
    for folder in (tmp_path, tmp_path / "file"):
        assert asked(service(), digits[:3], folder) > 0
        assert f"Note: answers are not kept in ORACLE.CACHE, {folder} (" in capsys.readouterr().out


def test_what_is_damaged_on_disk_is_as_what_is_missing(tmp_path):
    cache = open_cache(tmp_path)
    for name in "ab":
        cache[name] = name.encode()
    with sqlite3.connect(tmp_path / "cache.db") as database:
        database.execute("UPDATE Cache SET value = zeroblob(32) WHERE rowid = 1")
    fresh = open_cache(tmp_path)
    assert [fresh.get(name) or None for name in "abc"] == [None, b"b", None]


# A class of one's own


def of_the_guide(name, folder, monkeypatch):
    """A module of docs/REMOTE.md, to be imported."""
    guide = (REPO / "docs" / "REMOTE.md").read_text()
    code = re.search(rf"```python\n(# {name}.py.*?)```", guide, re.S)[1]
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))


def test_the_service_of_the_guide(data_root, tmp_path, monkeypatch, capsys):
    of_the_guide("my_service", tmp_path, monkeypatch)

    def answer(service, path, body):
        rows = embed_texts(body["words"]) if path == "/words" else embed_images(body["png"])
        return 200, {}, {"rows": rows.tolist()}

    with closing(Served(answer)) as server:
        for options in ((), at(server, api="my_service:MyService")):
            assert run("ZeroshotOracle", data_root, tmp_path / f"{len(options)}", *options) == 0
    assert printed(tmp_path / "0") == printed(tmp_path / f"{len(options)}")
    for api in ("no_such_module:Mine", "json:Mine"):
        with pytest.raises(BlackBoxError, match=f"{api} is not found"):
            oracle_at(server, api=api)


def test_the_backend_of_the_guide(data_root, tmp_path, monkeypatch, capsys):
    of_the_guide("my_backend", tmp_path, monkeypatch)
    options = ("ORACLE.API", "my_backend:MyBackend", "INPUT.SIZE", "(32, 32)")
    named = "MODEL.BACKBONE.NAME", "mine"
    assert run("SONAR", data_root, tmp_path / "out", *options, *VIEWS["SONAR"], *named) == 0
    said = capsys.readouterr().out
    assert float(accuracy(said)[:-1]) > 40 and bill(tmp_path / "out")["training"]["queries"] > 0
    assert "no effect" not in said
    assert run("ZIP", data_root, tmp_path / "zip", *options) == 1
    assert "asked for 'contexts'" in capsys.readouterr().err


CUT = """
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import TopK

def oracle(cfg, device, client):
    return TopK(LocalOracle(load_model("tiny"), ("logits",), client), 3)
"""


def test_answers_that_are_cut_unannounced_cost_no_more_than_was_told(
    data_root, tmp_path, monkeypatch
):
    """Without ORACLE.TOP_K; then evaluation asks about all texts, not about half of them."""
    (tmp_path / "cut_model_of_a_test.py").write_text(CUT)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = "ORACLE.API", "cut_model_of_a_test:oracle", "TRAINER.SONAR.VIEWS", 1
    trainer = build("SONAR", data_root, tmp_path / "out", *options)
    told = trainer.evaluation(["test"])
    trainer.train()
    assert len(trainer.head.kept) == 40  # all of them
    spent = bill(tmp_path / "out")["evaluation"]
    assert told == trainer.evaluation(["test"]) == (spent["queries"], spent["image_queries"])
