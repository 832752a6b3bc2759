"""What a server is sent by clients that are broken, or mean it no good.

What must hold for each case: an answer within seconds, below 500, with an error that is a sentence
and holds no key, path or traceback; nothing billed that is refused; bounded memory; and after all
of it the right logits. `--long` draws 100,000 cases instead of thousands.
"""

import base64
import hashlib
import io
import itertools
import json
import math
import os
import random
import re
import resource
import signal
import socket
import struct
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from urllib.parse import quote

import pytest
import torch
import yaml
from dassl_blackbox.serve.access import account_of
from dassl_blackbox.serve.building import Options, build_service
from dassl_blackbox.serve.connection import CONNECTIONS
from dassl_blackbox.serve.ledger import Ledger
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, Prompt
from dassl_blackbox.trainers.blackbox.oracle.texts import Texts
from dassl_blackbox.trainers.blackbox.oracle.wire import (
    MEDIA,
    content_ids,
    normalised,
    pack,
    unpack,
)
from dassl_blackbox.trainers.blackbox.run.errors import BlackBoxError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from served import Server, serving
from support import REPO, seeded

KEYS = {
    "full": {"grants": list(GRANTS)},
    "plain": {"grants": ["logits"]},
    "another": {"grants": list(GRANTS), "metrics": True},
    "nothing": {"grants": []},
    "top": {"grants": list(GRANTS), "top_k": 1},
}
KEY = {name: f"key-of-{name}-{hashlib.sha256(name.encode()).hexdigest()[:12]}" for name in KEYS}
MEGABYTES = 8  # of the largest body
SECONDS = 2  # within which a request must have come
PATIENCE = 20  # seconds after which a case hangs, on a machine that is busy with others
GROWTH = 400  # megabytes that the server may hold more in the end
QUESTIONS = ("/v1/query", "/v1/features/images", "/v1/features/texts")
POSTS = (*QUESTIONS, "/v1/texts", "/v1/images")
GETS = ("/metrics", "/v1/description", "/v1/usage", "/v1/embedding?words=a", "/openapi.json")
PATHS = (*POSTS, *GETS, "/docs", "/redoc", "/", "/v2", "/v1/query/", "/v1/../v1/usage")
PICTURE, JPEG, JSON = "image/png", "image/jpeg", "application/json"
NAMES = ("one", "two", "three")
WIDTH = 192  # of an image token
LONG = 36  # times as many cases

# ------------------------------------------------------------------ a client without manners


class Answer:
    def __init__(self, status, headers, body, seconds):
        self.status, self.headers, self.body, self.seconds = status, headers, body, seconds

    @property
    def code(self):
        return json.loads(self.body)["error"]["code"]

    @property
    def tensor(self):
        return unpack(self.body)[0]["answer"]


class Line:
    """Sends bytes as they are, over a connection that is kept while the server keeps it."""

    def __init__(self, server):
        self.server, self.connection, self.cases, self.billed = server, None, 0, {}

    def ask(self, method, path, body=b"", kind=None, key="full", headers=()):
        """The answer, looked at; `key`: the name of a key, None, or the header's bytes."""
        lines = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: here"]
        if isinstance(key, bytes):
            lines.append(b"Authorization: " + key)
        elif key is not None:
            lines.append(f"Authorization: Bearer {KEY[key]}".encode())
        if kind is not None:
            lines.append(b"Content-Type: " + kind.encode("latin-1"))
        lines.extend(headers)
        if body or method == "POST":
            lines.append(b"Content-Length: %d" % len(body))
        answer = self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body, method)
        assert answer is not None, (method, path[:99], lines[1:][:9], body[:99])
        fair(answer, method)
        if answer.status == 200 and path in QUESTIONS:
            self.billed[key] = self.billed.get(key, 0) + 1
        return answer

    def send(self, message, method="GET"):
        """The first answer to these bytes; None where the server ends the connection without."""
        self.cases += 1
        while True:
            fresh = self.connection is None
            if fresh:
                self.connection = self.connect()
            start = time.monotonic()
            with suppress(OSError):  # it may have been answered before it was read
                self.connection.sendall(message)
            head, body = self.read(method)
            if head is not None:
                status, headers = head
                if headers.get("connection") == "close":
                    self.close()
                return Answer(status, headers, body, time.monotonic() - start)
            self.close()
            if fresh:
                return None

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def read(self, method):
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    data += self.more()
                head, data = data.split(b"\r\n\r\n", 1)
                first, *lines = head.decode("latin-1").split("\r\n")
                if not first.split()[1].startswith("1"):
                    break
            headers = {name.lower(): value.strip() for name, _, value in map(parted, lines)}
            length = 0 if method == "HEAD" else int(headers.get("content-length", -1))
            parts = [data]
            while length < 0 or sum(map(len, parts)) < length:
                try:
                    parts.append(self.more())
                except EOFError:
                    if length < 0:
                        break
                    raise
            body = b"".join(parts)
            # what follows answers what followed
            return (int(first.split()[1]), headers), body if length < 0 else body[:length]
        except (EOFError, ConnectionError):
            return None, b""

    def more(self):
        data = self.connection.recv(2**20)
        if not data:
            raise EOFError
        return data


