"""A new method is one file with one import of ours: it trains, saves, resumes and is compared."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from support import REPO, SMALL, arguments, bill, printed

HEAD_ALONE = '''
"""A linear head on the logits of the class texts."""

import torch
import torch.nn.functional as F

from . import blackbox as bb


@bb.register_trainer
class HeadAlone(bb.ProbeTrainer):
    keys = {
        **bb.probe_keys(),
        "VIEWS": bb.Key(9, bb.whole(0), "augmented views"),
        "LR": bb.Key(0.01, bb.number(above=0), "learning rate of the head"),
    }
    reads_features = False

    def build_head(self, generator):
        head = torch.nn.Linear(self.num_classes, self.num_classes)
        torch.nn.init.eye_(head.weight)
        head.class_bound = True
        return head

    def fit(self, gathered):
        adam = torch.optim.Adam(self.head.parameters(), lr=self.settings.LR)
        rows, labels = gathered.rows, gathered.labels
        bb.descend(adam, 50, lambda step: F.cross_entropy(self.head(rows), labels))
        return "50 steps"
'''


def python_blocks(name):
    """The Python code in a Markdown file, block by block."""
    text = (REPO / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```$", text, re.M | re.S)
    return [textwrap.dedent(code) for _, code in blocks]


PROJECTED = next(code for code in python_blocks("CONTRIBUTING.md") if "build_recipe" in code)
# name: (its file, queries of a step, image queries of a step)
METHODS = {
    "HeadAlone": (HEAD_ALONE, 1, 30),
    "Projected": (PROJECTED, 10, 80),
}


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """`call(*command)`: stdout of a command in a copy of the checkout in which only files are
    added.
    """
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("trainers", "datasets", "dassl_blackbox", "compat", "configs", "scripts"):
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "train.py", copy)
    for name, (source, *_) in METHODS.items():
        assert source.count("\n") < 60 and source.count("blackbox") == 1  # one import of ours
        (copy / "trainers" / f"{name.lower()}.py").write_text(source)
        shutil.copytree(copy / "configs" / "trainers" / "ZIP", copy / "configs" / "trainers" / name)
    environment = {**os.environ, "PYTHONPATH": str(copy)}

    def run(*command, given=""):
        line, kept = [sys.executable, *map(str, command)], {"capture_output": True, "text": True}
        done = subprocess.run(line, cwd=copy, env=environment, input=given, **kept)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


RUN = """
import json, sys, train
for line in json.load(sys.stdin):
    assert train.main(train.parse_args(line)) == 0
"""


def test_a_method_is_one_file(call, data_root, tmp_path):
    """It trains, is billed, goes on where it stopped, and is evaluated."""
    lines, flags = [], ("--config-file", REPO / "configs/trainers/ZIP/tiny.yaml")
    for name, (_, cost, _) in METHODS.items():
        whole = tmp_path / name / "whole"
        for folder, steps, more in (
            (whole, 6, ()),
            (tmp_path / name / "parts", 3, ()),
            (tmp_path / name / "parts", 6, ()),
            (tmp_path / name / "again", 6, ("--eval-only", "--model-dir", whole)),
        ):
            budget = "ORACLE.MAX_QUERIES", steps * cost
            lines.append(arguments(name, data_root, folder, *budget, flags=(*flags, *more)))
    call("-c", RUN, given=json.dumps(lines))
    for name, (_, cost, images) in METHODS.items():
        spent = {"queries": 6 * cost, "image_queries": 6 * images}
        for folder in ("whole", "parts"):
            assert bill(tmp_path / name / folder)["training"] == spent
        assert "Resume from" in (tmp_path / name / "parts" / "log.txt").read_text()
        folders = ("whole", "parts", "again")
        assert len({printed(tmp_path / name / folder) for folder in folders}) == 1


def test_new_methods_are_compared(call, data_root, tmp_path):
    options = ["--root", data_root, "--seeds", 1, "--queries", 40, "--shots", 3]
    options += ["--output", tmp_path, "--methods", "HeadAlone"]
    shots = SMALL.index("DATASET.NUM_SHOTS")  # which --shots sets
    small = SMALL[:shots] + SMALL[shots + 2 :]
    table = call("scripts/compare.py", *options, "--opts", *small)
    assert re.search(r"^HeadAlone +words ", table, re.M)
    helped = " ".join(call("scripts/compare.py", "--help").split())
    assert all(f" {name}" in helped for name in METHODS)


def test_the_loop_in_contributing_runs(digits):
    code = next(code for code in python_blocks("CONTRIBUTING.md") if "build_oracle" in code)
    names = {"pixels": digits[:8], "labels": torch.arange(8) % 2}
    exec(code.replace("range(500)", "range(2)"), names)
    assert names["oracle"].counts["training"] == {"queries": 20, "image_queries": 160}
    assert names["logits"].shape == (10, 8, 2)
