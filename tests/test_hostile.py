"""What a server is sent by clients that are broken, or mean it no good.

For each case: an answer within seconds, below 500, with an error that is a sentence and holds no
key, path or traceback; nothing billed that is refused; bounded memory; and after all of it the
right logits. `--long` draws 100,000 cases instead of hundreds.
"""

import base64
import io
import itertools
import json
import math
import os
import random
import re
import socket
import struct
import time
import zlib
from contextlib import ExitStack, suppress
from urllib.parse import quote

import pytest
import torch
from dassl_blackbox.serve.application import PAUSE
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, Prompt
from dassl_blackbox.trainers.blackbox.oracle.wire import (
    MEDIA,
    Contents,
    digest_of,
    normalised,
    pack,
)
from PIL import Image
from served import KEYS, PATIENCE, QUESTIONS, WIDTH, Served, serving, tensor, write_keys
from support import seeded
from test_fuzz import damaged

MEGABYTES = 8  # of the largest body
SECONDS = 2  # within which a request must have come
GROWTH = 400  # megabytes that the server may hold more in the end
PICTURE = "image/png"
POSTS = (*QUESTIONS, "/v1/texts", "/v1/images")
GETS = ("/metrics", "/v1/description", "/v1/usage", "/v1/embedding?words=a")
PATHS = (*POSTS, *GETS, "/docs", "/openapi.json", "/", "/v2", "/v1/query/", "/v1/../v1/usage")
GOOD = b"Host: x\r\nAuthorization: Bearer key-of-full\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The server, which in the end runs, holds little more, and has written no error."""
    folder = tmp_path_factory.mktemp("hostile")
    options = ("--max-mb", MEGABYTES, "--store-mb", 64, "--seconds", SECONDS)
    os.environ["PYTHONFAULTHANDLER"] = "1"  # of the server: what ends it is in its log
    with serving(folder / "state", "--keys", write_keys(folder), *options, keys="") as server:
        found = Served(server)
        yield found
        assert server.process.poll() is None, server.log.read_text()
        found.right()
        assert server.memory() - found.memory < GROWTH
        said = server.log.read_text()
        wrong = r"[\d,]+ requests without a known key so far, the last from 127.0.0.1\n"
        assert re.sub(wrong, "", said) == ""


@pytest.fixture(autouse=True)
def nothing_refused_is_billed(served):
    """As many requests are on the bills as were answered, and the server answers as before."""
    assert served.server.process.poll() is None, served.server.log.read_text()
    before = {name: served.usage(name)["requests"] for name in KEYS}
    served.line.billed = {}
    yield
    for name, requests in before.items():
        assert served.usage(name)["requests"] - requests == served.line.billed.get(name, 0), name
    served.right()


def test_the_first_answer_is_the_models(served):
    loaded = load_model("tiny")
    near = LocalOracle(loaded, GRANTS)
    near.set_classes(served.names)
    images = near.upload(normalised(served.images, loaded.description))
    assert (served.logits - near.query(images, Prompt(served.contexts))).abs().max() < 1e-3


def test_no_key_gets_nothing(served):
    words, start, good = set(), time.monotonic(), b"Bearer key-of-full"
    keys = (None, b"", b"Bearer", b"Bearer ", b"Basic " + base64.b64encode(good), good[:-1])
    keys += (b"Basic key-of-full", good + b"x", good.upper(), b"Bearer " + good)
    keys += (b"Bearer \xc3\xa9\xff", b"Bearer " + b"k" * 10_000)
    methods = itertools.cycle(["GET", "POST", "DELETE", "OPTIONS", "TRACE"])
    for method, path, key in zip(methods, itertools.cycle(PATHS), 6 * keys):
        body = served.question if method == "POST" else b""
        answer = served.line.ask(method, path, body, MEDIA, key)
        assert answer.status == 401, (path, key)
        words.add(answer.body)
    assert len(words) == 1 and time.monotonic() - start > 6 * len(keys) * PAUSE
    assert served.line.ask("GET", "/health", key=None).status == 200


def test_paths_and_methods_that_are_not_there(served):
    taken = {"POST": POSTS, "GET": (*GETS, "/health"), "HEAD": (*GETS, "/health")}
    for method in ("GET", "POST", "PUT", "HEAD", "BREW"):
        for path in (
            *PATHS,
            "/health",
            "/../../etc/passwd",
            "/%2e%2e/etc/passwd",
            "//x",
            "/" * 9999,
        ):
            answer = served.line.ask(method, path)
            there = path in taken.get(method, ())
            assert (answer.status in (404, 405)) != there, (method, path)
            assert "location" not in answer.headers