def parted(line):
    return line.partition(":")


def fair(answer, method=""):
    """What holds for every answer."""
    assert answer.status < 500, (answer.status, answer.body[:500])
    assert answer.seconds < PATIENCE
    words = repr(answer.headers) + answer.body[:100_000].decode("latin-1")
    for secret in (
        *KEY.values(),
        str(REPO),
        "Traceback",
        'File "',
        "site-packages",
        "object at 0x",
    ):
        assert secret not in words, words[:2000]
    if method == "HEAD":
        return
    digest = base64.b64encode(hashlib.sha256(answer.body).digest()).decode()
    declared = answer.headers.get("content-digest")
    assert declared in (None, f"sha-256=:{digest}:")
    if answer.status >= 400:
        error = json.loads(answer.body)["error"]
        assert re.fullmatch(r"[a-z_]+", error["code"])
        assert re.fullmatch(r"[^\r\n]{1,1500}", error["message"]), error


# ------------------------------------------------------------------ the server


class Served:
    """A server, what it was sent before the first case, and what it answered."""

    def __init__(self, server):
        self.server, self.line = server, Line(server)
        self.images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=seeded())
        self.ids, self.texts = content_ids(self.images), Texts.of(NAMES)
        self.contexts = torch.randn(2, 2, 128, generator=seeded()) * 0.05
        self.about = {"images": self.ids, "classes": self.texts.id, "texts": None}
        self.question = pack({"contexts": self.contexts}, self.about)
        self.send()
        self.logits = self.line.ask("POST", "/v1/query", self.question).tensor
        self.memory = memory(server)

    def send(self):
        body = pack({"images": self.images})
        assert self.line.ask("POST", "/v1/images", body, MEDIA).status == 200
        body = json.dumps({"names": NAMES}).encode()
        assert self.line.ask("POST", "/v1/texts", body, JSON).status == 200

    def usage(self, key="full"):
        return json.loads(self.line.ask("GET", "/v1/usage", key=key).body)

    def right(self):
        """Whether an ordinary question gets the answer that it has had."""
        self.send()
        answer = self.line.ask("POST", "/v1/query", self.question)
        assert answer.status == 200, answer.body
        torch.testing.assert_close(answer.tensor, self.logits, rtol=0, atol=1e-3)


def memory(server, name="VmRSS"):
    """Megabytes of the server's process."""
    with open(f"/proc/{server.process.pid}/status") as file:
        return int(re.search(rf"{name}:\s+(\d+) kB", file.read())[1]) / 1000


def write_keys(folder):
    path = folder / "keys.yaml"
    path.write_text(yaml.safe_dump([{"name": n, "key": KEY[n], **KEYS[n]} for n in KEYS]))
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    options = ("--max-mb", MEGABYTES, "--store-mb", 64, "--seconds", SECONDS)
    os.environ["PYTHONFAULTHANDLER"] = "1"  # of the server: what ends it is in its log
    with serving(folder / "state", "--keys", write_keys(folder), *options, keys="") as server:
        found = Served(server)
        yield found
        assert server.process.poll() is None, (server.process.returncode, server.said())
        found.right()
        before, after = found.memory, memory(server)
        print(
            f"\n{found.line.cases:,} cases; memory {before:.0f} MB before, {after:.0f} after, "
            f"{memory(server, 'VmHWM'):.0f} at most"
        )
        assert after - before < GROWTH
        assert found.server.said() == ""


@pytest.fixture(autouse=True)
def nothing_refused_is_billed(served):
    """As many requests are on the bills as were answered, and the server answers as before."""
    status = served.server.process.poll()
    assert status is None, (status, served.server.said())
    before = {name: served.usage(name)["requests"] for name in KEYS}
    served.line.billed = {}
    yield
    for name, requests in before.items():
        more = served.usage(name)["requests"] - requests
        assert more == served.line.billed.get(name, 0), name
    served.right()


def cases(count, request):
    return settings(
        max_examples=count * LONG if request.config.getoption("--long") else count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


# ------------------------------------------------------------------ what is drawn

ODD_NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, 32, 128, -1, 2**16, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, 0.5, 1e308]
)
# with halves of characters, which JSON can name and UTF-8 cannot
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
ODD_TEXT = st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "\ud800",
        "\udfff\ud800",
        "é",
        "{}",
        "{}{}{}",
        "{0}",
        "{}" * 400,
        "<start_of_text>",
        "<end_of_text>",
        "<|endoftext|>",
        "<|startoftext|>",
        "&lt;start_of_text&gt;",
        "<ſtart_of_text>",
        "a" * 1000,
        "a " * 499,
        "a" * 1001,
        "\u202e",
        "\U0001f600" * 30,
        "../../etc/passwd",
        "__proto__",
        "nan",
        "_",
        "\n",
    ]
)
SCALARS = st.none() | st.booleans() | ODD_NUMBERS | ODD_TEXT | ANY_TEXT


def nested(part):
    return st.lists(part, max_size=4) | st.dictionaries(ODD_TEXT | ANY_TEXT, part, max_size=4)


