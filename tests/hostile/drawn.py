"""What is drawn: numbers, texts, JSON and files that are odd, and bodies that are damaged."""

import json
import math
import struct

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

LONG = 36  # times as many cases


def cases(count, request):
    return settings(
        max_examples=count * LONG if request.config.getoption("--long") else count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


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
