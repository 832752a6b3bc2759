"""What several test files share: lists for contract tests, small runs, a counting oracle."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import train
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from dassl_blackbox.trainers.bar import DecayingDirections
from dassl_blackbox.trainers.blackbox import optimizers
from dassl_blackbox.trainers.blackbox.config import defaults, ours  # noqa: F401  for the tests
from dassl_blackbox.trainers.blackbox.optimizers import RULES
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, Images, Oracle
from dassl_blackbox.trainers.blackbox.oracle.interface import Wrapper
from dassl_blackbox.trainers.cbbt import RandomDirections

REPO = Path(__file__).resolve().parent.parent

# A trainer comes under contract by being registered, an optimiser by standing in its module; what
# it needs beside a start stands here.
OURS = ours()
BLACK_BOX = [name for name, cls in OURS.items() if cls.counted]
TRAINED = [name for name in BLACK_BOX if name != "ZeroshotOracle"]
CMA = {"sigma": 0.5, "population": 8, "bound": 0.0, "covariance": "full", "result": "mean"}
SETTINGS = {
    "SPSA": [{"rule": rule} for rule in RULES],
    "CMAES": [{**CMA, "options": ()}],
    "DecayingDirections": [{"q": 5, "eps": 0.01, "first": 0.1, "last": 0.01, "steps": 50}],
    "RandomDirections": [{"q": 256, "clip": 5.0, "lr": 0.002, "weight_decay": 5e-4}],
}
OWN = {"DecayingDirections": DecayingDirections, "RandomDirections": RandomDirections}
OPTIMIZERS = {
    f"{name} {settings.get('rule', '')}".strip(): partial(part, **{"seed": 0, **settings})
    for name, part in (vars(optimizers) | OWN).items()
    if isinstance(part, type) and "tell" in vars(part)
    for settings in SETTINGS.get(name, [{}])
}

d64 = torch.float64

# what keys of the configuration are given in tests, beside the names that they list
VALUES = (
    *(None, "", "zebra", "None", "x" * 300, "\0", "\udcff", True, False),
    *(-2, -1, 0, 1, 2, 3, 4, 7, 16, 10**6, 2**32, 10**13, -0.5, 0.0, 1e-3, 0.5, 0.9, 1.0, 5.5),
    *(1e300, math.nan, math.inf, (), [], [None], ["zebra"], ("x", 0.5), (0.5, "x"), [1.0, 0.1]),
    *([-1.0], ["CMA_active", True], ["popsize", 4], ("photo", "DATASET.NUM_SHOTS", "3")),
    *("{}", "a photo of a {}.", "{} {}", "{0}", "}{", "my.module:Service", ":Class"),
    *("http://127.0.0.1:8900", "https://models.example/@cf/v1?api-version=2024-02-01", "ftp://a"),
    *("http://", "http://a:b", "http://u:p@a", "http://u%3Ap%40a", "https://a/v1?api_key=k"),
)


def examples(key, fit):
    """Values that are valid for a key, or that are not."""
    return [value for value in (*VALUES, *key.valid.names) if key.fits(value) == fit]


def own(name, **settings):
    """Options that set a trainer's own keys."""
    pairs = [(f"TRAINER.{name.upper()}.{key}", value) for key, value in settings.items()]
    return tuple(word for pair in pairs for word in pair)