ANY_JSON = st.recursive(SCALARS, nested, max_leaves=8)
TYPES = ["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "I16", "U16", "F16", "BF16", "I32", "U32", "F32"]
TYPES += ["F64", "I64", "U64", "C64", "F4", "F6_E2M3", "F8_E8M0", "f32", "", "OBJECT", "F128"]
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "F64": 8, "I64": 8}
PARTS = ("contexts", "image_tokens", "pictures", "images")
SHAPES = st.lists(ODD_NUMBERS, max_size=6) | st.sampled_from(
    [
        [1, 2, 128],
        [2, 0, 128],
        [0, 2, 128],
        [1, 100, 128],
        [5000, 1, 128],
        [1, 2, 127],
        [1, 1, 64],
        [1, 2, 3, 32, 32],
        [2, 0, 3, 32, 32],
        [1, 3, 32, 32],
        [0, 3, 32, 32],
        [2**40, 2, 128],
        [2**32, 2**32],
        [0, 2**62, 2**62],
    ]
)
NUMBERS = st.sampled_from(
    [
        b"\x00" * 4,
        struct.pack("<f", 1.0),
        struct.pack("<f", math.nan),
        struct.pack("<f", -math.inf),
        b"\x01\x00\x00\x00",  # denormal
        struct.pack("<f", 3e38),
        b"\xff" * 4,
    ]
)


