"""A seeded fuzzer: command lines, run folders and pictures that are odd in every way we can draw.

What must hold for each case: an exit status of 0 or 1, with 1 a sentence on stderr; no exception
(the tests have faults raised), no hang. `--long` draws thousands of cases instead of tens.
"""

import os
import random
import re
import shutil
import signal

import pytest
import train
from dassl_blackbox.trainers.blackbox.config import HOST, all_keys, defaults, table
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import BLACK_BOX, REPO, accuracy, arguments, examples, run

SECONDS = 60  # after which a case hangs
# keys that decide how long a run takes, or where it writes, are not drawn at their largest
SLOW = re.compile(
    "N_IMAGE|N_CTX|MAX_EPOCH|MAX_QUERIES|MAX_IMAGE_QUERIES|OUTPUT_DIR|ROOT|NUM_WORKERS|RESUME|"
    "USE_CUDA"
)
ODD_TEXT = (
    *("", "None", "nan", "inf", "-1", "0", "1e308", "9" * 400, "[]", "()", "{}", "'", "[" * 300),
    *("\udcff", "é", "a b", "True", "1,2", "(1", "__import__('os')", "\x00", "!!python/none"),
)


@pytest.fixture
def drawn(request):
    """`drawn(check)` calls it with 30 draws, or many more."""
    many = request.config.getoption("--long")

    def run(check):
        profile = settings(
            max_examples=1000 if many else 30,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        profile(given(st.data())(check))()

    return run


@pytest.fixture
def told(capsys):
    """`told(line)`: what a command line printed; fails unless its status is 0, or 1 with a
    sentence, and where it takes too long.
    """

    def stop(*_):
        raise TimeoutError(f"a case took more than {SECONDS} seconds")

    def call(line):
        signal.alarm(SECONDS)
        try:
            status = train.main(train.parse_args(line))
        finally:
            signal.alarm(0)
        printed = capsys.readouterr()
        sentence = re.search(r"^error: (.+)", printed.err, re.M)
        assert status == 0 or (status == 1 and sentence), (status, printed.err[-2000:])
        assert "Traceback" not in printed.err + printed.out
        return printed.out if status == 0 else ""

    former = signal.signal(signal.SIGALRM, stop)
    yield call
    signal.signal(signal.SIGALRM, former)


def options(draw):
    """KEY VALUE pairs: boundary values of the table of keys, and odd ones."""
    known, pairs = table(defaults()), []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted({*HOST, *all_keys()})))
        values = examples(known[key], True) if SLOW.search(key) is None else []
        value = draw(st.sampled_from([*values, *examples(known[key], False), *ODD_TEXT]))
        text = value if isinstance(value, str) else repr(value)
        pairs += [key, text.replace("\x00", "")]  # which no command line can hold
    return pairs[: draw(st.integers(0, len(pairs)))] if draw(st.booleans()) else pairs


def test_command_lines(drawn, told, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder can be drawn, and generated sets are written there

    def check(data):
        name = data.draw(st.sampled_from([*BLACK_BOX, "WhiteBox"]))
        short = "ORACLE.MAX_QUERIES", 300, "OPTIM.MAX_EPOCH", 2
        flags = data.draw(st.sampled_from([["--no-train"], [], [], ["--eval-only"]]))
        pairs = options(data.draw)
        told([*flags, *arguments(name, data_root, tmp_path / "out", *short, *pairs)])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    drawn(check)


def damage(data, draw):
    """Bytes with something wrong."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]))
    i = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "flip":
        return data[:i] + bytes([data[i] ^ (1 << draw(st.integers(0, 7)))]) + data[i + 1 :]
    if kind == "insert":
        return data[:i] + draw(st.binary(max_size=20)) + data[i:]
    return {"cut": data[:i], "zero": bytes(len(data)), "repeat": data * 2}[kind]


def test_run_folders(drawn, told, data_root, tmp_path, capsys):
    sound, folder = tmp_path / "sound", tmp_path / "damaged"
    assert run("ZIP", data_root, sound, "ORACLE.MAX_QUERIES", 30) == 0
    expected = accuracy(capsys.readouterr().out)
    files = sorted(path for path in sound.rglob("*") if path.is_file())
    ways = (), ("--skip-done",), ("--eval-only", "--model-dir", folder)

    def check(data):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2)):
            target = folder / path.relative_to(sound)
            target.write_bytes(damage(target.read_bytes() or b"x", data.draw))
        way = data.draw(st.sampled_from(ways))
        out = told(arguments("ZIP", data_root, folder, "ORACLE.MAX_QUERIES", 30, flags=way))
        assert "=> result" not in out or accuracy(out) == expected

    drawn(check)


FORMATS = (
    *(("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "1"), ("JPEG", "RGB")),
    *(("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")),
    ("PPM", "RGB"),
)


def test_pictures(drawn, told, tmp_path):
    rng, sound, root = random.Random(0), tmp_path / "sound", tmp_path / "damaged"
    for folder in (sound / part / label for part in ("train", "val", "test") for label in "ab"):
        folder.mkdir(parents=True)
        for i, (kind, mode) in enumerate(FORMATS):
            size = rng.choice([(1, 1), (7, 3), (32, 32), (40, 64)])
            picture = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
            picture = picture.convert("I") if mode == "I;16" else picture
            picture.convert(mode).save(folder / f"{i:02d}.{kind.lower()}", kind)
    pictures = sorted(path for path in sound.rglob("*.*") if path.is_file())
    config = REPO / "configs/datasets/imagefolder.yaml"
    changes = ["damage", "damage", "damage", "fifo", "link", "loop", "folder", "name"]

    def check(data):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sound, root)
        path = root / data.draw(st.sampled_from(pictures)).relative_to(sound)
        odd = data.draw(st.sampled_from(changes))
        if odd == "damage":
            path.write_bytes(damage(path.read_bytes(), data.draw))
        elif odd == "name":
            name = data.draw(st.binary(min_size=1, max_size=6)).translate(None, b"\x00/.")
            os.rename(path, os.fsencode(path.parent) + b"/" + name + b"\xff.png")
        else:
            path.unlink()
            make = {"fifo": os.mkfifo, "folder": os.mkdir}.get(odd)
            make(path) if make else path.symlink_to(path if odd == "loop" else "nowhere")
        name = data.draw(st.sampled_from(["ZIP", "ZeroshotOracle", "WhiteBox"]))
        short = "ORACLE.MAX_QUERIES", 20, "OPTIM.MAX_EPOCH", 1
        flags = "--dataset-config-file", config
        told(arguments(name, root, tmp_path / "out", *short, flags=flags))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    drawn(check)
