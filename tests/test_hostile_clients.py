"""Whatever a client sends, the server answers with a sentence, bills nothing for it, and lives on.

A thousand cases or so in the ordinary run; 100,000 with `--long`.
"""

import json
import socket
import struct
import time
from pathlib import Path

import httpx
import pytest
import schemathesis
import torch
from dassl_blackbox.trainers.blackbox.oracle.wire import ABOUT, MEDIA, content_ids, pack
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from served import KEY, serving

OTHER = "another-key-for-tests"
ROUTES = {
    "GET": ("/metrics", "/v1/description", "/v1/usage", "/v1/embedding?words=a", "/openapi.json"),
    "POST": ("/v1/texts", "/v1/images", "/v1/query", "/v1/features/images", "/v1/features/texts"),
}
QUESTIONS = ROUTES["POST"][2:]
MOST_GROWTH = 400 * 2**20  # bytes of memory, over all that is tried here
HEADERS = {"Authorization": f"Bearer {KEY}"}
CASES = {"ordinary": 500, "long": 33_000}  # of each property


@schemathesis.serializer(MEDIA, "image/png", "image/jpeg")
def as_it_is(context, value):
    """How schemathesis puts what it made into a body."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    state = tmp_path_factory.mktemp("hostile") / "state"
    keys = f"tests={KEY},other={OTHER}"
    options = ("--max-mb", "8", "--store-mb", "64", "--seconds", "3")
    with serving(state, *options, "--grants", "contexts", "logits", keys=keys) as server:
        server.client = httpx.Client(base_url=server.url, headers=HEADERS, timeout=30)
        server.names = upload(server)
        before, rights = memory(server), right(server)
        yield server
        assert server.process.poll() is None
        assert memory(server) - before < MOST_GROWTH
        assert torch.equal(right(server), rights)
        server.client.close()


def memory(server):
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(text.split("VmRSS:")[1].split()[0])


def upload(server):
    """Names of three images and of a list of texts."""
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    send(server, "/v1/images", pack({"images": images}))
    texts = server.client.post("/v1/texts", json={"names": ["cat", "dog"], "template": "a {}."})
    return {"images": content_ids(images), "classes": texts.json()["id"]}


def send(server, path, body, kind=MEDIA, **headers):
    given = {"Content-Type": kind, **headers}
    return server.client.post(path, content=body, headers=given)


def right(server):
    from dassl_blackbox.trainers.blackbox.oracle.wire import unpack

    answer = send(server, "/v1/query", pack({}, server.names))
    assert answer.status_code == 200
    return unpack(answer.content)[0]["answer"]


def check(answer):
    """A refusal is a sentence without a trace of the inside; nothing is a fault of the server."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["code"] and error["message"]
        for trace in ("Traceback", "site-packages", 'File "', KEY):
            assert trace not in answer.text
    return answer


def cases(request):
    return CASES["long" if request.config.getoption("--long") else "ordinary"]


def run(request, test, **strategies):
    """A property, over as many cases as are wanted, the same ones every time."""
    profile = settings(
        max_examples=cases(request),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    profile(given(**strategies)(test))()


names = st.one_of(st.text(max_size=70), st.sampled_from(["f" * 64, "F" * 64, "0" * 63, ""]))
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), names)
about = st.one_of(
    st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(names, inner)),
    st.fixed_dictionaries(
        {},
        optional={
            "images": st.lists(names, max_size=5) | plain,
            "classes": names | plain,
            "texts": names | plain,
        },
    ),
)
types = st.sampled_from(
    [torch.float32] * 6
    + [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 5, 32, 128, 192]), max_size=5).filter(
    lambda shape: torch.Size(shape).numel() < 10**6
)
likely = st.sampled_from([(1, 4, 128), (2, 0, 128), (3, 80, 128), (1, 2, 192), (1, 1, 3, 32, 32)])
values = st.sampled_from([0.0, 1.0, -1e30, 1e-40, float("nan"), float("inf")])