def test_what_another_key_sent_is_unknown_and_what_was_sent_gives_the_own_grants(served):
    # nor can what another has sent be told from what nobody has
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=seeded(5))

    def send(key):
        served.post("/v1/images", pack({"images": images}), key)
        answer = served.post_texts({"names": ["of another", "and one more"]}, key)
        return answer.status == 200 and json.loads(answer.body)["id"]

    texts, ids = send("another"), Contents(images).ids
    about, contexts = {"images": ids, "classes": texts}, {"contexts": torch.zeros(1, 1, 128)}
    asked = [
        ("/v1/query", pack({}, about)),
        ("/v1/features/images", pack({}, {"images": ids})),
        ("/v1/features/texts", pack({}, {"classes": texts})),
        ("/v1/query", pack(contexts, about)),
        ("/v1/query", pack({"image_tokens": torch.zeros(1, 1, WIDTH)}, about)),
    ]
    allowed = {
        "full": [200] * 6,
        "plain": [200, *[403] * 5],
        "nothing": [403] * 6,
        "top": [200, 403, 403, 200, 200, 200],
    }
    before = served.usage("another")
    for key, statuses in allowed.items():
        mine = served.usage(key)
        if statuses[0] == 200:
            answer = served.post(*asked[0], key)
            missing = {"images": ids, "texts": [texts]}
            assert answer.status == 404 and json.loads(answer.body)["missing"] == missing
        assert bool(send(key)) == (key != "nothing")
        answers = [served.post(*question, key) for question in asked]
        answers.append(served.line.ask("GET", "/v1/embedding?words=a", key=key))
        assert [answer.status for answer in answers] == statuses, key
        assert served.usage(key)["requests"] == mine["requests"] + statuses[:5].count(200)
        if key == "top":  # one log-probability of two, and what is left beside it
            assert (tensor(answers[0]).exp().sum(-1) - 1).abs().max() < 1e-5
    assert served.usage("another") == before
    # what all have used together would tell each of two what the other has
    for key in KEYS:
        status = served.line.ask("GET", "/metrics", key=key).status
        assert status == (200 if key == "another" else 403)
    own = served.line.ask("GET", "/v1/usage?key=another", key="plain").body
    assert own == served.line.ask("GET", "/v1/usage", key="plain").body


def test_names_of_requests(served):
    before = served.usage()

    def ask(name, body=served.question, key="full", path="/v1/query"):
        answer = served.post(path, body, key, headers={"Idempotency-Key": name})
        return answer.status if answer.status != 422 else json.loads(answer.body)["error"]["code"]

    other, words = pack({}, served.about), pack({}, {"classes": served.texts})
    assert ask(b"one") == ask(b"one") == 200
    assert ask(b"one", other) == ask(b"one", words, path="/v1/features/texts") == "name_taken"
    served.send("another")
    assert ask(b"one", other, "another") == 200  # names are each key's own
    assert ask(b"two", pack({}, {**served.about, "images": ["0" * 64]})) == 404
    assert ask(b"two") == 200  # what was refused did not take the name
    assert served.usage()["requests"] - before["requests"] == 2
    served.line.billed["full"] -= 1  # answered twice, billed once


NUMBERS = (0, 1, 2, 32, 128, -1, 2**16, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, 0.5)
TEXTS = ("", " ", "\x00", "\ud800", "é", "{}", "{}{}{}", "{0}", "{}" * 400, "<end_of_text>", "\n")
TEXTS += ("<|startoftext|>", "&lt;start_of_text&gt;", "<ſtart_of_text>", "a" * 1000, "a " * 499)
TEXTS += ("a" * 1001, "\u202e", "\U0001f600" * 30, "../../etc/passwd", "__proto__", "nan", "_")
TEXTS += ("F16", "I64", "U8", "BOOL", "F8_E4M3", "contexts", "[" * 10_000, "0" * 64, "٣" * 64)
# of names, numbers and lists that stand in a body
ODD = (*NUMBERS, *TEXTS, None, True, [], {}, [[]], [None] * 3, {"a": [{}]}, [0] * 9, ["0" * 64])


