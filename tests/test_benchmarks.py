"""The benchmarks start: what they import is still where they look for it."""

import subprocess
import sys

import pytest
from support import REPO


def test_all_of_them_can_be_imported():
    scripts = ", ".join(path.stem for path in (REPO / "benchmarks").glob("*.py"))
    command = [sys.executable, "-c", f"import {scripts}"]
    ended = subprocess.run(command, cwd=REPO / "benchmarks", capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        "oracle.py --models ViT-B/32 --classes 2 --contexts 1 --candidates 1 --batches 1",
        "image_tower.py --models photo --batch 2",
        "prompt.py curvature --datasets digits --seeds 1 --queries 150 --root {} --output {}",
        "prompt.py head --datasets digits --seeds 1 --queries 150 --shots 5 --root {} --output {}",
    ],
)
def test_a_small_one_ends_in_a_table(command, data_root, tmp_path):
    script, *options = command.format(data_root, tmp_path).split()
    ended = subprocess.run(
        [sys.executable, REPO / "benchmarks" / script, *options], capture_output=True, text=True
    )
    assert ended.returncode == 0 and "|--" in ended.stdout, ended.stderr
