"""Keys, paths and names: without a key nothing, with another's no more than the own grants."""

import base64
import itertools
import json
import time

import pytest
import torch
from dassl_blackbox.serve.access import read_accounts
from dassl_blackbox.serve.application import PAUSE
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, Prompt
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, Contents, normalised, pack
from support import seeded

from hostile.client import JSON, KEY, KEYS, QUESTIONS, WIDTH
from hostile.server import NAMES

POSTS = (*QUESTIONS, "/v1/texts", "/v1/images")
GETS = ("/metrics", "/v1/description", "/v1/usage", "/v1/embedding?words=a", "/openapi.json")
PATHS = (*POSTS, *GETS, "/docs", "/redoc", "/", "/v2", "/v1/query/", "/v1/../v1/usage")


def test_the_first_answer_is_the_models(served):
    loaded = load_model("tiny", "fp32", "cpu")
    near = LocalOracle(loaded, GRANTS)
    near.set_classes(NAMES)
    images = near.upload(normalised(served.images, loaded.description))
    expected = near.query(images, Prompt(served.contexts))
    assert (served.logits - expected).abs().max() < 1e-3


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_no_key_gets_nothing(method, served):
    line, words = served.line, set()
    good = f"Bearer {KEY['full']}".encode()
    keys = [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + base64.b64encode(good),
        b"Basic " + good.split()[1],
        good[:-1],
        good + b"x",
        good.upper(),
        b"Bearer " + good,
        b"Bearer \xc3\xa9\xff",
        b"Bearer " + b"k" * 10_000,
    ]
    start = time.monotonic()
    for path, key in zip(itertools.cycle(PATHS), (*keys, *keys)):
        body = served.question if method == "POST" else b""
        answer = line.ask(method, path, body, MEDIA, key)
        assert answer.status == 401, (path, key)
        words.add(answer.body)
    assert len(words) == 1 and time.monotonic() - start > 2 * len(keys) * PAUSE
    assert line.ask("GET", "/health", key=None).status == 200
    huge = line.send(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\n\r\n" % (b"k" * 2**20))
    assert huge is None or huge.status == 400


def test_paths_and_methods_that_are_not_there(served):
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"):
        for path in (*PATHS, "/health", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//x/y"):
            taken = {"POST": POSTS, "GET": (*GETS, "/health"), "HEAD": ("/openapi.json",)}
            answer = served.line.ask(method, path)
            there = path in taken.get(method, ())
            assert (answer.status in (404, 405)) != there, (method, path)
            assert "location" not in answer.headers
    for path in ("*", "http://x/v1/usage", "/v1/usage%00", "/\\..\\..", "/v1/%75sage", "/" * 9999):
        served.line.ask("GET", path)


def test_what_another_key_sent_is_unknown_and_what_was_sent_gives_the_own_grants(served):
    """Neither a picture nor a list that another has sent can be asked about, or told from one that
    nobody has.
    """
    line = served.line
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=seeded(5))
    sent = pack({"images": images})
    listed = json.dumps({"names": ["of another", "and one more"]}).encode()

    def send(key):
        answers = (
            line.ask("POST", "/v1/images", sent, MEDIA, key),
            line.ask("POST", "/v1/texts", listed, JSON, key),
        )
        return answers[1].status == 200 and json.loads(answers[1].body)["id"]

    texts = send("another")
    about = {"images": Contents(images).ids, "classes": texts}
    query, features = pack({}, about), pack({}, {"images": about["images"]})
    words = pack({}, {"classes": texts})
    contexts = pack({"contexts": torch.zeros(1, 1, 128)}, about)
    tokens = pack({"image_tokens": torch.zeros(1, 1, WIDTH)}, about)
    allowed = {
        "full": (200, 200, 200, 200, 200, 200),
        "plain": (200, 403, 403, 403, 403, 403),
        "nothing": (403, 403, 403, 403, 403, 403),
        "top": (200, 403, 403, 200, 200, 200),
    }
    before = served.usage("another")
    for key, statuses in allowed.items():
        mine = served.usage(key)
        if statuses[0] == 200:
            asked = line.ask("POST", "/v1/query", query, MEDIA, key)
            assert asked.status == 404
            missing = json.loads(asked.body)["missing"]
            assert missing == {"images": about["images"], "texts": [texts]}
        assert bool(send(key)) == (key != "nothing")
        answers = [
            line.ask("POST", "/v1/query", query, MEDIA, key),
            line.ask("POST", "/v1/features/images", features, MEDIA, key),
            line.ask("POST", "/v1/features/texts", words, MEDIA, key),
            line.ask("POST", "/v1/query", contexts, MEDIA, key),
            line.ask("POST", "/v1/query", tokens, MEDIA, key),
            line.ask("GET", "/v1/embedding?words=a", key=key),
        ]
        assert tuple(answer.status for answer in answers) == statuses, key
        billed = sum(status == 200 for status in statuses[:5])
        assert served.usage(key)["requests"] == mine["requests"] + billed
        if key == "top":  # one log-probability of two, and what is left beside it
            assert (answers[0].tensor.exp().sum(-1) - 1).abs().max() < 1e-5
        if statuses[0] == 403:  # and not whether it is known
            asked = pack({}, {"images": ["0" * 64], "classes": texts})
            assert line.ask("POST", "/v1/query", asked, MEDIA, key).status == 403
    assert served.usage("another") == before
    # what all have used together would tell each of two what the other has
    statuses = {key: line.ask("GET", "/metrics", key=key).status for key in KEYS}
    assert statuses == {key: 200 if key == "another" else 403 for key in KEYS}
    assert line.ask("GET", "/v1/usage?key=another", key="plain").body == (
        line.ask("GET", "/v1/usage", key="plain").body
    )


def test_names_of_requests(served):
    line, before = served.line, served.usage()

    def ask(name, body=served.question, key="full", path="/v1/query"):
        return line.ask("POST", path, body, MEDIA, key, [b"Idempotency-Key: " + name])

    first, other = ask(b"one"), pack({}, served.about)
    assert (first.status, ask(b"one").status) == (200, 200)
    assert ask(b"one", other).code == "name_taken"
    words = pack({}, {"classes": served.texts.id})
    assert ask(b"one", words, path="/v1/features/texts").code == "name_taken"
    served.send("another")
    assert ask(b"one", other, "another").status == 200  # names are each key's own
    assert ask(b"x" * 10_000).status == ask(b"x" * 129).status == 422
    assert ask(b"x" * 128).status == ask(b"\xff' OR 1=1 --").status == 200
    missing = pack({}, {**served.about, "images": ["0" * 64]})
    assert ask(b"two", missing).status == 404
    assert ask(b"two").status == 200  # what was refused did not take the name
    assert served.usage()["requests"] - before["requests"] == 4
    line.billed["full"] -= 1  # answered twice, billed once


@pytest.mark.parametrize(
    "content, words",
    [
        ("- {name: me, key: a-long-key-1, max_queries: 9, max_queries: 0}", "given twice"),
        ("name: me", "no list of keys"),
        ("- {name: me", "line 1, is not YAML"),
    ],
)
def test_a_file_of_keys_that_cannot_be_meant(tmp_path, content, words):
    (tmp_path / "keys.yaml").write_text(content)
    (tmp_path / "keys.yaml").chmod(0o600)
    with pytest.raises(BlackBoxError, match=words):
        read_accounts(str(tmp_path / "keys.yaml"), ("logits",), 0)