def otherwise(rng, value):
    """A JSON value with one part of it otherwise, or lost."""
    if not isinstance(value, (list, dict)) or not value or rng.random() < 0.1:
        return rng.choice(ODD)
    changed = value.copy()
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if rng.random() < 0.1:
        del changed[key]
    else:
        changed[key] = otherwise(rng, value[key])
    return changed


def file_of(header, data=b"", length=None):
    """A safetensors file, whatever its header says."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(head) if length is None else length
    return (length % 2**64).to_bytes(8, "little") + head + data


def odd(rng, body):
    """A safetensors file with one part of its header, or of what is asked in it, otherwise."""
    end = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:end])
    header["__metadata__"]["about"] = json.loads(header["__metadata__"]["about"])
    header = otherwise(rng, header)
    match header:
        case {"__metadata__": {"about": about}} if not isinstance(about, str):
            header["__metadata__"] = {"about": json.dumps(about)}
    lengths = [None] * 9 + [0, 1, 2**31, 2**63, 2**64 - 1]
    return file_of(header, body[end:], rng.choice(lengths))


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_bodies_of_which_a_part_is_otherwise(served, request):
    """Some bytes, a part of what is JSON, or the words in an address."""

    def coded(text):
        return text.encode("utf-8", "surrogatepass")

    classes, noise = {"classes": served.texts}, Image.effect_noise((50, 40), 99)
    asked = [
        ("/v1/query", MEDIA, served.question),
        ("/v1/features/images", MEDIA, pack({}, {"images": served.ids})),
        ("/v1/features/texts", MEDIA, pack({}, classes)),
        ("/v1/images", MEDIA, pack({"images": served.images})),
        ("/v1/query", MEDIA, pack({"pictures": torch.zeros(1, 2, 3, 32, 32)}, classes)),
        ("/v1/query", MEDIA, pack({"image_tokens": torch.zeros(1, 1, WIDTH)}, served.about)),
        ("/v1/texts", "application/json", b'{"names": ["a", "b"], "template": "a {}."}'),
        *(("/v1/images", PICTURE, encoded(noise.convert(mode))) for mode in ("RGBA", "P")),
        ("/v1/images", PICTURE, encoded(noise.convert("CMYK"), "JPEG")),
    ]
    for path, kind, body in asked:
        assert served.post(path, body, kind=kind).status == 200, path

    for seed in range(100_000 if request.config.getoption("--long") else 500):
        rng = random.Random(seed)
        (path, kind, sound), headers = rng.choice(asked), {}
        if kind == PICTURE or rng.random() < 0.5:
            body = damaged(rng, sound)
            headers = {"Content-Digest": digest_of(sound)} if rng.random() < 0.5 else {}
        elif kind == MEDIA:
            body = odd(rng, sound)
        else:
            body = coded(json.dumps(otherwise(rng, json.loads(sound)), ensure_ascii=False))
        status = served.post(path, body, kind=kind, headers=headers).status
        assert status in ((400, 200) if headers else (200, 404, 413, 422)), seed
        assert status != 200 or not headers or body == sound, seed
    for words in (*map(coded, TEXTS), b"\xff"):
        for key, statuses in (("full", (200, 422)), ("nothing", (403,))):
            path = f"/v1/embedding?words={quote(words)}"
            assert served.line.ask("GET", path, key=key).status in statuses
    for query in ("", "?", "?words", "?word=a", "?words=a&words=b", "?words=%", "?" + "&" * 5000):
        served.line.ask("GET", f"/v1/embedding{query}")


def tensor_file(name, shape, data=b"", about="null"):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}
    return file_of({name: entry, "__metadata__": {"about": about}}, data)


def test_bodies_that_are_bombs(served):
    ids, about, none = [f"{i:064x}" for i in range(100_000)], json.dumps(served.about), [0, 1, 128]
    classes = json.dumps({"classes": served.texts})
    bad = {
        "empty": b"",
        "length": file_of(b"{}", length=2**64 - 1),
        "a header of lists": file_of(b"[" + b"[]," * (2 * 2**20) + b"[]]"),
        "a header of entries": file_of({f"{i}": {} for i in range(300_000)}),
        "deep": tensor_file("contexts", none, about="[" * 200_000),
        "lists beside it": tensor_file("contexts", none, about="[" + "[]," * 10**6 + "[]]"),
        "entries beside it": tensor_file("contexts", none, about=json.dumps(dict.fromkeys(ids))),
        "digits": tensor_file("contexts", none, about="9" * 10**6),
        "shape without data": tensor_file("contexts", [2**40, 2**10, 128]),
        "nothing of much": tensor_file("contexts", [2**62, 0, 128], about=about),
        "dimensions": tensor_file("contexts", [0] * 100_000),
        "candidates": tensor_file("contexts", [2**19, 0, 128], about=about),
        "tokens": tensor_file("contexts", [1, 2000, 128], bytes(4 * 2000 * 128), about),
        "image tokens": tensor_file("image_tokens", [1, 1025, 192], bytes(4 * 1025 * 192), about),
        "no picture": tensor_file("pictures", [1, 0, 3, 32, 32], about=classes),
        "one dimension": tensor_file("contexts", [2], bytes(8), about),
        "too many images": pack({}, {**served.about, "images": ids}),
    }
    for name, body in bad.items():
        for path in ("/v1/query", "/v1/images")[: 1 + (len(body) < 2**20)]:
            assert served.post(path, body).status in (413, 422), (name, path)
    answer = served.post("/v1/query", pack({}, {**served.about, "images": ids[:60_000]}))
    assert answer.status == 404 and len(json.loads(answer.body)["missing"]["images"]) == 60_000
    whole = pack({"images": torch.zeros(2 * 2**20 // 3072, 3, 32, 32)})
    assert served.post("/v1/images", whole).status == 200
    about = {**served.about, "images": served.ids * 15_000}
    assert served.post("/v1/query", pack({}, about)).status == 200
    tokens = {"image_tokens": torch.zeros(2000, 1, WIDTH)}  # each on 60,000 images
    assert served.post("/v1/query", pack(tokens, about)).status in (413, 422)


def test_numbers_that_are_none_or_at_the_edge(served):
    parts = {"contexts": (1, 1, 128), "image_tokens": (1, 1, WIDTH), "pictures": (1, 1, 3, 32, 32)}
    for value in (math.nan, math.inf, -math.inf):
        images = pack({"images": torch.full((1, 3, 32, 32), value)})
        assert served.post("/v1/images", images).status == 422
        for name, shape in parts.items():
            part = torch.zeros(shape)
            part.view(-1)[7] = value
            about = {**served.about, "images": [] if name == "pictures" else served.ids}
            answer = served.post("/v1/query", pack({name: part}, about))
            assert answer.status == 422 and b"not finite" in answer.body
    # what is finite and leads to nothing that is, is refused: there is no NaN with a 200
    for value in (1e-45, 3e38, -3e38, 0.0):
        part, images = torch.full((1, 1, 128), value), torch.full((1, 3, 32, 32), value)
        assert served.post("/v1/images", pack({"images": images})).status == 200
        names = {**served.about, "images": Contents(images).ids}
        for about, more in ((served.about, {"contexts": part}), (names, {})):
            answer = served.post("/v1/query", pack(more, about))
            assert answer.status == 200 or (abs(value) > 1 and answer.status == 422)
            assert answer.status == 422 or tensor(answer).isfinite().all()


def test_lists_of_texts_that_are_bombs(served):
    words = random.Random(0)

    def word(length):
        return "".join(words.choices("abcdefghijklmnop", k=length))

    for value in (
        {"names": []},
        {"names": ["a"] * 10**6},
        {"names": ["a" * 10**6]},
        {"names": ["a" * 900] * 1000, "template": "{}" * 400},
        {"names": [word(900) for _ in range(8000)]},
        {"names": ["a " * 100]},
        {"names": ["a"], "template": "<end_of_text>{}"},
        {"names": ["a"], "template": "&lt;start_of_text&gt;{}"},
        {"names": ["\ud800"]},
    ):
        assert served.post_texts(value).status == 422, str(value)[:99]
    for body in (b"", b"[" * 10**6, b'{"names":' * 10**5, b"\xff", b"1e999"):
        assert served.post("/v1/texts", body).status == 422
    # words that the tokeniser has not met, again and again: what it remembers is bounded
    for _ in range(40 if served.line.cases > 30_000 else 2):
        names = [" ".join(word(4) for _ in range(8)) for _ in range(3000)]
        assert served.post_texts({"names": names}).status == 200


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(side, data):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + rest


def test_pictures_that_are_bombs_or_none(served):
    plain = Image.new("RGB", (64, 64))
    scans = encoded(Image.new("RGB", (800, 800), "red"), "JPEG", progressive=True)
    last = scans[scans.rindex(b"\xff\xda") : -2]
    text = chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(10**8), 9))
    bad = {
        "nothing": b"",
        "50,000 x 50,000": png_of(50_000, bytes(1000)),
        "7,000 x 7,000": png_of(7000, bytes(7000 * 7000 * 3 + 7000)),
        "1 x 10,000": encoded(Image.new("L", (1, 10_000))),
        "a comment of 100 MB": encoded(plain)[:33] + text + encoded(plain)[33:],
        "the last scan 4,000 times": scans[:-2] + last * 4_000 + scans[-2:],  # ten seconds
        # Pillow has a program run for this one, if it is there
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n",
        **{kind: encoded(plain, kind) for kind in ("GIF", "BMP", "TIFF", "PPM", "WEBP", "ICO")},
    }
    for name, body in bad.items():
        for kind in (PICTURE, "IMAGE/JPEG; charset=x"):
            assert served.post("/v1/images", body, kind=kind).status == 422, name
    for kind in (None, "", "image/gif", "image/*", "application/json", "é", ";"):
        assert served.post("/v1/images", encoded(plain), kind=kind).status == 415, kind
    assert served.post("/v1/images", encoded(plain)).status == 422  # no tensors
    for most in (encoded(Image.new("RGBA", (5700, 5700))), scans):
        assert served.post("/v1/images", most, kind=PICTURE).status == 200


def raw(served, message):
    """A connection over which these bytes have been sent."""
    connection = socket.create_connection(("127.0.0.1", served.server.port), PATIENCE)
    with suppress(OSError):  # the server may have answered, and ended it
        connection.sendall(message)
    return connection


def status(connection):
    """Of the answer; 0 where there is none."""
    try:
        return int(connection.recv(100)[9:12] or 0)
    except OSError:
        return 0


def test_lengths_that_are_none(served):
    start, size = b"POST /v1/query HTTP/1.1\r\n" + GOOD, b"Content-Length: "
    chunked, two = b"Transfer-Encoding: chunked", b"1\r\n" + size + b"2"
    lengths = [size + n for n in (b"-1", b"+1", b"0x10", b"9" * 19, b"9" * 30, two)]
    lengths += [chunked, chunked + b"\r\n" + size + b"5", b"X: x", b"X: " + b"x" * 10**5]
    for head in lengths:
        for body in (b"", b"5\r\nabcde\r\n0\r\n\r\n"):
            with raw(served, start + head + b"\r\n\r\n" + body) as line:
                assert status(line) in (0, *range(400, 500)), head[:99]


def test_clients_that_are_slow_are_not_waited_for(served):
    post = b"POST /v1/query HTTP/1.1\r\n" + GOOD + b"Content-Length: 1000\r\n\r\nx"
    start = time.monotonic()
    with raw(served, post) as still, raw(served, post) as trickling:
        for _ in range(20):  # others are answered meanwhile
            with suppress(OSError):
                trickling.sendall(b"x")
            assert served.line.ask("GET", "/v1/usage").seconds < PATIENCE / 4
            time.sleep(SECONDS / 20)
        assert status(still) == status(trickling) == 408
    assert time.monotonic() - start < 5 * SECONDS + 5


def test_what_is_announced_holds_nothing_and_an_account_holds_its_share(served):
    # heads that declare the largest bodies and send nothing, then most of them
    length = MEGABYTES * 2**20
    head = b"POST /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-of-plain\r\n"
    head += b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (MEDIA.encode(), length)
    with ExitStack() as stack:
        crowd = [stack.enter_context(raw(served, head)) for _ in range(8)]
        served.right()
        for connection in crowd:
            with suppress(OSError):  # some are refused, and ended
                connection.sendall(bytes(3 * length // 4))
        time.sleep(0.2)
        own = pack({"images": torch.zeros(1300, 3, 32, 32, dtype=torch.uint8)})  # 4 MB
        assert served.post("/v1/images", own).status == 200
        served.right()
        assert 503 in {*map(status, crowd)} <= {503, 408, 0}
    time.sleep(0.3)
