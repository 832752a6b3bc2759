"""Folders of finished runs, whole and damaged, and the tools that read them."""

import json
import os
import sys

import parse_test_res
from dassl_blackbox import plots, results
from dassl_blackbox.console import tool
from dassl_blackbox.trainers.blackbox.record import NAME as METRICS

CONFIG = """\
DATASET: {NAME: Digits, NUM_SHOTS: 16, SUBSAMPLE_CLASSES: all}
MODEL:
  BACKBONE: {NAME: tiny}
TRAINER: {NAME: %s}
"""


def make(folder, accuracy=70.0, trainer="ZIP", elapsed="0:01:00", **bill):
    """A finished run as our trainers leave it, with VERBOSE False."""
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(
        f"** Arguments **\neval_only: False\nFinish training\n* accuracy: {accuracy}%\n"
        f"* macro_f1: {accuracy}%\nElapsed: {elapsed}\n"
    )
    (folder / "config.yaml").write_text(CONFIG % trainer)
    counts = {"queries": 1000, "image_queries": 8000}
    content = {"training": counts, "evaluation": counts, **bill}
    (folder / "queries.json").write_text(json.dumps(content))
    (folder / "val_curve.csv").write_text("500,4000,50.0\n1000,8000,60.0\n")
    return folder


def store(folder, kind="end_of_training", **changes):
    """A `metrics.json` beside the files of `make`; `changes` of its section."""
    counts = {"queries": 1000, "image_queries": 8000}
    section = {
        "trainer": "ZIP",
        "access": ["contexts", "logits"],
        "backbone": "tiny",
        "dataset": "Digits",
        "classes": "all",
        "shots": 16,
        "batches": 10,
        "accuracy": 70.04,
        "queries": {**dict.fromkeys(("training", "evaluation"), counts), "test": counts},
        "seconds": 60.0,
    } | changes
    (folder / METRICS).write_text(json.dumps({kind: section}))
    return folder


def two_methods(root):
    """Two seeds of a method, and zero-shot."""
    make(root / "ZIP_16shots" / "seed1", lost={"queries": 1, "image_queries": 8})
    make(root / "ZIP_16shots" / "seed2", 72.0)
    make(root / "ZeroshotOracle" / "seed1", 50.0, "ZeroshotOracle")
    return root


def called(capsys, monkeypatch, main, *args):
    """(status, stdout, stderr) of a tool in this process, as its `__main__` runs it."""
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, args)])
    capsys.readouterr()
    try:
        status = tool(main)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
        print("" if isinstance(e.code, int) else e.code, file=sys.stderr)
    return status, *capsys.readouterr()


# how each tool is called on a folder of runs, and the files that it reads
LOG, BILL, YAML, CURVE = "log.txt", "queries.json", "config.yaml", "val_curve.csv"
TOOLS = {
    "results": ((LOG, BILL, YAML), lambda root: (results.main, root)),
    "across": ((LOG, YAML), lambda root: (results.main, root, "--across")),
    "parse_test_res": ((LOG, BILL), lambda root: (parse_test_res.main, root / "ZIP_16shots")),
    "multi-exp": ((LOG, BILL), lambda root: (parse_test_res.main, root, "--multi-exp")),
    **{
        kind: (files, lambda root, kind=kind: (plots.main, kind, root, "--out", f"{root}.png"))
        for kind, files in {
            "shots": (LOG, YAML),
            "queries": (LOG, CURVE),
            "gain": (YAML,),
            "budgets": (LOG, BILL),
        }.items()
    },
}
DAMAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: os.symlink(path.name, path),
}
COUNTS = '{"training": {"queries": %s, "image_queries": 0}, "evaluation": {"queries": 0}}'
OWN = {
    LOG: {
        "out of range": b"Finish training\n* accuracy: 1e400%\n",
        "no number": b"Finish training\n* accuracy: 1.2.3%\n",
    },
    BILL: {
        "a list": b"[1, 2]",
        "deep": b"[" * 5000,
        **{value: (COUNTS % value).encode() for value in ("Infinity", "-1", "0.5", "true", "1e3")},
        "more lost than asked": b'{"training": {"queries": 1, "image_queries": 1}, "evaluation": '
        b'{"queries": 0, "image_queries": 0}, "lost": {"queries": 2, "image_queries": 0}}',
    },
    YAML: {
        "a list": b"- DATASET\n",
        "deep": b"{a: " * 5000,
        "of other types": b"DATASET: [Digits]\nMODEL: 3\nTRAINER: {NAME: 7}\n",
        "of itself": b"DATASET: &a {NAME: *a}\n",
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
