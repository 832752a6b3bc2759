"""A seeded fuzzer: command lines, run folders and pictures that are odd in every way we can draw.

Each case ends with an exit status of 0, or of 1 with a sentence on stderr; nothing is raised, and
nothing hangs. `--long` draws a thousand cases instead of tens.
"""

import os
import re
import shutil
import signal
from random import Random

import pytest
import train
from dassl_blackbox.trainers.blackbox.config import HOST, all_keys, defaults, table
from PIL import Image
from support import BLACK_BOX, REPO, accuracy, arguments, examples, run

# keys that decide how long a run takes, or where it writes, are not drawn at their largest
SLOW = re.compile(
    "N_IMAGE|N_CTX|MAX_EPOCH|MAX_QUERIES|MAX_IMAGE_QUERIES|OUTPUT_DIR|ROOT|NUM_WORKERS|RESUME|"
    "USE_CUDA"
)
ODD_TEXT = (
    *("", "None", "nan", "inf", "-1", "0", "1e308", "9" * 400, "[]", "()", "{}", "'", "[" * 300),
    *("\udcff", "é", "a b", "True", "1,2", "(1", "__import__('os')", "!!python/none"),
)


@pytest.fixture
def draws(request):
    """Sources of random numbers, one a case."""
    return map(Random, range(1000 if request.config.getoption("--long") else 25))


@pytest.fixture
def told(capsys):
    """`told(line)`: what a command line printed; fails where it ends, or lasts, as it must not."""

    def stop(*_):
        raise TimeoutError("a case took more than a minute")

    def call(line):
        signal.alarm(60)
        try:
            status = train.main(train.parse_args(line))
        finally:
            signal.alarm(0)
        printed = capsys.readouterr()
        sentence = re.search(r"^error: (.+)", printed.err, re.M)
        assert status == 0 or (status == 1 and sentence), (line, status, printed.err[-2000:])
        assert "Traceback" not in printed.err + printed.out
        return printed.out if status == 0 else ""

    former = signal.signal(signal.SIGALRM, stop)
    yield call
    signal.signal(signal.SIGALRM, former)


def test_command_lines(draws, told, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder can be drawn, and generated sets are written there
    known, keys = table(defaults()), sorted({*HOST, *all_keys()})
    for rng in draws:
        pairs = []
        for key in rng.choices(keys, k=rng.randint(1, 3)):
            values = examples(known[key], True) if SLOW.search(key) is None else []
            value = rng.choice([*values, *examples(known[key], False), *ODD_TEXT])
            # no command line can hold a NUL
            pairs += [key, (value if isinstance(value, str) else repr(value)).replace("\0", "")]
        pairs = pairs[: len(pairs) - (rng.random() < 0.1)]
        flags = rng.choice([["--no-train"], [], [], ["--eval-only"]])
        short = "ORACLE.MAX_QUERIES", 300, "OPTIM.MAX_EPOCH", 2
        name = rng.choice([*BLACK_BOX, "WhiteBox"])
        told([*flags, *arguments(name, data_root, tmp_path / "out", *short, *pairs)])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def damaged(rng, data):
    """Bytes of which some are others, lost, twice or new."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        end = rng.choice((i, i + 1, i + 8, j, len(data)))
        data[i:end] = rng.choice((b"", rng.randbytes(8), bytes(j - i), data[i:j] * 2, b"\x00"))
    return bytes(data)


def test_run_folders(draws, told, data_root, tmp_path, capsys):
    sound, folder = tmp_path / "sound", tmp_path / "damaged"
    assert run("ZIP", data_root, sound, "ORACLE.MAX_QUERIES", 30) == 0
    expected = accuracy(capsys.readouterr().out)
    files = sorted(path for path in sound.rglob("*") if path.is_file())
    ways = (), ("--skip-done",), ("--eval-only", "--model-dir", folder)
    for rng in draws:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        target = folder / rng.choice(files).relative_to(sound)
        target.write_bytes(damaged(rng, target.read_bytes()))
        line = arguments("ZIP", data_root, folder, "ORACLE.MAX_QUERIES", 30, flags=rng.choice(ways))
        out = told(line)
        assert "=> result" not in out or accuracy(out) == expected


FORMATS = "PNG L|PNG RGBA|PNG P|PNG I;16|PNG 1|JPEG RGB|JPEG CMYK|GIF P|BMP RGB|WEBP RGB|PPM RGB"
CHANGES = {
    **dict.fromkeys((1, 2, 3), lambda rng, path: path.write_bytes(damaged(rng, path.read_bytes()))),
    "a name": lambda rng, path: os.rename(path, os.fsencode(path.parent) + b"/\x1b\xff\n.png"),
    "a pipe": lambda rng, path: [path.unlink(), os.mkfifo(path)],
    "a folder": lambda rng, path: [path.unlink(), path.mkdir()],
    "a loop": lambda rng, path: [path.unlink(), path.symlink_to(path)],
}


def test_pictures(draws, told, tmp_path):
    sound, root = tmp_path / "sound", tmp_path / "damaged"
    picture = Image.effect_noise((40, 64), 99).convert("RGB")
    for folder in (sound / part / label for part in ("train", "val", "test") for label in "ab"):
        folder.mkdir(parents=True)
        for i, (kind, mode) in enumerate(map(str.split, FORMATS.split("|"))):
            other = picture.convert("I") if mode == "I;16" else picture
            other.convert(mode).save(folder / f"{i:02d}.{kind.lower()}", kind)
    pictures = sorted(path for path in sound.rglob("*.*") if path.is_file())
    flags = "--dataset-config-file", REPO / "configs/datasets/imagefolder.yaml"
    for rng in draws:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sound, root)
        rng.choice([*CHANGES.values()])(rng, root / rng.choice(pictures).relative_to(sound))
        name = rng.choice(["ZIP", "ZeroshotOracle", "WhiteBox"])
        short = "ORACLE.MAX_QUERIES", 20, "OPTIM.MAX_EPOCH", 1
        told(arguments(name, root, tmp_path / "out", *short, flags=flags))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
