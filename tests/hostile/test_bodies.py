"""Bodies that are odd, damaged or bombs: refused in words, or answered as they stand."""

import base64
import hashlib
import itertools
import json
import math
import random
from urllib.parse import quote

import torch
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, Contents, pack
from hypothesis import given
from hypothesis import strategies as st

from hostile.client import JPEG, JSON, PICTURE, QUESTIONS, WIDTH
from hostile.drawn import ABOUT, ANY_JSON, ANY_TEXT, ODD_TEXT, cases, damaged, file_of, files


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
    # what is finite and leads to nothing that is, is refused: there is no NaN with a 200
    for value in (1e-45, 3e38, -3e38, 0.0):
        part, images = torch.full((1, 1, 128), value), torch.full((1, 3, 32, 32), value)
        body = pack({"images": images})
        assert served.line.ask("POST", "/v1/images", body, MEDIA).status == 200
        names = Contents(images).ids
        for path, body in (
            ("/v1/query", pack({"contexts": part}, served.about)),
            ("/v1/query", pack({}, {**served.about, "images": names})),
            ("/v1/features/images", pack({}, {"images": names})),
        ):
            answer = served.line.ask("POST", path, body, MEDIA)
            assert answer.status in ((200, 422) if abs(value) > 1 else (200,))
            assert answer.status == 422 or answer.tensor.isfinite().all()


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
