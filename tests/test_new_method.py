"""A new method is one file: it trains, counts, saves, resumes, evaluates and is compared."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from support import REPO, SMALL

HEAD_ALONE = '''
"""A linear head on the logits of the class texts."""

import torch
import torch.nn.functional as F

from .blackbox.config import Key, number, register_trainer, whole
from .blackbox.probe import ProbeTrainer, descend, probe_keys


@register_trainer
class HeadAlone(ProbeTrainer):
    keys = {
        **probe_keys(),
        "VIEWS": Key(9, whole(0), "augmented views"),
        "LR": Key(0.01, number(above=0), "learning rate of the head"),
    }
    reads_features = False

    def build_head(self, generator):
        head = torch.nn.Linear(self.num_classes, self.num_classes)
        torch.nn.init.eye_(head.weight)
        head.class_bound = True
        return head

    def fit(self, gathered):
        adam = torch.optim.Adam(self.head.parameters(), lr=self.settings.LR)
        descend(adam, 50, lambda step: F.cross_entropy(self.head(gathered.rows), gathered.labels))
        return "50 steps"
'''

FRAME = '''
"""One additive frame for all pictures, tuned by SPSA."""

import torch

from .blackbox.config import register_trainer
from .blackbox.optimizers import SPSA
from .blackbox.oracle import Prompt
from .blackbox.prompts import Space
from .blackbox.rng import child_seed
from .blackbox.search import Recipe, SearchTrainer


class FrameSpace(Space):
    grants, changes_pictures = (), True

    def __init__(self, size):
        super().__init__()
        mask = torch.ones(3, *size)
        mask[:, 2:-2, 2:-2] = 0
        self.register_buffer("mask", mask)
        self.register_buffer("origin", torch.zeros(mask.numel()))

    def forward(self, theta, pixels=None):
        return Prompt(pictures=pixels + (theta.view(-1, 1, *self.mask.shape) * self.mask))


@register_trainer
class Frame(SearchTrainer):
    def build_recipe(self, generator):
        space = FrameSpace(self.description.image_size)
        return Recipe(space, SPSA(space.origin, average=2, seed=child_seed(generator)))
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
    "Frame": (FRAME, 4, 32),
    "Projected": (PROJECTED, 10, 80),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, in which only files are added."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("trainers", "datasets", "dassl_blackbox", "compat", "configs", "scripts"):
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "train.py", copy)
    for name, (source, *_) in METHODS.items():
        assert source.count("\n") < 60
        (copy / "trainers" / f"{name.lower()}.py").write_text(source)
    return copy


def call(checkout, *command):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_file(name, checkout, data_root, tmp_path):
    _, cost, images = METHODS[name]
    line = ["train.py", "--root", data_root, "--seed", 1, "--trainer", name, "--config-file"]
    line += [REPO / "configs/trainers/ZIP/tiny.yaml", "--dataset-config-file"]
    line += [REPO / "configs/datasets/digits.yaml", "--output-dir"]

    def train(folder, steps, *flags):
        budget = "ORACLE.MAX_QUERIES", steps * cost
        return call(checkout, *line, tmp_path / folder, *flags, *SMALL, *budget)

    whole = train("whole", 6)
    bill = json.loads((tmp_path / "whole" / "queries.json").read_text())
    assert bill["training"] == {"queries": 6 * cost, "image_queries": 6 * images}
    train("parts", 3)
    parts = train("parts", 6)
    assert "Resume from" in parts
    flags = "--eval-only", "--model-dir", tmp_path / "whole"
    again = train("again", 6, *flags)
    accuracies = {
        re.findall(r"^\* accuracy: (.*)$", out, re.M)[-1] for out in (whole, parts, again)
    }
    assert len(accuracies) == 1


def test_new_methods_are_compared(checkout, data_root, tmp_path):
    options = ["--root", data_root, "--seeds", 1, "--queries", 40, "--shots", 3]
    options += ["--output", tmp_path, "--methods", "HeadAlone"]
    shots = SMALL.index("DATASET.NUM_SHOTS")  # which --shots sets
    small = SMALL[:shots] + SMALL[shots + 2 :]
    printed = call(checkout, "scripts/compare.py", *options, "--opts", *small)
    assert re.search(r"^HeadAlone +words ", printed, re.M)
    helped = " ".join(call(checkout, "scripts/compare.py", "--help").split())
    assert all(f" {name}" in helped for name in METHODS)


def test_the_loop_in_contributing_runs(digits):
    code = next(code for code in python_blocks("CONTRIBUTING.md") if "build_oracle" in code)
    names = {"pixels": digits[:8], "labels": torch.arange(8) % 2}
    exec(code.replace("range(500)", "range(2)"), names)
    assert names["oracle"].counts["training"] == {"queries": 20, "image_queries": 160}
    assert names["logits"].shape == (10, 8, 2)
