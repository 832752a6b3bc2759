"""The benchmarks start: what they import is still where they look for it."""

import subprocess
import sys

import pytest
from support import REPO

SCRIPTS = [
    path.stem
    for path in sorted((REPO / "benchmarks").glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


def test_all_of_them_can_be_imported():
    command = [sys.executable, "-c", f"import {', '.join(SCRIPTS)}"]
    ended = subprocess.run(command, cwd=REPO / "benchmarks", capture_output=True, text=True)
    assert len(SCRIPTS) > 6 and ended.returncode == 0, ended.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        "oracle.py --models ViT-B/32 --classes 2 --contexts 1 --candidates 1 --batches 1",
        "jolt.py --model ViT-B/32 --directions 8 --batch 8 --classes 2 --contexts 1",
        "image_tower.py --models photo --batch 2",
        "recognition.py --sides 32 --batch 2",
    ],
)
def test_a_small_one_ends_in_a_table(command):
    script, *options = command.split()
    ended = subprocess.run(
        [sys.executable, REPO / "benchmarks" / script, *options], capture_output=True, text=True
    )
    assert ended.returncode == 0 and "|--" in ended.stdout, ended.stderr