# 30 images in batches of 8: three steps an epoch, so that budgets and kills fall inside one
SMALL = (
    *("USE_CUDA", "False", "DATASET.NUM_SHOTS", "3", "DATALOADER.TRAIN_X.BATCH_SIZE", "8"),
    *("DATALOADER.TEST.BATCH_SIZE", "40", "TRAIN.PRINT_FREQ", "1"),
)
# few candidates in few dimensions, where the published numbers are large; of views, of which one is
# an epoch, as many as the tests ask for
SMALL_OF = {
    "BAR": {"Q": 2},
    "BlackVIP": {"SP_AVG": 2},
    "BPTVLM": {"POPULATION": 6, "DIM_TEXT": 12, "DIM_IMAGE": 8},
    "CBBT": {"Q": 6},
    "CLAP": {"VIEWS": 59, "EPOCHS": 50},
    "CraFT": {"POPULATION": 4, "DIM": 20, "HEAD_BATCH": 16},
    "GDA": {"VIEWS": 59},
    "JOLT": {"DIRECTIONS": 8, "HEAD_MEMORY": 20},
    "LFA": {"VIEWS": 59, "STEPS": 40},
    "RLA": {"VIEWS": 59, "STEPS": 40},
    "SONAR": {"VIEWS": 59, "TEXTS": 40},
    "TipAdapterF": {"VIEWS": 59, "EPOCHS": 5},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quadratic(d, seed=0):
    """f `[P, d] -> [P]` and its gradient `[P, d] -> [P, d]`: x'Ax/2 + b'x, A positive definite."""
    M = torch.randn(d, d, dtype=d64, generator=seeded(seed))
    b = torch.randn(d, dtype=d64, generator=seeded(seed + 1))
    A = M @ M.T / d + torch.eye(d, dtype=d64)
    return (lambda x: ((x @ A) * x).sum(-1) / 2 + x @ b), (lambda x: x @ A + b)


def arguments(trainer, root, out, *options, seed=1, flags=()):
    """Command-line arguments of a small run on Digits with the embedded model."""
    configs, small = REPO / "configs", own(trainer, **SMALL_OF.get(trainer, {}))
    line = "--root", root, "--seed", seed, "--trainer", trainer, "--output-dir", out
    files = (
        *("--config-file", configs / "trainers" / trainer / "tiny.yaml"),
        *("--dataset-config-file", configs / "datasets" / "digits.yaml"),
    )
    return [str(word) for word in (*line, *files, *flags, *SMALL, *small, *options)]


def run(*args, **kwargs):
    """`train.py` in this process; returns the exit status."""
    return train.main(train.parse_args(arguments(*args, **kwargs)))


def sentence(capsys, *args, **kwargs):
    """Run, and return the one sentence that it fails with."""
    capsys.readouterr()
    assert run(*args, **kwargs) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and err.endswith(errors[0] + "\n")
    return errors[0]


def build(*args, **kwargs):
    """A trainer, built as `train.py` builds it."""
    cfg = train.setup_cfg(train.parse_args(arguments(*args, **kwargs)))
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def trained(*args, **kwargs):
    """The same after its training."""
    trainer = build(*args, **kwargs)
    trainer.train()
    return trainer


def process(script, *args):
    """A script of the checkout in a process of its own."""
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {"capture_output": True, "text": True, "timeout": 300}
    line = [sys.executable, str(script), *map(str, args)]
    return subprocess.run(line, cwd=REPO, env={**os.environ, "PYTHONPATH": path}, **kept)


def bill(folder):
    return json.loads((Path(folder) / "queries.json").read_text())


def accuracy(text):
    """The last accuracy that a log or stdout reports, as it is printed."""
    return re.findall(r"^\* accuracy: (.*)$", text, re.M)[-1]


def printed(folder):
    """The last accuracy in a run's log."""
    return accuracy((folder / "log.txt").read_text())


def last_checkpoint(folder, name="prompt_learner"):
    """Content of the checkpoint that the pointer file names."""
    folder = Path(folder) / name
    newest = (folder / "checkpoint").read_text().split("\n")[0]
    return torch.load(folder / newest, weights_only=True)


def random_sources(checkpoint):
    """The random states in a checkpoint without CUDA's, which nothing here draws from."""
    return {name: state for name, state in checkpoint["blackbox"]["rng"].items() if name != "cuda"}


def assert_same(a, b):
    """Equal bit for bit: tensors, and plain values in dictionaries and sequences."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


def difference(a, b):
    """Of two logit arrays: max|a - b| / max|b|."""
    return ((a - b).abs().max() / b.abs().max()).item()


class Random(Oracle):
    """Answers at random, or with one value, about three classes; fails at calls of some numbers."""

    grants, client = frozenset(GRANTS), "a test"

    def __init__(self, value=None, fails=()):
        self.value, self.fails, self.calls, self.description = value, fails, 0, None

    def answer(self, *shape):
        self.calls += 1
        if self.calls in self.fails:
            raise ConnectionError("the line is dead")
        return torch.randn(shape) if self.value is None else torch.full(shape, self.value)

    def set_classes(self, names, template="{}."):
        pass

    def embed(self, words):
        return torch.zeros(1, 4)

    def upload(self, images):
        return Images(len(images))

    def query(self, images, prompt):
        return self.answer(len(prompt), len(images), 3)

    def image_features(self, images):
        return self.answer(len(images), 4)

    def text_features(self, prompt):
        return self.answer(len(prompt), 3, 4)


class Spy(Wrapper):
    """Stands inside the meter and counts for itself, before the call; keeps whether what crossed
    the wall had a graph.
    """

    def __init__(self, inner, before=lambda: None):
        super().__init__(inner)
        self.before = before
        self.queries = self.image_queries = self.classes = 0
        self.graphs = []

    def set_classes(self, names, template="{}."):
        super().set_classes(names, template)
        self.classes = len(names)

    def count(self, requests, images, candidates):
        """Requests of at most 128 images each, of which every candidate sees all."""
        self.queries += requests * len(range(0, images, 128))
        self.image_queries += candidates * images
        self.before()

    def crossed(self, *values):
        """The last of them."""
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        self.graphs += [value.requires_grad or value.grad_fn is not None for value in tensors]
        return values[-1]

    def embed(self, words):
        return self.crossed(super().embed(words))

    def upload(self, images):
        return super().upload(self.crossed(images))

    def query(self, images, prompt):
        further = 0 if prompt.texts is None else len(prompt.texts)
        requests = len(prompt) + len(range(0, further, self.classes or 1))
        self.count(requests, len(images), len(prompt))
        self.crossed(prompt.contexts, prompt.image_tokens, prompt.pictures)
        return self.crossed(super().query(images, prompt))

    def image_features(self, images):
        self.count(1, len(images), 1)
        return self.crossed(super().image_features(images))

    def text_features(self, prompt):
        self.count(len(prompt), 1, 0)
        self.crossed(prompt.contexts)
        return self.crossed(super().text_features(prompt))


def spied(trainer):
    """Put a spy inside the trainer's meter; returns both."""
    trainer.oracle.inner = spy = Spy(trainer.oracle.inner)
    spy.classes = trainer.num_classes
    return trainer, spy


def test_logits(trainer):
    """Logits `[N, C]` of the whole test set."""
    trainer.set_model_mode("eval")
    batches = [trainer.parse_batch_test(batch)[0] for batch in trainer.test_loader]
    with trainer.oracle.evaluation():
        return torch.cat([trainer.model_inference(images) for images in batches])


test_logits.__test__ = False  # a helper, whatever it is called