def file_of(header, data=b"", length=None):
    """A safetensors file, whatever its header says."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(head) if length is None else length
    return (length % 2**64).to_bytes(8, "little") + head + data


@st.composite
def files(draw):
    """Safetensors files of which anything may be odd."""
    header, data = {}, b""
    names = st.sampled_from(PARTS) | ODD_TEXT | ANY_TEXT
    for name in draw(st.lists(names, max_size=3)):
        kind, shape = draw(st.sampled_from(["F32", "U8", *TYPES])), draw(SHAPES)
        size = SIZES.get(kind, 4)
        for n in shape:
            size = size * n if isinstance(n, int) else 0
        part = b""
        if isinstance(size, int) and 0 <= size <= 2**16 and draw(st.integers(0, 9)):
            part = (draw(NUMBERS) * (size // 4 + 1))[:size]
        start = len(data) + draw(st.sampled_from([0] * 12 + [1, -1, 2**63]))
        end = start + (len(part) if part or size == 0 else draw(st.sampled_from([0, size])))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        data += part
    about = draw(ABOUT)
    if draw(st.integers(0, 9)):
        header["__metadata__"] = {"about": about if draw(st.integers(0, 9)) else draw(ANY_JSON)}
    head = json.dumps(header).encode()
    if not draw(st.integers(0, 9)):  # an entry twice
        head = head[:-1] + b", " + head[1:]
    odd = [0, 1, len(head) + 1, 2**31, 2**63, 2**64 - 1]
    length = None if draw(st.integers(0, 9)) else draw(st.sampled_from(odd))
    return file_of(head, data + draw(st.sampled_from([b""] * 9 + [b"\x00", b"{" * 99])), length)


DIGITS = "0123456789abcdef"
SOME_NAME = st.sampled_from(
    ["", "0" * 64, "F" * 64, "0" * 63, "0" * 65, "0" * 63 + "\n", "٣" * 64, "é" * 64, "g" * 64]
)
NAME = SOME_NAME | st.text(DIGITS, min_size=64, max_size=64) | ODD_TEXT
ABOUT = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "images": st.lists(NAME, max_size=3) | ANY_JSON,
            "classes": NAME | ANY_JSON,
            "texts": NAME | ANY_JSON,
            "more": ANY_JSON,
        },
    ).map(json.dumps),
    ANY_JSON.map(json.dumps),
    st.sampled_from(
        ["", "{", "null", "NaN", "[" * 10_000, '{"images":' * 2000, "1" * 5000, "\x00"]
    ),
    ANY_TEXT,
)


def damaged(random, body):
    """A body with a few bytes, or its end, otherwise."""
    body = bytearray(body)
    for _ in range(random.choice((1, 1, 2, 8))):
        how, i = random.randrange(5), random.randrange(len(body) + 1)
        if how == 0 and i < len(body):
            body[i] ^= 1 << random.randrange(8)
        elif how == 1:
            del body[i:]
        elif how == 2:
            body[i:i] = random.randbytes(random.choice((1, 8, 100)))
        elif how == 3:
            j = random.randrange(len(body) + 1)
            body[i : i + 64] = body[j : j + 64]
        else:
            body[i : i + random.choice((1, 8, 100))] = b""
    return bytes(body)


# ------------------------------------------------------------------ what must hold


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
    for path, key in itertools.product(PATHS, keys):
        body = served.question if method == "POST" else b""
        answer = line.ask(method, path, body, MEDIA, key)
        assert answer.status == 401, (path, key)
        words.add(answer.body)
    assert len(words) == 1
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


def test_what_the_description_allows_and_what_it_does_not(served, request):
    import schemathesis
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    for kind in (MEDIA, PICTURE, JPEG):
        schemathesis.serializer.alias(kind, "application/octet-stream")
    document = json.loads(served.line.ask("GET", "/openapi.json").body)
    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = operation.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                drawn = operation.as_strategy(generation_mode=mode)
            except Exception as e:  # nothing can be wrong where nothing is said
                assert mode is GenerationMode.NEGATIVE, e
                continue

            @cases(25, request)
            @given(drawn, st.sampled_from([None, "full", "full", "nothing"]))
            def check(case, key):
                query = "&".join(
                    f"{quote(str(name), errors='replace')}={quote(str(value), errors='replace')}"
                    for name, value in (case.query or {}).items()
                )
                path = f"{case.path}?{query}" if query else case.path
                kind = case.media_type if isinstance(case.media_type, str) else None
                body = getattr(case.body, "data", case.body)  # of schemathesis' own kind
                if not isinstance(body, bytes):
                    body = b"" if kind is None else json.dumps(body, default=str).encode()
                answer = served.line.ask(case.method.upper(), path, body, kind, key)
                assert (answer.status == 401) == (key is None and case.path != "/health")

            try:
                check()
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE


def test_files_of_which_anything_is_odd(served, request):
    @cases(500, request)
    @given(files(), st.sampled_from([*QUESTIONS, "/v1/images"]))
    def check(body, path):
        answer = served.line.ask("POST", path, body, MEDIA)
        assert answer.status in (200, 404, 413, 422), answer.body

    check()


def test_files_of_which_some_bytes_are_others(served, request):
    more = {"pictures": torch.zeros(1, 2, 3, 32, 32)}
    good = {
        "/v1/query": served.question,
        "/v1/features/images": pack({}, {"images": served.ids}),
        "/v1/features/texts": pack({}, {"classes": served.texts.id}),
        "/v1/images": pack({"images": served.images}),
    }
    bodies = [*good.items(), ("/v1/query", pack(more, {"classes": served.texts.id}))]
    bodies.append(("/v1/query", pack({"image_tokens": torch.zeros(1, 1, WIDTH)}, served.about)))
    for path, body in bodies:
        assert served.line.ask("POST", path, body, MEDIA).status == 200, path

    @cases(600, request)
    @given(st.sampled_from(bodies), st.integers(0, 2**32), st.booleans())
    def check(case, seed, named):
        path, body = case
        body = damaged(random.Random(seed), body)
        digest = b"sha-256=:%s:" % base64.b64encode(hashlib.sha256(case[1]).digest())
        headers = [b"Content-Digest: " + digest] if named else []
        answer = served.line.ask("POST", path, body, MEDIA, headers=headers)
        assert answer.status in ((400, 200) if named else (200, 404, 413, 422)), answer.body
        assert answer.status != 200 or not named or body == case[1]

    check()


def test_what_stands_beside_the_tensors(served, request):
    @cases(400, request)
    @given(ABOUT, st.sampled_from(QUESTIONS), st.booleans())
    def check(about, path, contexts):
        part = {"contexts": {"dtype": "F32", "shape": [1, 1, 128], "data_offsets": [0, 512]}}
        header = {"__metadata__": {"about": about}, **(part if contexts else {})}
        body = file_of(header, bytes(512) if contexts else b"")
        assert served.line.ask("POST", path, body, MEDIA).status in (404, 413, 422)

    check()


def test_lists_of_texts(served, request):
    names = st.lists(ODD_TEXT | ANY_TEXT, max_size=4) | ANY_JSON
    drawn = st.fixed_dictionaries(
        {"names": names}, optional={"template": ODD_TEXT | ANY_TEXT | ANY_JSON, "more": ANY_JSON}
    )

    @cases(400, request)
    @given((drawn | ANY_JSON).map(json.dumps) | ANY_TEXT, st.integers(0, 2**32))
    def check(text, seed):
        body = text.encode("utf-8", "surrogatepass")
        if seed % 4 == 0:
            body = damaged(random.Random(seed), body)
        assert served.line.ask("POST", "/v1/texts", body, JSON).status in (200, 422)

    check()


def test_words(served, request):
    @cases(200, request)
    @given(ODD_TEXT | ANY_TEXT | st.binary(max_size=40), st.sampled_from(["full", "nothing"]))
    def check(words, key):
        if isinstance(words, str):
            words = words.encode("utf-8", "surrogatepass")
        answer = served.line.ask("GET", f"/v1/embedding?words={quote(words)}", key=key)
        assert answer.status in ((200, 422) if key == "full" else (403,)), answer.body

    check()
    for query in ("", "?", "?words", "?word=a", "?words=a&words=b", "?words=%", "?" + "&" * 5000):
        served.line.ask("GET", f"/v1/embedding{query}")


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, depth=8, colour=2, data=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    rest = chunk(b"IDAT", data or zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + rest


def pictures():
    noise = torch.randint(0, 256, (40, 50, 4), dtype=torch.uint8, generator=seeded()).numpy()
    picture = Image.fromarray(noise[..., :3])
    animated = [picture.copy(), picture.rotate(90)]
    return {
        "plain": encoded(picture),
        "JPEG": encoded(picture, "JPEG"),
        "clear": encoded(Image.fromarray(noise)),
        "palette": encoded(picture.convert("P")),
        "grey of 16 bits": encoded(Image.fromarray(noise[..., 0].astype("uint16") * 257)),
        "CMYK": encoded(picture.convert("CMYK"), "JPEG"),
        "animated": encoded(animated[0], save_all=True, append_images=animated[1:]),
        "EXIF": encoded(
            picture, "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12"
        ),
        "tiny": encoded(picture.resize((1, 1))),
    }


def test_pictures_that_are_damaged(served, request):
    good = list(pictures().values())
    for body in good:
        assert served.line.ask("POST", "/v1/images", body, PICTURE).status == 200

    @cases(300, request)
    @given(st.sampled_from(good), st.integers(0, 2**32), st.sampled_from([PICTURE, JPEG]))
    def check(body, seed, kind):
        body = damaged(random.Random(seed), body)
        assert served.line.ask("POST", "/v1/images", body, kind).status in (200, 422)

    check()


def test_pictures_that_are_bombs_or_none(served):
    picture = Image.new("RGB", (64, 64))
    large = zlib.compress(bytes(7000 * 7000 * 3 + 7000), 9)
    bad = {
        "nothing": b"",
        "zeros": bytes(1000),
        "50,000 x 50,000": png_of(50_000, 50_000),
        "2^31 x 1": png_of(2**31 - 1, 1),
        "0 x 0": png_of(0, 0),
        "7,000 x 7,000": png_of(7000, 7000, data=large),
        "1 x 10,000": encoded(Image.new("L", (1, 10_000))),
        "10,000 x 1": encoded(Image.new("L", (10_000, 1))),
        "a comment of 100 MB": encoded(picture)[:33]
        + chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(10**8), 9))
        + encoded(picture)[33:],
        # Pillow has a program run for this one, if it is there
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n",
        **{kind: encoded(picture, kind) for kind in ("GIF", "BMP", "TIFF", "PPM", "WEBP", "ICO")},
    }
    for name, body in bad.items():
        for kind in (PICTURE, JPEG, "IMAGE/PNG; charset=x"):
            answer = served.line.ask("POST", "/v1/images", body, kind)
            assert answer.status == 422, (name, answer.body)
    for kind in (None, "", "text/plain", "image/gif", "image/*", "application/json", "é", ";", "/"):
        answer = served.line.ask("POST", "/v1/images", encoded(picture), kind)
        assert answer.status == 415, kind
    odd = served.line.ask("POST", "/v1/images", encoded(picture), MEDIA)
    assert odd.status == 422
    most = served.line.ask("POST", "/v1/images", encoded(Image.new("RGBA", (5700, 5700))), PICTURE)
    assert most.status == 200


def tensor_file(name, shape, data=b"", kind="F32", about="null"):
    entry = {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}
    return file_of({name: entry, "__metadata__": {"about": about}}, data)


def test_bodies_that_are_bombs(served):
    deep, ids = "[" * 200_000, [f"{i:064x}" for i in range(100_000)]
    about = json.dumps(served.about)
    whole = pack({"images": torch.zeros(2 * 2**20 // 3072, 3, 32, 32)})
    bad = {
        "empty": b"",
        "eight bytes": bytes(8),
        "length 2^63": file_of(b"{}", length=2**63),
        "length 2^64 - 1": file_of(b"{}", length=2**64 - 1),
        "a header of lists": file_of(b"[" + b"[]," * (2 * 2**20) + b"[]]"),
        "a header of entries": file_of({f"{i}": {} for i in range(300_000)}),
        "many tensors": file_of(
            {f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10_000)}
        ),
        "deep": tensor_file("contexts", [0, 1, 128], about=deep),
        "deep header": file_of(deep.encode()),
        "lists beside it": tensor_file("contexts", [0, 1, 128], about="[" + "[]," * 10**6 + "[]]"),
        "digits": tensor_file("contexts", [0, 1, 128], about="9" * 10**6),
        "shape without data": tensor_file("contexts", [2**40, 2**10, 128]),
        "overflow": tensor_file("contexts", [2**32, 2**32, 128]),
        "nothing of much": tensor_file("contexts", [2**62, 0, 128]),
        "much of nothing": tensor_file("contexts", [0, 2**62, 128]),
        "dimensions": tensor_file("contexts", [0] * 100_000),
        "candidates": tensor_file("contexts", [5000, 1, 128], bytes(4 * 5000 * 128), about=about),
        "tokens": tensor_file("contexts", [1, 2000, 128], bytes(4 * 2000 * 128), about=about),
        "too many images": pack({}, {**served.about, "images": ids}),
    }
    for (name, body), path in itertools.product(bad.items(), ("/v1/query", "/v1/images")):
        answer = served.line.ask("POST", path, body, MEDIA)
        assert answer.status in (413, 422), (name, path, answer.body)
    many = pack({}, {**served.about, "images": ids[:60_000]})
    answer = served.line.ask("POST", "/v1/query", many, MEDIA)
    assert answer.status == 404 and len(json.loads(answer.body)["missing"]["images"]) == 60_000
    assert served.line.ask("POST", "/v1/images", whole, MEDIA).status == 200
    repeated = pack({}, {**served.about, "images": served.ids * 15_000})
    assert served.line.ask("POST", "/v1/query", repeated, MEDIA).status == 200
    # 2,000 candidates x 60,000 images
    tokens = {"image_tokens": torch.zeros(2000, 1, WIDTH)}
    about = {**served.about, "images": served.ids * 15_000}
    assert served.line.ask("POST", "/v1/query", pack(tokens, about), MEDIA).status in (413, 422)


def test_numbers_that_are_none_or_at_the_edge(served):
    for value in (math.nan, math.inf, -math.inf):
        for name, shape in {
            "contexts": (1, 1, 128),
            "image_tokens": (1, 1, WIDTH),
            "pictures": (1, 1, 3, 32, 32),
        }.items():
            part = torch.zeros(shape)
            part.view(-1)[7] = value
            about = {**served.about, "images": [] if name == "pictures" else served.ids}
            answer = served.line.ask("POST", "/v1/query", pack({name: part}, about), MEDIA)
            assert answer.status == 422 and b"not finite" in answer.body
        images = torch.full((1, 3, 32, 32), value)
        assert served.line.ask("POST", "/v1/images", pack({"images": images}), MEDIA).status == 422
    for value in (1e-45, 3e38, -3e38, 0.0):
        part = torch.full((1, 1, 128), value)
        answer = served.line.ask("POST", "/v1/query", pack({"contexts": part}, served.about), MEDIA)
        assert answer.status == 200
        images = torch.full((1, 3, 32, 32), value)
        body = pack({"images": images})
        assert served.line.ask("POST", "/v1/images", body, MEDIA).status == 200
        about = {**served.about, "images": content_ids(images)}
        assert served.line.ask("POST", "/v1/query", pack({}, about), MEDIA).status == 200
        about = {"images": content_ids(images)}
        body = pack({}, about)
        assert served.line.ask("POST", "/v1/features/images", body, MEDIA).status == 200


def test_lists_of_texts_that_are_bombs(served):
    words = random.Random(0)

    def word(length):
        return "".join(words.choices("abcdefghijklmnop", k=length))

    bad = {
        "none": {"names": []},
        "a million": {"names": ["a"] * 10**6},
        "a million letters": {"names": ["a" * 10**6]},
        "no slot": {"names": ["a"], "template": "a photo."},
        "names in many slots": {"names": ["a" * 900] * 1000, "template": "{}" * 400},
        "all of the longest": {"names": [word(900) for _ in range(8000)]},
        "tokens": {"names": ["a " * 100]},
        "slots": {"names": ["a b c d e"], "template": "{} " * 90},
        "special in the template": {"names": ["a"], "template": "<end_of_text>{}"},
        "special by entities": {"names": ["a"], "template": "&lt;start_of_text&gt;{}"},
        "half a character": {"names": ["\ud800"]},
        "half a character in the template": {"names": ["a"], "template": "{} \udfff"},
    }
    for name, value in bad.items():
        answer = served.line.ask("POST", "/v1/texts", json.dumps(value).encode(), JSON)
        assert answer.status == 422, (name, answer.body)
    for body in (
        b"",
        b"[" * 10**6,
        b'{"names":' * 10**5,
        b"\xff",
        b'{"names":["\\ud800"]}',
        b"1e999",
    ):
        assert served.line.ask("POST", "/v1/texts", body, JSON).status == 422
    # words that the tokeniser has not met, again and again: what it remembers is bounded
    for _ in range(40 if served.line.cases > 30_000 else 8):
        value = {"names": [" ".join(word(4) for _ in range(8)) for _ in range(3000)]}
        answer = served.line.ask("POST", "/v1/texts", json.dumps(value).encode(), JSON)
        assert answer.status == 200, answer.body
    assert served.line.ask("POST", "/v1/texts", b'{"names": ["a"]}', "text/html").status == 200


def test_what_another_key_sent_gives_no_more_than_the_own_grants(served):
    """A content's name is no secret to whoever has the content, and names are shared.

    So a key may ask about what another sent, as if it had sent it: it is told what it is granted
    and no more, at its own cost, and learns from a 404 only whether anyone has sent it.
    """
    line = served.line
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=seeded(5))
    sent = pack({"images": images})
    assert line.ask("POST", "/v1/images", sent, MEDIA, "another").status == 200
    body = json.dumps({"names": ["of another", "and one more"]}).encode()
    texts = json.loads(line.ask("POST", "/v1/texts", body, JSON, "another").body)["id"]
    about = {"images": content_ids(images), "classes": texts}
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
    assert ask(b"one", other, "another").status == 200  # names are each key's own
    assert ask(b"x" * 10_000).status == ask(b"x" * 129).status == 422
    assert ask(b"x" * 128).status == ask(b"\xff' OR 1=1 --").status == 200
    missing = pack({}, {**served.about, "images": ["0" * 64]})
    assert ask(b"two", missing).status == 404
    assert ask(b"two").status == 200  # what was refused did not take the name
    assert served.usage()["requests"] - before["requests"] == 4
    line.billed["full"] -= 1  # answered twice, billed once


def raw(served, message):
    """Answers to bytes that may be no request: at most one, and h11's own may be a bare 400."""
    served.line.close()
    answer = served.line.send(message)
    served.line.close()
    if answer is not None and b"Invalid HTTP request received." not in answer.body:
        fair(answer)
    assert answer is None or answer.status < 500
    return None if answer is None else answer.status


