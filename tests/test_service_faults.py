"""A service that refuses, is busy, or answers damaged: asked again within bounds, or a sentence."""

import base64
import gc
import io
import threading
import time
import zlib
from contextlib import nullcontext

import pytest
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import Prompt
from dassl_blackbox.trainers.blackbox.oracle.services import Refused, png
from PIL import Image
from services import DATA, KEY, TEXTS, Served, at, local_logits, oracle_at
from support import difference, run


def test_calls_about_a_picture_are_made_several_at_a_time(digits, tmp_path):
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
        with lock:
            service.pictures += 1
        return 200, {}, scores(body)

    def scores(body):
        return [
            {"label": text, "score": (zlib.crc32((body["inputs"] + text).encode()) % 97) / 97}
            for text in body["parameters"]["candidate_labels"]
        ]

    server = Served(answer)
    try:
        oracle = oracle_at(server, api="hf", cache=tmp_path, PATIENCE=60.0, THREADS=4)
        images = oracle.upload(digits)
        rows = oracle.query(images, Prompt())[0]
        assert max(most[:8]) == 1 and 2 <= max(most) <= 4
        sent = {body["inputs"]: scores(body) for body in server.requests}
        for i, picture in enumerate(images.pixels):
            found = sent[base64.b64encode(png(picture)).decode()]
            assert rows[i].exp().tolist() == pytest.approx([entry["score"] for entry in found])
        oracle = oracle_at(server, api="hf", PATIENCE=60.0)
        bad.append(base64.b64encode(png(images.pixels[20])).decode())
        server.requests, server.pictures, start = [], 0, time.monotonic()
        with pytest.raises(Refused, match="answers 400: damaged") as raised:
            oracle.query(images, Prompt())
        assert raised.value.status == 400 and time.monotonic() - start < 20
        assert 19 <= oracle.usage()["pictures"] == oracle.usage()["calls"] == server.pictures < 55
        assert len(server.requests) == server.pictures + 1  # the one that failed was asked once
        answered = server.pictures
        bad.clear()
        oracle.query(images, Prompt())
        assert server.pictures == len(set(images.ids)) == len(server.requests) - 1
        assert oracle.usage()["pictures"] == server.pictures > answered
    finally:
        server.close()


def test_texts_are_asked_about_several_calls_at_a_time(digits):
    """And many pictures in one call after the other, which take a service long."""
    lock, now, most = threading.Lock(), {"text": 0, "image": 0}, {"text": 0, "image": 0}

    def answer(service, path, body):
        kind = body["modality"]
        with lock:
            now[kind] += 1
            most[kind] = max(most[kind], now[kind])
        time.sleep(0.02)
        with lock:
            now[kind] -= 1
        bits = [zlib.crc32(item.encode()) for item in body["input"]]
        if kind == "image":  # what a file shows, however it is written
            bits = [zlib.crc32(shown(item)) for item in body["input"]]
        rows = [[(number >> i & 1) - 0.5 for i in range(32)] for number in bits]
        return 200, {}, {"data": [{"embedding": row} for row in rows]}

    def shown(item):
        return Image.open(io.BytesIO(base64.b64decode(item.removeprefix(DATA)))).tobytes()

    server = Served(answer)
    try:
        oracle = oracle_at(server, [f"class {i}" for i in range(40)], BATCH=2, THREADS=4)
        assert oracle.query(oracle.upload(digits), Prompt()).shape == (1, 60, 40)
        assert 2 <= most["text"] <= 4 and most["image"] == 1
    finally:
        server.close()


def test_connections_and_cache_are_closed_with_the_oracle(service, tmp_path):
    oracle = oracle_at(service(), cache=tmp_path)
    oracle.text_features(Prompt())
    client, cache = oracle.line.client, oracle.answers
    assert not client.is_closed and cache._local.con
    del oracle
    gc.collect()
    assert client.is_closed and not hasattr(cache._local, "con")


@pytest.mark.parametrize(
    "status, content, words",
    [
        (401, {"detail": "Unauthorized"}, "401: Unauthorized.*BLACKBOX_KEY."),
        (402, {"detail": "Insufficient balance"}, "a budget is spent: Insufficient balance"),
        (404, {"detail": "Not Found"}, "embeddings answers 404: .*ORACLE.URL"),
        (413, b"<html>too large</html>", "413: .*ORACLE.BATCH"),
        (400, {"error": {"message": "bad", "type": "t", "param": None, "code": 400}}, "400: bad"),
    ],
)
def test_what_no_repetition_cures_is_a_sentence(service, digits, status, content, words):
    server = service()
    oracle = oracle_at(server)
    server.always = status, {}, content
    with pytest.raises(Refused, match=words) as raised:
        oracle.query(oracle.upload(digits), Prompt())
    assert len(server.requests) == 2 and "\n" not in str(raised.value)


def test_a_request_with_too_many_pictures_is_a_sentence_of_a_line(service, digits):
    oracle = oracle_at(service(), BATCH=40)
    with pytest.raises(Refused, match="422: .*at most 32 items.*ORACLE.BATCH") as raised:
        oracle.query(oracle.upload(digits), Prompt())
    assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)


