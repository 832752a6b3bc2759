"""The session: which Dassl runs, one thread, data made once, and skips that must be on a list."""

import json
import os
import re
import sys
import tempfile
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
    r"no CUDA device",
    r"Caltech101 is not there: ",
    r"the real Dassl's warm-up passes `verbose`",
    r"asks only compat: ",
    r"no Ray is installed",
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
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "long: runs with --long alone")
    config.addinivalue_line("markers", "services: runs with --services alone")


def pytest_report_header():
    kind = "our stand-in" if hasattr(dassl, "__compat__") else "the real one"
    return f"Dassl {dassl.__version__}, {kind}: {Path(dassl.__file__).parent}"


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def skipped(config):
    """{test: why it was skipped}, and those of them that are not on the list."""
    reports = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    found = {r.nodeid: str(r.longrepr[2]).removeprefix("Skipped: ") for r in reports}
    return found, [test for test in found if not re.match("|".join(ALLOWED_SKIPS), found[test])]


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and skipped(session.config)[1] and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    found, unlisted = skipped(config)
    for test, reason in found.items():
        mark = "FAILED, for no reason on the list in conftest.py: " if test in unlisted else ""
        terminalreporter.line(f"skipped: {mark}{test}: {reason}", red=test in unlisted)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """DATASET.ROOT with Digits, its test split thinned to every twelfth image."""
    from dassl.config import get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY

    root, cfg = tmp_path_factory.mktemp("data"), get_cfg_default()
    cfg.DATASET.ROOT = str(root)
    DATASET_REGISTRY.get("Digits")(cfg)
    path = root / "digits" / "split_digits.json"
    split = json.loads(path.read_text())
    split["test"] = split["test"][::12]
    path.write_text(json.dumps(split))
    return root


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
    """`budget(trainer, steps, rest)`: options for so many steps of a trainer and some queries that
    are too few for one more.
    """
    from support import build

    plans = {}

    def options(name, steps, rest=0):
        if name not in plans:
            plans[name] = build(name, data_root, tmp_path_factory.mktemp("cost")).plan
        rest = min(rest, plans[name].step(steps)[0] - 1)
        return "ORACLE.MAX_QUERIES", plans[name].until(steps)[0] + rest

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