def test_heads_that_are_odd(served, request):
    good = f"Authorization: Bearer {KEY['full']}".encode()
    start = b"POST /v1/query HTTP/1.1\r\nHost: x\r\n" + good + b"\r\n"
    size = b"Content-Length: "
    bad = {
        "100 kB": start + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(100)),
        "1,000 headers": start + b"".join(b"X-%d: x\r\n" % i for i in range(1000)),
        "one header of 100 kB": start + b"X: " + b"x" * 100_000 + b"\r\n",
        "negative": start + size + b"-1\r\n",
        "signed": start + size + b"+1\r\n",
        "hexadecimal": start + size + b"0x10\r\n",
        "huge": start + size + b"9" * 19 + b"\r\n",
        "too huge": start + size + b"9" * 30 + b"\r\n",
        "two lengths": start + size + b"1\r\n" + size + b"2\r\n",
        "no length": start,
        "chunked": start + b"Transfer-Encoding: chunked\r\n",
        "chunked and a length": start + b"Transfer-Encoding: chunked\r\n" + size + b"5\r\n",
        "another encoding": start + b"Transfer-Encoding: gzip\r\n" + size + b"2\r\n",
        "no host": b"GET /v1/usage HTTP/1.1\r\n" + good + b"\r\n",
        "a line without a colon": start + b"x\r\n",
        "folded": start + b"X: x\r\n y\r\n",
        "nothing": b"",
        "version": b"GET / HTTP/9.9\r\nHost: x\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
        "a WebSocket": b"GET /v1/usage HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n" + good,
    }
    bodies = (b"", b"5\r\nabcde\r\n0\r\n\r\n", b"zz\r\n" * 100)
    with impatient(served.line):
        for (name, message), body in itertools.product(bad.items(), bodies):
            status = raw(served, message + b"\r\n" + body)
            assert status is None or 400 <= status < 500 or name == "a WebSocket", name

    @cases(100, request)
    @given(st.integers(0, 2**32), st.binary(max_size=60))
    def check(seed, rest):
        message = start + size + b"%d\r\nContent-Type: %s\r\n\r\n" % (200, MEDIA.encode())
        message = damaged(random.Random(seed), message) + rest
        raw(served, message if seed % 3 else rest + b"\r\n\r\n")

    with impatient(served.line):
        check()