def test_a_busy_service_is_waited_for_as_long_as_it_says(service, digits):
    server = service()
    oracle = oracle_at(server)
    server.faults = [(429, {"Retry-After": "1"}, {"error": {"message": "overloaded"}})]
    start = time.monotonic()
    oracle.query(oracle.upload(digits), Prompt())
    assert time.monotonic() - start > 1
    assert oracle.usage()["texts"] == 4 == server.texts


DAMAGED = {
    "garbage": b"\x00\xff<html>",
    "cut": b'{"object": "list", "data": [{"embed',
    "none": {"data": []},
    "one twice": {"data": [{"index": 0, "embedding": [1.0, 2.0]}] * 3},
    "of words": {"data": [{"index": i, "embedding": ["a", "b"]} for i in range(3)]},
    "no base64": {"data": [{"index": i, "embedding": "%%%%"} for i in range(3)]},
    "cut base64": {"data": [{"index": i, "embedding": "AAAAAAA="} for i in range(3)]},
    "not finite": b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}, '
    b'{"index": 2, "embedding": [1]}]}',
    "ragged": {"data": [{"index": i, "embedding": [1.0] * (i + 1)} for i in range(3)]},
    "a list": [1, 2],
    "too large a number": b'{"data": [{"index": 0, "embedding": [1e999]}, {"index": 1, "embedding":'
    b' [1]}, {"index": 2, "embedding": [1]}]}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_answer_is_asked_for_again(service, digits, content):
    server = service()
    oracle = oracle_at(server)
    server.faults, before = [(200, {}, content)], oracle.usage()
    answer = oracle.query(oracle.upload(digits), Prompt())[0]
    assert difference(answer, local_logits(digits, TEXTS)) < 1e-5
    assert oracle.usage()["calls"] == len(server.requests)  # each may be billed
    assert oracle.usage()["texts"] == before["texts"] + 2 * 3


def test_an_answer_that_stops_half_way_is_asked_for_again(service, digits):
    server = service()
    oracle = oracle_at(server)
    server.faults = [(200, {"Content-Length": "1000"}, b'{"data": [')]
    assert oracle.query(oracle.upload(digits), Prompt()).shape == (1, 60, 3)


def test_answers_that_stay_damaged_are_not_bought_for_ever(service, digits):
    server = service("hf")
    oracle = oracle_at(server, api="hf", PATIENCE=60.0, PRICE=0.5)
    server.always = 200, {}, [{"label": "another", "score": 0.5}]
    with pytest.raises(BlackBoxError, match="answers, but not as expected.*ORACLE.API"):
        oracle.query(oracle.upload(digits), Prompt())
    assert len(server.requests) == oracle.usage()["calls"] == 2 and oracle.usage()["money"] == 1.0


@pytest.mark.parametrize("content", [b'{"error":{"code":"damaged","message":"m"}}', b"{}"])
def test_a_request_that_came_damaged_is_made_again(service, digits, content):
    """Which a service says by a code, however it writes JSON."""
    server = service()
    oracle = oracle_at(server)
    server.faults = [(400, {}, content)]
    with nullcontext() if b"damaged" in content else pytest.raises(Refused):
        assert oracle.query(oracle.upload(digits), Prompt()).shape == (1, 60, 3)


def test_a_space_of_pictures_alone_is_a_sentence(service, digits):
    server = service()
    oracle = oracle_at(server)
    rows = [{"index": i, "embedding": [1.0] * 64} for i in range(3)]
    server.faults = [(200, {}, {"data": rows})]
    with pytest.raises(BlackBoxError, match=r"\[3, 64\] numbers, not \[3, 128\] finite ones"):
        oracle.query(oracle.upload(digits), Prompt())


def test_a_spent_budget_ends_a_run_with_a_sentence(service, data_root, tmp_path, capsys):
    server = service()
    server.always = 402, {}, {"error": {"message": "You exceeded your current quota"}}
    assert run("SONAR", data_root, tmp_path, *at(server)) == 1
    assert "exceeded your current quota" in capsys.readouterr().err


def test_no_key_is_written_anywhere(service, data_root, tmp_path, capsys):
    server = service()
    options = at(server, tmp_path / "cache")
    assert run("ZeroshotOracle", data_root, tmp_path / "a", *options) == 0
    server.always = 401, {}, {"detail": "Unauthorized"}
    assert run("ZeroshotOracle", data_root, tmp_path / "b", *options) == 1
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3 and not any(KEY.encode() in path.read_bytes() for path in written)


@pytest.mark.parametrize(
    "names, template, words",
    [
        ([], "{}", r"Class names are words in UTF-8.*are \[\]"),
        (["a", 3], "{}", r"are \[3\]"),
        (["a", "\ud800"], "{}", r"are \['.ud800'\]"),
        (["a", " _"], "{}", r"are \[' _'\]"),
        (["a"], "a photo", "has a slot {}: .* and 'a photo'"),
    ],
)
def test_names_that_cannot_be_sent_are_sentences(service, names, template, words):
    oracle = oracle_at(service())
    with pytest.raises(BlackBoxError, match=words):
        oracle.set_classes(names, template)
