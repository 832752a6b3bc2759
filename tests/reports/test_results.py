"""Tables that go by what was run and cannot steer a terminal; commands; what the server says."""

import os
import pwd
import re
import runpy
import secrets
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import parse_test_res
import pytest
import train
import uvicorn
from dassl_blackbox import plots, results
from dassl_blackbox.commands import OTHERS
from dassl_blackbox.datasets import __main__ as datasets
from dassl_blackbox.serve.__main__ import main as serve
from finished import make, store
from starlette.testclient import TestClient
from support import REPO, run

import interpret_prompt

sys.path[:0] = [str(REPO / "scripts"), str(REPO / "benchmarks")]
compare, groups, sweep = map(import_module, ("compare", "groups", "sweep"))


# Seeds


def test_folders_of_one_seed_count_once(data_root, tmp_path, call):
    options = "TEST.PER_CLASS_RESULT", True, "TRAINER.ZEROSHOT.TEMPLATE", "a zero {}."
    assert run("ZeroshotOracle", data_root, tmp_path / "a" / "seed1", *options) == 0
    shutil.copytree(tmp_path / "a" / "seed1", tmp_path / "a" / "seed2")
    (tmp_path / "names").write_text("zero\n")
    for tool, told in (
        ((results.main, tmp_path, "--wide"), r"^a +ZeroshotOracle +words +1 "),
        ((groups.main, tmp_path, "--list", tmp_path / "names"), r"\| a +\| 1 "),
        ((parse_test_res.main, tmp_path / "a"), "standard error over 1 seeds: –"),
    ):
        _, out, err = call(*tool)
        assert re.search(told, out, re.M)
        assert re.search("seed2 is of seed 1, as .*seed1 is, and is left out", err)


def test_an_evaluation_is_of_the_seed_of_its_model(data_root, tmp_path, call):
    model = tmp_path / "model" / "seed3"
    assert run("ZIP", data_root, model, "ORACLE.MAX_QUERIES", 10, seed=3) == 0
    for seed in (1, 2):
        flags = "--eval-only", "--model-dir", model
        assert run("ZIP", data_root, tmp_path / "ev" / f"seed{seed}", seed=seed, flags=flags) == 0
    _, out, err = call(results.main, tmp_path, "--wide")
    assert re.search(r"^ev +ZIP +contexts +1 ", out, re.M)
    assert "ev/seed2 is of seed 3, as " in err and "ev/seed1 is of seed 3, and counts" in err


def test_a_folder_of_another_seed_keeps_its_result(tmp_path, call):
    for folder, seed, accuracy in (("seed1", 2, 10.0), ("seed2", 2, 20.0), ("seed3", 4, 30.0)):
        store(make(tmp_path / "train_base" / "ZIP" / folder), seed=seed, accuracy=accuracy)
    for folder, seed in (("seed1", 4), ("seed2", 2)):
        store(make(tmp_path / "test_new" / "ZIP" / folder), seed=seed, accuracy=25.0, classes="new")
    _, out, err = call(results.main, tmp_path, "--base2new", "--format", "csv")
    assert "ZIP,Digits,25.0 ± 5.0,25.0 ± 0.0,25.0" in out
    assert "train_base/ZIP/seed1 is of seed 2, as " in err and "left out" in err
    assert "train_base/ZIP/seed3 is of seed 4, and counts as that" in err


MISNAMED = [
    ("digits/ZIP/4shots", {"trainer": "CraFT"}, "the trainer ZIP, and its run is of CraFT"),
    ("letters/ZIP", {}, "the data set Letters, and its run is of Digits"),
    ("ZIP/tiny_4shots_x", {}, "the number of shots 4, and its run is of 16"),
]


@pytest.mark.parametrize("folder, changes, words", MISNAMED)
def test_names_that_are_not_what_was_run_are_noted(tmp_path, call, folder, changes, words):
    store(make(tmp_path / folder / "seed1"), seed=1, **changes)
    for tool in ((results.main, tmp_path), (plots.main, "shots", tmp_path, "--out", os.devnull)):
        assert f"{folder} names {words}, which counts" in call(*tool)[2]
    right = tmp_path / "right" / "digits" / "ZIP" / "tiny_16shots_500queries" / "seed1"
    store(make(right), seed=1)
    assert call(results.main, tmp_path / "right")[2] == ""