@contextmanager
def impatient(line):
    """Where the server waits for more, tell it that there is none."""
    former = line.connect

    def connect():
        connection = former()
        connection.settimeout(0.03)
        return connection

    def more():
        try:
            data = line.connection.recv(2**20)
        except TimeoutError:
            line.connection.settimeout(PATIENCE)
            line.connection.shutdown(socket.SHUT_WR)
            data = line.connection.recv(2**20)
        if not data:
            raise EOFError
        return data

    line.connect, line.more = connect, more
    try:
        yield
    finally:
        del line.connect, line.more


def test_requests_one_after_the_other_without_waiting(served):
    good = f"Host: x\r\nAuthorization: Bearer {KEY['full']}\r\n".encode()
    one = b"GET /v1/usage HTTP/1.1\r\n" + good + b"\r\n"
    with served.line.connect() as connection:
        connection.sendall(one * 50 + b"garbage\r\n\r\n" + one)
        data = b""
        while more := connection.recv(2**16):
            data += more
    assert data.count(b"HTTP/1.1 200") == 50 and data.count(b"HTTP/1.1 400") == 1
    head = b"POST /v1/query HTTP/1.1\r\n" + good + b"Content-Length: %d\r\n" % len(served.question)
    with served.line.connect() as connection:
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(served.question)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    served.line.billed["full"] = served.line.billed.get("full", 0) + 1


