"""The session: which Dassl runs, one thread, data made once, and skips that must be on a list."""

import json
import os
import re
import sys
import tempfile
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

# of this process and of those it starts: runs are compared bit for bit, and a fault is raised
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DASSL_BLACKBOX_TRACEBACK"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # not the user's
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl, or puts compat/ on the path
import dassl
import pytest
import torch

torch.set_num_threads(1)
pytest.register_assert_rewrite("served", "support")  # what they find wrong is shown as in tests

ALLOWED_SKIPS = (
    "no CUDA device|Caltech101 is not there: |the real Dassl's warm-up passes `verbose`"
    "|asks only compat: |no Ray is installed"
)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long tests as well")
    parser.addoption("--services", action="store_true", help="run those over a real service, too")


def pytest_collection_modifyitems(config, items):
    for name in ("long", "services"):
        if not config.getoption(f"--{name}"):
            left_out = [item for item in items if item.get_closest_marker(name)]
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


def pytest_configure(config):
    config.option.reportchars = getattr(config.option, "reportchars", "") + "s"  # skips are listed
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "long: runs with --long alone")
    config.addinivalue_line("markers", "services: runs with --services alone")


def pytest_report_header():
    kind = "our stand-in" if hasattr(dassl, "__compat__") else "the real one"
    return f"Dassl {dassl.__version__}, {kind}: {Path(dassl.__file__).parent}"


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and not re.match(ALLOWED_SKIPS, report.longrepr[2].removeprefix("Skipped: ")):
        report.outcome = "failed"  # for no reason on the list
    return report


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """DATASET.ROOT with Digits, its test split thinned to every twelfth image; from then on runs of
    this process get copies of one embedded model.
    """
    from dassl.config import get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl_blackbox.trainers.blackbox.openclip import models

    root, cfg = tmp_path_factory.mktemp("data"), get_cfg_default()
    cfg.DATASET.ROOT = str(root)
    DATASET_REGISTRY.get("Digits")(cfg)
    path = root / "digits" / "split_digits.json"
    split = json.loads(path.read_text())
    split["test"] = split["test"][::12]
    path.write_text(json.dumps(split))
    load, once = models.load_model, cache(models.load_model)

    def copied(name, *how):
        made = once(name, *how) if name == "tiny" else load(name, *how)
        return replace(made, model=deepcopy(made.model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_model", copied)
        yield root


@pytest.fixture(scope="session")
def vary_root(data_root, tmp_path_factory):
    """Makes another DATASET.ROOT with the same images, its split changed by a function."""

    def vary(change):
        root = tmp_path_factory.mktemp("data")
        (root / "digits").mkdir()
        (root / "digits" / "images").symlink_to(data_root / "digits" / "images")
        split = json.loads((data_root / "digits" / "split_digits.json").read_text())
        change(split)
        (root / "digits" / "split_digits.json").write_text(json.dumps(split))
        return root

    return vary


@pytest.fixture(scope="session")
def budget(data_root, tmp_path_factory):
    """`budget(trainer, steps, rest)`: options for so many steps, and a rest below another's."""
    from support import build

    @cache
    def plan(name):
        return build(name, data_root, tmp_path_factory.mktemp("cost")).plan

    def options(name, steps, rest=0):
        rest = min(rest, plan(name).step(steps)[0] - 1)
        return "ORACLE.MAX_QUERIES", plan(name).until(steps)[0] + rest

    return options


@pytest.fixture(scope="session")
def runs(data_root, tmp_path_factory):
    """A folder of finished runs, to be read: ZIP with two seeds (the first in a process of its
    own), zero-shot, the white-box ceiling.
    """
    from support import arguments, process, run

    root = tmp_path_factory.mktemp("output")
    options = "ORACLE.MAX_QUERIES", 47, "OPTIM.MAX_EPOCH", 2
    first = process("train.py", *arguments("ZIP", data_root, root / "ZIP" / "seed1", *options[:2]))
    assert first.returncode == 0, first.stderr
    (root / "stdout").write_text(first.stdout)
    assert run("ZIP", data_root, root / "ZIP" / "seed2", *options[:2], seed=2) == 0
    assert run("ZeroshotOracle", data_root, root / "ZeroshotOracle" / "seed1") == 0
    assert run("WhiteBox", data_root, root / "WhiteBox" / "seed1", *options) == 0
    return root


@pytest.fixture(scope="session")
def digits(data_root):
    """60 test images as the embedded model takes them, `[60, 3, 32, 32]`."""
    from support import build

    trainer = build("ZeroshotOracle", data_root, data_root / "none")
    return torch.cat([batch["img"] for batch in trainer.test_loader])[:60]


@pytest.fixture
def service(monkeypatch):
    """Makes servers of `services.py`, has their key in the environment, and closes them."""
    from services import KEY, SCALE, openai, zero_shot

    monkeypatch.setenv("BLACKBOX_KEY", KEY)
    made = []

    def start(kind="modality", **options):
        made.append(zero_shot(SCALE) if kind == "hf" else openai(kind, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture(scope="module")
def loaded():
    """`loaded(kind)`: the model that `oracles.make` makes, which a file's tests share."""
    from oracles import make

    return cache(make)


@pytest.fixture
def call(capsys, monkeypatch):
    """`call(main, *args)`: (status, stdout, stderr) of a tool."""
    from finished import called

    return lambda main, *args: called(capsys, monkeypatch, main, *args)


@pytest.fixture
def sound(tmp_path):
    """A folder of finished runs: two seeds of a method, and zero-shot."""
    from finished import two_methods

    return two_methods(tmp_path / "sound")
