"""A seeded fuzzer: command lines, run folders and pictures that are odd in every way we can draw.

What must hold for each case: an exit status of 0 or 1, with 1 a sentence on stderr; no exception
(the tests have faults raised), no hang. `--long` draws thousands of cases instead of hundreds.
"""

import os
import random
import re
import shutil
import signal
from contextlib import contextmanager

import train
from dassl_blackbox.trainers.blackbox.config import HOST, all_keys, defaults, table
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import BLACK_BOX, REPO, accuracy, arguments, examples, run

SECONDS = 60  # after which a case hangs
TRAINERS = [*BLACK_BOX, "WhiteBox"]
# keys that decide how long a run takes, or where it writes, are not drawn at their largest
SLOW = re.compile(
    r"N_IMAGE|N_CTX|MAX_EPOCH|MAX_QUERIES|MAX_IMAGE_QUERIES|OUTPUT_DIR|ROOT|NUM_WORKERS|RESUME|USE_CUDA"
)
ODD_TEXT = [
    "",
    "None",
    "nan",
    "inf",
    "-1",
    "0",
    "1e308",
    "9" * 400,
    "[]",
    "()",
    "{}",
    "'",
    "[" * 300,
]
ODD_TEXT += ["\udcff", "é", "a b", "True", "1,2", "(1", "__import__('os')", "\x00", "!!python/none"]


def cases(count, request):
    many = request.config.getoption("--long")
    return settings(
        max_examples=count * 15 if many else count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def bounded():
    """Raise in the main thread where a case takes too long."""

    def stop(*_):
        raise TimeoutError(f"a case took more than {SECONDS} seconds")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def told(status, capsys):
    """What was printed; fails unless the status is 0, or 1 with a sentence."""
    printed = capsys.readouterr()
    sentence = re.search(r"^error: (.+)", printed.err, re.M)
    assert status == 0 or (status == 1 and sentence), (status, printed.err[-2000:])
    assert "Traceback" not in printed.err + printed.out
    return printed.out


def words(value):
    """A value as a word of a command line."""
    text = value if isinstance(value, str) else repr(value)
    return text.replace("\x00", "")  # which no command line can hold


@st.composite
def options(draw):
    """A trainer and some KEY VALUE pairs: boundary values of the table of keys, and odd ones."""
    name = draw(st.sampled_from(TRAINERS))
    known = table(defaults())
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted({*HOST, *all_keys()})))
        values = examples(known[key], True) if SLOW.search(key) is None else []
        value = draw(st.sampled_from([*values, *examples(known[key], False), *ODD_TEXT]))
        pairs += [key, words(value)]
    if draw(st.booleans()):
        pairs = pairs[: draw(st.integers(0, len(pairs)))]
    return name, pairs


