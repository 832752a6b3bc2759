"""Pictures that are damaged, bombs, or none."""

import io
import random
import struct
import zlib

import torch
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import seeded

from hostile.client import JPEG, PICTURE
from hostile.drawn import cases, damaged


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
