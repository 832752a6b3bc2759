"""A new method is one file with one import of ours: it trains, saves, resumes and is compared."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import torch
from support import REPO, arguments, bill, printed

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


BLOCKS = re.findall(
    r"^( *)```python\n(.*?)^ *```$", (REPO / "CONTRIBUTING.md").read_text(), re.M | re.S
)
CODE = [textwrap.dedent(code) for _, code in BLOCKS]
PROJECTED = next(code for code in CODE if "build_recipe" in code)
# name: (its file, queries of a step, image queries of a step)
METHODS = {"HeadAlone": (HEAD_ALONE, 1, 30), "Projected": (PROJECTED, 10, 80)}
RUN = """
import json, sys, train
for line in json.load(sys.stdin):
    assert train.main(train.parse_args(line)) == 0
sys.path.insert(0, "scripts")
import compare
print(*compare.METHODS, sep="\\n")
"""


def test_a_method_is_one_file(data_root, tmp_path):
    """In a copy of the checkout it trains, is billed, goes on, is evaluated and compared."""
    copy, lines = tmp_path / "checkout", []
    for name in ("trainers", "datasets", "dassl_blackbox", "compat", "configs", "scripts"):
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "train.py", copy)
    for name, (source, cost, _) in METHODS.items():
        assert source.count("\n") < 60 and source.count("blackbox") == 1  # one import of ours
        (copy / "trainers" / f"{name.lower()}.py").write_text(source)
        settings = shutil.copytree(REPO / "configs/trainers/ZIP", copy / "configs/trainers" / name)
        out, flags = tmp_path / name, ("--config-file", settings / "tiny.yaml")
        again = "--eval-only", "--model-dir", out
        for folder, steps, more in ((out, 3, ()), (out, 6, ()), (out / "again", 6, again)):
            budget = "ORACLE.MAX_QUERIES", steps * cost
            lines.append(arguments(name, data_root, folder, *budget, flags=(*flags, *more)))
    kept = {"cwd": copy, "env": {**os.environ, "PYTHONPATH": str(copy)}}
    kept |= {"input": json.dumps(lines), "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", RUN], **kept)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {*METHODS} <= {*done.stdout.splitlines()}
    for name, (_, cost, images) in METHODS.items():
        out = tmp_path / name
        assert bill(out)["training"] == {"queries": 6 * cost, "image_queries": 6 * images}
        assert "Resume from" in (out / "log.txt").read_text()
        assert printed(out) == printed(out / "again")


def test_the_loop_in_contributing_runs(digits):
    code = next(code for code in CODE if "build_oracle" in code)
    names = {"pixels": digits[:8], "labels": torch.arange(8) % 2}
    exec(code.replace("range(500)", "range(2)"), names)
    assert names["oracle"].counts["training"] == {"queries": 20, "image_queries": 160}
    assert names["logits"].shape == (10, 8, 2)