def test_command_lines(request, data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder can be drawn, and generated sets are written there
    folder = iter(range(10**9))

    @cases(120, request)
    @given(options(), st.sampled_from(["--no-train", "", "", "--eval-only"]))
    def check(drawn, flag):
        name, pairs = drawn
        short = "ORACLE.MAX_QUERIES", 300, "OPTIM.MAX_EPOCH", 2
        line = arguments(name, data_root, tmp_path / f"{next(folder)}", *short, *pairs)
        with bounded():
            told(train.main(train.parse_args([*filter(None, [flag]), *line])), capsys)
        shutil.rmtree(tmp_path / f"{next(folder) - 1}", ignore_errors=True)

    check()


YAML = "abc:[]{}&*!|>-?'\"#%@` \n\t01_.,~<é"


def test_configuration_files(request, data_root, tmp_path, capsys):
    @cases(60, request)
    @given(st.data())
    def check(data):
        text = (REPO / "configs/trainers/ZIP/tiny.yaml").read_text()
        for _ in range(data.draw(st.integers(1, 4))):
            i = data.draw(st.integers(0, len(text)))
            text = (
                text[:i]
                + data.draw(st.text(YAML, max_size=8))
                + text[i + data.draw(st.integers(0, 12)) :]
            )
        (tmp_path / "odd.yaml").write_text(text)
        line = arguments("ZIP", data_root, tmp_path / "out", "ORACLE.MAX_QUERIES", 20)
        line[line.index("--config-file") + 1] = str(tmp_path / "odd.yaml")
        with bounded():
            told(train.main(train.parse_args(["--no-train", *line])), capsys)

    check()


def damage(data, draw):
    """Bytes with something wrong."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]))
    i = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "flip":
        return data[:i] + bytes([data[i] ^ (1 << draw(st.integers(0, 7)))]) + data[i + 1 :]
    if kind == "insert":
        return data[:i] + draw(st.binary(max_size=20)) + data[i:]
    return {"cut": data[:i], "zero": bytes(len(data)), "repeat": data * 2}[kind]


def test_run_folders(request, data_root, tmp_path, capsys):
    assert run("ZIP", data_root, tmp_path / "sound", "ORACLE.MAX_QUERIES", 30) == 0
    expected = accuracy(capsys.readouterr().out)
    files = sorted(path for path in (tmp_path / "sound").rglob("*") if path.is_file())

    @cases(60, request)
    @given(st.data())
    def check(data):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "sound", folder)
        model = False
        for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2)):
            target = folder / path.relative_to(tmp_path / "sound")
            model |= target.parent.name == "prompt_learner"
            target.write_bytes(damage(target.read_bytes() or b"x", data.draw))
        way = data.draw(
            st.sampled_from([(), ("--skip-done",), ("--eval-only", "--model-dir", folder)])
        )
        with bounded():
            status = run("ZIP", data_root, folder, "ORACLE.MAX_QUERIES", 30, flags=way)
        out = told(status, capsys)
        if status == 0 and "=> result" in out:
            assert accuracy(out) == expected

    check()


FORMATS = [
    ("PNG", "L"),
    ("PNG", "RGBA"),
    ("PNG", "P"),
    ("PNG", "I;16"),
    ("PNG", "1"),
    ("JPEG", "RGB"),
]
FORMATS += [
    ("JPEG", "CMYK"),
    ("GIF", "P"),
    ("BMP", "RGB"),
    ("TIFF", "RGB"),
    ("WEBP", "RGB"),
    ("PPM", "RGB"),
]


def draw_picture(path, kind, mode, rng):
    size = rng.choice([(1, 1), (7, 3), (32, 32), (40, 64)])
    picture = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
    picture = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
    picture.save(path, kind)


def test_pictures(request, tmp_path, capsys):
    rng = random.Random(0)
    for part in ("train", "val", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "sound" / part / label
            folder.mkdir(parents=True)
            for i, (kind, mode) in enumerate(FORMATS):
                draw_picture(folder / f"{i:02d}.{kind.lower()}", kind, mode, rng)
    pictures = sorted(path for path in (tmp_path / "sound").rglob("*.*") if path.is_file())

    @cases(60, request)
    @given(st.data())
    def check(data):
        root = tmp_path / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "sound", root)
        path = root / data.draw(st.sampled_from(pictures)).relative_to(tmp_path / "sound")
        odd = data.draw(
            st.sampled_from(
                ["damage", "damage", "damage", "fifo", "link", "loop", "folder", "name"]
            )
        )
        if odd == "damage":
            path.write_bytes(damage(path.read_bytes(), data.draw))
        elif odd == "name":
            drawn = data.draw(st.binary(min_size=1, max_size=6)).translate(None, b"\x00/.")
            os.rename(path, os.fsencode(path.parent) + b"/" + drawn + b"\xff.png")
        else:
            path.unlink()
            make = {"fifo": os.mkfifo, "folder": os.mkdir}.get(odd)
            make(path) if make else path.symlink_to(path if odd == "loop" else "nowhere")
        name = data.draw(st.sampled_from(["ZIP", "ZeroshotOracle", "WhiteBox"]))
        line = arguments(
            name, root, tmp_path / "out", "ORACLE.MAX_QUERIES", 20, "OPTIM.MAX_EPOCH", 1
        )
        line[line.index("--dataset-config-file") + 1] = str(
            REPO / "configs/datasets/imagefolder.yaml"
        )
        with bounded():
            told(train.main(train.parse_args(line)), capsys)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    check()