@st.composite
def bodies(draw, known=None):
    """A safetensors file of whatever, perhaps with names that are known, perhaps damaged."""
    parts = st.sampled_from(["contexts", "image_tokens", "pictures", "images", "x", "ü"])
    tensors = {
        draw(parts): torch.full(draw(likely | shapes), draw(values)).to(draw(types))
        for _ in range(draw(st.integers(0, 2)))
    }
    said = draw(about)
    if known and draw(st.booleans()):
        said = {**known, **said} if isinstance(said, dict) and draw(st.booleans()) else known
    body = pack(tensors, said)
    how = draw(st.sampled_from(["whole"] * 5 + ["cut", "flipped", "longer", "random", "length"]))
    if how == "cut":
        body = body[: draw(st.integers(0, len(body)))]
    elif how == "flipped":
        i = draw(st.integers(0, len(body) - 1))
        body = body[:i] + bytes([body[i] ^ draw(st.integers(1, 255))]) + body[i + 1 :]
    elif how == "longer":
        body += draw(st.binary(max_size=100))
    elif how == "random":
        body = draw(st.binary(max_size=300))
    elif how == "length":
        body = struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + body[8:]
    return body


def test_questions_of_any_content(server, request):
    strategy = st.builds(dict, body=bodies(server.names), path=st.sampled_from(QUESTIONS))

    def ask(case):
        before = used(server)
        answer = check(send(server, case["path"], case["body"]))
        if answer.status_code != 200:
            assert used(server) == before

    run(request, ask, case=strategy)


def used(server, key=KEY):
    answer = server.client.get("/v1/usage", headers={"Authorization": f"Bearer {key}"}).json()
    return answer["queries"], answer["image_queries"], answer["requests"]


def test_images_of_any_content(server, request):
    kinds = st.sampled_from([MEDIA, "image/png", "image/jpeg", "text/plain", ""])
    pictures = st.sampled_from(encoded())

    @st.composite
    def cases(draw):
        body = draw(st.one_of(bodies(), pictures, st.binary(max_size=200)))
        if draw(st.booleans()) and body:
            i = draw(st.integers(0, len(body) - 1))
            body = body[:i] + draw(st.binary(max_size=8)) + body[i + draw(st.integers(0, 8)) :]
        return body, draw(kinds)

    def ask(case):
        check(send(server, "/v1/images", *case))

    run(request, ask, case=cases())


def encoded():
    """Pictures as files: small, long, of many pixels in the header alone, animated."""
    import io

    from PIL import Image

    found = []
    for size in ((1, 1), (7, 5), (1, 3000), (64, 64)):
        for form in ("PNG", "JPEG", "GIF"):
            Image.new("RGB", size, "red").save(file := io.BytesIO(), form)
            found.append(file.getvalue())
    bomb = bytearray(found[0])
    bomb[16:24] = struct.pack(">II", 50_000, 50_000)
    return [*found, bytes(bomb), b""]


def test_texts_of_any_content(server, request):
    words = st.text(max_size=50) | st.sampled_from(
        ["<start_of_text>", "<end_of_text>", "a" * 5000, "word " * 100, "\ud800", "{}", "_"]
    )
    lists = st.fixed_dictionaries(
        {"names": st.lists(words, max_size=5)},
        optional={"template": words | plain, "extra": plain},
    )

    def ask(case):
        check(send(server, "/v1/texts", json.dumps(case).encode(), "application/json"))

    run(request, ask, case=lists | about)