def test_clients_that_are_slow_are_not_waited_for(served):
    """One that sends nothing, half a head, half a body, a byte a while, a body that was refused
    already, or does not read what it asked for.
    """
    good = f"Host: x\r\nAuthorization: Bearer {KEY['full']}\r\n".encode()
    post = b"POST /v1/query HTTP/1.1\r\n" + good + b"Content-Length: 1000\r\n\r\n"
    refused = b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    starts = {"nothing": b"", "head": post[:30], "body": post + b"x", "refused": refused + b"x"}
    ended = {}

    def wait(name, trickle):
        start = time.monotonic()
        with served.line.connect() as connection:
            connection.settimeout(0.2)
            connection.sendall(starts[name])
            data = b""
            while time.monotonic() - start < PATIENCE + 10:
                try:
                    if trickle:
                        connection.sendall(b"x")
                    more = connection.recv(2**16)
                    if not more:
                        break
                    data += more
                except TimeoutError:
                    pass
                except OSError:
                    break
        ended[name, trickle] = time.monotonic() - start, data[:12]

    threads = [
        threading.Thread(target=wait, args=(name, trickle))
        for name in starts
        for trickle in (False, True)
        if name != "nothing" or not trickle
    ]
    for thread in threads:
        thread.start()
    for _ in range(20):  # others are answered meanwhile
        assert served.line.ask("GET", "/v1/usage").seconds < PATIENCE / 4
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    for (name, trickle), (seconds, data) in ended.items():
        # a body's answer comes in time; then the rest of it has as long again
        assert seconds < 5 * SECONDS + 5, (name, trickle, seconds)
        if name == "body":
            assert data == b"HTTP/1.1 408"