def test_a_copy_in_the_place_of_another_is_noted(tmp_path, call):
    for folder in ("ZIP/tiny_4shots", "ZIP/tiny_16shots", "digits/ZIP/tiny_16shots"):
        store(make(tmp_path / folder / "seed1"), seed=1)
    _, out, err = call(results.main, tmp_path, "--across")
    note = "digits/ZIP/tiny_16shots has the place of ZIP/tiny_16shots, and is left out"
    assert note in err and out.count("\nZIP/tiny_16shots ") == 1
    err = call(plots.main, "shots", tmp_path, "--out", tmp_path / "a.svg")[2]
    assert err.count("has the place of") == 2


def test_tables_fit_a_terminal(tmp_path, call):
    for name in ("SONAR/tiny_16shots_alone", f"ZIP/{'long' * 40}"):
        for seed in (1, 2):
            path = make(tmp_path / "digits" / name / f"seed{seed}")
            store(path, trainer=name.partition("/")[0], seed=seed, accuracy=70.0 + seed)
    _, out, _ = call(results.main, tmp_path)
    assert max(map(len, out.splitlines())) <= 80
    cells = r"^SONAR +tiny_16shots_ +words +71.5 ± 0.5 +1,000 +8,000 +100\n +alone\n"
    assert re.search(cells, out, re.M)
    _, out, _ = call(results.main, tmp_path, "--format", "csv")
    assert out.splitlines()[0] == ",".join(results.HEADERS.values())


def test_names_cannot_steer_a_terminal_or_a_spreadsheet(tmp_path, call):
    for name in ("\x1b]0;evil\x07\x9b31m", "=1+1", "@x", "+1", "-1", "\t=1", "＝1"):
        make(tmp_path / name / "seed1")
    store(make(tmp_path / "z" / "seed1"), trainer="=\x1b[1m", dataset="\x9b2J", seed=1)
    make(tmp_path / "\x9b1m" / "seed1").joinpath("metrics.json").unlink()
    ways = [(results.main, tmp_path, *more) for more in ((), ("--across",), ("--format", "csv"))]
    ways += [(parse_test_res.main, tmp_path, "--multi-exp"), (parse_test_res.main, tmp_path)]
    ways += [(plots.main, "gain", tmp_path, "--out", tmp_path / "x.svg")]
    for way in ways:
        _, out, err = call(*way)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", out + err), (way, out, err)
    assert not re.search(r"^[=@+\t-]|,[=@+\t-]", call(*ways[2])[1], re.M)
    assert "'=1+1," in call(*ways[2])[1]


def test_commands_do_not_ask_the_shell_for_a_backend(sound, tmp_path, data_root, call, monkeypatch):
    """A notebook's need not be installed here; pycma and Letters import matplotlib, too."""
    for command in (
        lambda: call(plots.main, "gain", sound, "--out", tmp_path / "a.png")[0],
        lambda: run("ZeroshotOracle", data_root, tmp_path, flags=("--no-train",)),
    ):
        monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        assert command() == 0 and os.environ["MPLBACKEND"] == "Agg"