def test_what_the_description_allows(server, request):
    """schemathesis, on the server's own OpenAPI description."""
    document = server.client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} > set(ROUTES["POST"])

    for operation in operations:

        def ask(case):
            # what schemathesis itself cannot put into a request of HTTP is not sent
            try:
                given = case.as_transport_kwargs(base_url=server.url)
                built = server.client.build_request(
                    given["method"],
                    given["url"],
                    params=given.get("params"),
                    content=given.get("data"),
                    json=given.get("json"),
                    headers={**dict(given.get("headers") or {}), **HEADERS},
                )
            except (TypeError, ValueError, UnicodeError):
                return
            answer = server.client.send(built)
            if case.operation.path != "/health":
                check(answer)

        profile = settings(
            max_examples=max(20, cases(request) // 20),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        profile(given(case=operation.as_strategy())(ask))()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_no_key_gets_nothing(server, method):
    keys = [
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {KEY}",
        KEY,
        f"Bearer {KEY}x",
        "Bearer " + "x" * 9000,
    ]
    for path in (*ROUTES["GET"], *ROUTES["POST"]):
        for key in keys:
            answer = httpx.request(
                method, server.url + path, headers={"Authorization": key} if key else {}
            )
            assert answer.status_code in (401, 405)
            assert set(answer.json()) == {"error"}
    answer = server.client.request(method, "/v1/../../etc/passwd")
    assert answer.status_code in (404, 405)


def test_another_key_is_another_account(server):
    asked = {"Authorization": f"Bearer {OTHER}"}
    before, others = used(server), used(server, OTHER)
    answer = send(server, "/v1/query", pack({}, server.names), **asked)
    # a name is of a content, whoever sent it; what is granted and billed is the key's own
    assert answer.status_code == 200
    assert used(server) == before and used(server, OTHER) == (
        others[0] + 1,
        others[1] + 3,
        others[2] + 1,
    )
    assert (
        send(
            server, "/v1/features/images", pack({}, {"images": server.names["images"]})
        ).status_code
        == 403
    )


def test_what_is_too_large_is_refused_before_it_is_read(server):
    start = time.monotonic()
    for length in ("9000000", "9" * 30, "-1", "1e3", "", "0x10"):
        answer = raw(server, f"Content-Length: {length}\r\n")
        assert b" 413 " in answer or b" 411 " in answer or b" 400 " in answer, answer[:80]
    assert b" 411 " in raw(server, "Transfer-Encoding: chunked\r\n")
    assert b" 4" in raw(server, "X: " + "y" * 200_000 + "\r\n")[:12]
    assert time.monotonic() - start < 20


def raw(server, headers, body=b""):
    """The first bytes of an answer to a request that no client writes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        head = f"POST /v1/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        try:
            connection.sendall(f"{head}Content-Type: {MEDIA}\r\n{headers}\r\n".encode() + body)
            return connection.recv(4096)
        except ConnectionError:
            return b"HTTP/1.1 400 reset"


def test_what_does_not_come_is_not_waited_for(server):
    start = time.monotonic()
    assert b" 408 " in raw(server, "Content-Length: 1000\r\n", b"x" * 10)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    assert server.client.get("/health").status_code == 200
    for connection in silent:
        connection.settimeout(30)
        assert connection.recv(10) == b""
        connection.close()
    assert time.monotonic() - start < 40


def test_a_header_within_the_file_is_no_bomb(server):
    deep = "[" * 100_000 + "]" * 100_000
    header = json.dumps({"__metadata__": {ABOUT: deep}}).encode()
    huge = json.dumps(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    many = {"images": ["0" * 64] * 100_000, "classes": server.names["classes"]}
    for body in (
        struct.pack("<Q", len(header)) + header,
        struct.pack("<Q", len(huge)) + huge,
        struct.pack("<Q", 2**63),
        pack({}, many),
        pack({"contexts": torch.zeros(5000, 1, 128)}, server.names),
        pack({"contexts": torch.zeros(1, 2000, 128)}, server.names),
        pack({"pictures": torch.zeros(1, 0, 3, 32, 32)}, {"classes": server.names["classes"]}),
    ):
        assert check(send(server, "/v1/query", body)).status_code == 422
