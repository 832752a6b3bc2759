"""Folders of finished runs, whole and damaged, and the tools that read them."""

import json
import os

import parse_test_res
from dassl_blackbox import plots, results
from dassl_blackbox.console import tool
from dassl_blackbox.trainers.blackbox.record import NAME as METRICS

COUNTED = {"queries": 1000, "image_queries": 8000}
ASKED = dict.fromkeys(("training", "evaluation", "test"), COUNTED)
ACCESS = {"SONAR": ["logits"], "ZeroshotOracle": [], "GDA": ["features"], "WhiteBox": ["weights"]}


def make(folder, accuracy=70.0, trainer="ZIP", lost=0):
    """A finished run as our trainers leave it, with a look at val."""
    folder.mkdir(parents=True)
    queries = "=> queries\n* training queries: 1,000 (image queries: 8,000)\n"
    queries += f"* lost queries: {lost} (image queries: 8)\n" if lost else ""
    log = f"Finish training\n* accuracy: {accuracy}%\n* macro_f1: {accuracy}%\n{queries}"
    (folder / "log.txt").write_text(f"** Arguments **\neval_only: False\n{log}")
    (folder / "val_curve.csv").write_text("500,4000,50.0\n1000,8000,60.0\n")
    queries = {**ASKED, "lost": {"queries": lost, "image_queries": 8 * lost}}
    return store(folder, accuracy=accuracy, trainer=trainer, queries=queries)


def store(folder, kind="end_of_training", **changes):
    """A `metrics.json`, with changes of its section."""
    trainer = changes.get("trainer", "ZIP")
    section = {
        **{"trainer": trainer, "access": ACCESS.get(trainer, ["contexts", "logits"])},
        **{"backbone": "tiny", "dataset": "Digits", "classes": "all", "shots": 16, "batches": 10},
        **{"accuracy": 70.04, "split": "test", "seconds": 60.0},
        "reliability": [[30, 0.5, 0.4], [70, 0.9, 0.8]],
        "queries": ASKED,
    }
    (folder / METRICS).write_text(json.dumps({kind: section | changes}))
    return folder


def two_methods(root):
    """Two seeds of a method, and zero-shot."""
    make(root / "ZIP_16shots" / "seed1", lost=1)
    make(root / "ZIP_16shots" / "seed2", 72.0)
    make(root / "ZeroshotOracle" / "seed1", 50.0, "ZeroshotOracle")
    return root


def called(capsys, monkeypatch, main, *args):
    """(status, stdout, stderr) of a tool in this process, as its `__main__` runs it."""
    monkeypatch.setattr("sys.argv", ["tool", *map(str, args)])
    capsys.readouterr()
    return tool(main), *capsys.readouterr()


# how each tool is called on a folder of runs, and the files that it reads
LOG, CURVE = "log.txt", "val_curve.csv"
BOTH = METRICS, CURVE
TOOLS = {
    "results": ((METRICS,), lambda root: (results.main, root)),
    "across": ((METRICS,), lambda root: (results.main, root, "--across")),
    "parse_test_res": ((LOG,), lambda root: (parse_test_res.main, root / "ZIP_16shots")),
    "multi-exp": ((LOG,), lambda root: (parse_test_res.main, root, "--multi-exp")),
    "shots": ((METRICS,), lambda root: (plots.main, "shots", root, "--out", f"{root}.png")),
    "gain": ((METRICS,), lambda root: (plots.main, "gain", root, "--out", f"{root}.png")),
    "budgets": ((METRICS,), lambda root: (plots.main, "budgets", root, "--out", f"{root}.png")),
    "queries": (BOTH, lambda root: (plots.main, "queries", root, "--out", f"{root}.png")),
}
DAMAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: os.symlink(path.name, path),
}
SECTION = '{"end_of_training": {"trainer": "ZIP", "access": ["logits"], "accuracy": %s}}'
BILL = '7, "queries": {"training": %s, "evaluation": %s, "test": %s}'
COUNTS = '{"queries": %s, "image_queries": 0}'
OWN = {
    METRICS: {
        "deep": b"[" * 5000,
        "no sections": b'{"end_of_training": 3}',
        "no accuracy": (SECTION % '7, "accuracy": null').encode(),
        **{value: (SECTION % value).encode() for value in ("170", "NaN", '"x"')},
        **{
            f"{value} queries": (SECTION % (BILL % ((COUNTS % value,) * 3))).encode()
            for value in ("Infinity", "-1", "0.5", "true")
        },
    },
    LOG: {
        "out of range": b"\nFinish training\n* accuracy: 1e400%\n",
        "no number": b"\nFinish training\n* accuracy: 1.2.3%\n",
    },
    CURVE: {
        "cut off": b"500,4000,50.0\n1000,8000,6",
        "no numbers": b"500,x,60.0\na,b,c\n",
        "commas": b",,\n,,,,\n",
        "out of range": b"500,4000,nan\n-1,0,170\n",
    },
}


def damaged(path, how):
    path.unlink()
    how(path) if callable(how) else path.write_bytes(how)