# Commands


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_package_lists_its_commands(capsys, monkeypatch, words):
    """`python -m dassl_blackbox` and `dassl-blackbox` are the same."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["dassl_blackbox", *words])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_module("dassl_blackbox", run_name="__main__")
    out = capsys.readouterr().out
    named = re.findall(r"^    dassl-blackbox (\w+)", out, re.M)
    assert all(find_spec(f"dassl_blackbox.{name}") for name in OTHERS)
    assert {*named} == {"draw", "quote", "fit", "predict", *OTHERS}
    scripts = re.findall(r"^    (?:python|bash) (\S+)", out, re.M)
    assert len(scripts) == 7 and all((REPO / script).is_file() for script in scripts)
    assert max(map(len, out.splitlines())) <= 80


def test_a_command_of_the_package_is_its_module(tmp_path, capsys, monkeypatch):
    make(tmp_path / "ZIP" / "seed1")
    monkeypatch.setattr("sys.argv", ["dassl_blackbox", "results", str(tmp_path), "--wide"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_module("dassl_blackbox", run_name="__main__")
    assert "\nZIP  ZIP     contexts " in capsys.readouterr().out


@pytest.mark.parametrize(
    "main, prog, default",
    [
        (results.main, "-m dassl_blackbox.results", "simple"),
        (plots.main, "-m dassl_blackbox.plots", None),
        (datasets.main, "-m dassl_blackbox.datasets", "$DATA, or data"),
        (serve, "-m dassl_blackbox.serve", "8900"),
        (parse_test_res.main, "parse_test_res.py", "accuracy"),
        (interpret_prompt.main, "interpret_prompt.py", "3"),
        (train.parse_args, "train.py", "-1"),
        (compare.main, "scripts/compare.py", "output/compare"),
        (sweep.main, "scripts/sweep.py", "output"),
    ],
)
def test_help_tells_the_command_and_the_defaults(call, monkeypatch, main, prog, default):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = call(main, "--help")
    assert status == 0 and out.startswith(f"usage: python {prog} ")
    assert max(map(len, out.splitlines())) <= 80
    assert default is None or f"(default: {default})" in " ".join(out.split())
    assert not re.search(r"default: (None|False|True|==SUPPRESS==|\[\])?\)", out)


def test_the_quickstart_says_whose_a_line_is_and_what_comes_next(tmp_path):
    fake, output = tmp_path / "python", tmp_path / "output"  # which trains nothing
    fake.write_text('#!/bin/sh\n[ "$1" != train.py ] || echo "* accuracy: 50.0%"\n')
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "VIRTUAL_ENV": f"{REPO}/.venv", "OUTPUT": output}
    line = "bash", "scripts/quickstart.sh"
    out = subprocess.check_output(line, cwd=REPO, env=env, stderr=subprocess.STDOUT, text=True)
    accuracies = re.findall(r"^(.*): \* accuracy: 50.0%$", out, re.M)
    methods = ["SONAR", "SONAR, alone", "ZeroshotOracle, template", "ZIP, words_500queries"]
    assert sorted(accuracies) == sorted([*methods, "JOLT, 500queries"])
    for line in (
        "    . .venv/bin/activate\n",
        f'    python -m dassl_blackbox.plots budgets "{output}" --out budgets.png\n',
        "    DATA=/your/pictures bash scripts/main.sh SONAR imagefolder photo 8\n",
    ):
        assert line in out


@pytest.mark.parametrize("device", ["nope", "cuda:99", "meta"])
def test_a_device_that_is_not_here(tmp_path, call, device):
    status, _, err = call(serve, *options(tmp_path / "state"), "--device", device)
    assert status == 1 and err.startswith(f"error: --device is {device}, which cannot be used: ")
    assert "Give one of cpu" in err and "fault" not in err


def options(*state):
    return "--backbone", "tiny", "--port", 0, *["--state"] * bool(state), *state


def test_no_home(tmp_path, data_root, call, capsys, monkeypatch):
    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for state in ((), ("~/state",)):
        status, _, err = call(serve, *options(*state))
        assert status == 1 and err.startswith("error: There is no home folder for ~/")
        assert "Give --state" in err
    assert run("ZeroshotOracle", data_root, tmp_path) == 0
    assert run("ZeroshotOracle", "~/none", tmp_path, flags=("--skip-done",)) == 0
    assert "skipped" in capsys.readouterr().out


def test_the_server_says_what_it_serves_and_who_asks(tmp_path, call, monkeypatch):
    def asked(server, sockets):
        client = TestClient(server.config.app, headers={"Authorization": "Bearer made-for-a-test"})
        assert [client.get("/v1/usage").status_code for _ in range(2)] == [200, 200]

    monkeypatch.setattr(secrets, "token_urlsafe", lambda size: "made-for-a-test")
    monkeypatch.setattr(uvicorn.Server, "run", asked)
    monkeypatch.delenv("BLACKBOX_KEYS", raising=False)
    status, out, _ = call(serve, *options(tmp_path / "state"), "--top-k", 5)
    url = re.search(r"^tiny listens on (http://127.0.0.1:\d+)$", out, re.M)[1]
    client = f"bash scripts/main.sh SONAR digits tiny 16 ORACLE.URL {url}"
    assert status == 0 and f"\nBLACKBOX_KEY=made-for-a-test {client}\n" in out
    assert "\n  default: contexts, logits; 5 log-probabilities an image\n" in out
    assert out.endswith(f"{url}\ndefault asks for the first time\n")