def test_one_that_does_not_read_is_let_go(served):
    about = {**served.about, "images": served.ids * 15_000}
    body = pack({"contexts": torch.zeros(8, 1, 128)}, about)  # an answer of 5.8 MB
    head = f"POST /v1/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY['full']}\r\n".encode()
    served.line.close()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", served.server.port))
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        served.line.billed["full"] = served.line.billed.get("full", 0) + 1
        deadline = time.monotonic() + PATIENCE + 10
        while time.monotonic() < deadline:
            if connections(served.server) == 0:
                break
            time.sleep(0.2)
        assert connections(served.server) == 0


def connections(server):
    """Sockets of the server's process, but for the one that it listens on and its own pair."""
    with open(f"/proc/{server.process.pid}/net/tcp") as file:
        lines = [line.split() for line in list(file)[1:]]
    port = f":{server.port:04X}"
    return sum(line[1].endswith(port) and line[3] == "01" for line in lines)


def test_more_connections_than_there_is_room_for(served):
    served.line.close()
    crowd = []
    try:
        for _ in range(CONNECTIONS + 100):
            crowd.append(served.line.connect())
        time.sleep(0.5)
        assert connections(served.server) <= CONNECTIONS
        for connection in crowd[:10]:
            connection.close()
        time.sleep(0.5)
        served.right()
    finally:
        for connection in crowd:
            connection.close()


def test_a_crowd_is_told_to_come_again(served):
    """The one 5xx: 503 with Retry-After, and nothing is billed of it."""
    length = MEGABYTES * 2**20
    head = f"POST /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY['full']}\r\n"
    head += f"Content-Type: {MEDIA}\r\nContent-Length: {length}\r\n\r\n"
    served.line.close()
    crowd = [served.line.connect() for _ in range(4)]
    try:
        for connection in crowd:
            connection.sendall(head.encode())
        time.sleep(0.3)
        message = head.replace("/v1/images", "/v1/query").encode()
        answer = served.line.send(message, "POST")
        assert answer.status == 503 and answer.code == "busy" and "retry-after" in answer.headers
    finally:
        for connection in crowd:
            connection.close()
        served.line.close()
    time.sleep(0.3)


# ------------------------------------------------------------------ servers of their own


def test_a_disk_that_is_full_is_a_sentence(tmp_path):
    """No file may grow: the server says so, bills nothing, and goes on when there is room."""
    server = Server(tmp_path / "state", "--keys", write_keys(tmp_path), keys="").start()
    try:
        found, pid = Served(server), server.process.pid
        usage = found.usage()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        images = torch.randn(40, 3, 32, 32, generator=seeded(9))
        sent = pack({"images": images})
        words = json.dumps({"names": ["new"]}).encode()
        line = found.line
        for path, body in {
            "/v1/images": sent,
            "/v1/texts": words,
            "/v1/query": found.question,
        }.items():
            message = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY['full']}\r\n"
            message += f"Content-Type: {MEDIA}\r\nContent-Length: {len(body)}\r\n\r\n"
            answer = line.send(message.encode() + body, "POST")
            assert (answer.status, answer.code) == (503, "storage"), answer.body
            assert "retry-after" in answer.headers and b"/" not in answer.body
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert found.usage() == usage
        found.right()
        assert line.ask("POST", "/v1/images", sent, MEDIA).status == 200
    finally:
        server.end()
    assert "Traceback" not in server.said()


def test_a_stop_answers_what_has_come(tmp_path):
    server = Server(tmp_path / "state", "--keys", write_keys(tmp_path), keys="").start()
    try:
        found = Served(server)
        about = {**found.about, "images": found.ids * 50}
        body = pack({"image_tokens": torch.randn(4, 1, WIDTH, generator=seeded())}, about)
        answers = []

        def ask():
            answers.append(Line(server).ask("POST", "/v1/query", body, MEDIA))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0 or server.process.returncode == -signal.SIGTERM
        for thread in threads:
            thread.join()
    finally:
        server.end()
    assert [answer.status for answer in answers] == [200] * 3
    assert time.monotonic() - start < 45 and server.said() == ""


def test_a_charge_goes_when_all_tries_of_the_request_have_failed(tmp_path):
    """Else one that is sent twice at once, and fails once, would be answered for nothing."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    account = account_of({"name": "a", "key": "a-long-key"}, (), 0)
    assert [ledger.charge(account, "one", "digest", (2, 6)) for _ in range(2)] == [True, False]
    ledger.refund(account, "one")
    assert ledger.used("a") == (2, 6, 1)
    assert not ledger.charge(account, "one", "digest", (2, 6))
    for left in ((2, 6, 1), (0, 0, 0), (0, 0, 0)):
        ledger.refund(account, "one")
        assert ledger.used("a") == left
    ledger.close()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(BlackBoxError, match="Others may write to the folder"):
        build_service(Options("tiny", state=str(tmp_path)), [])
