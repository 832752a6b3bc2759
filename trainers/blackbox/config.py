"""The keys that all methods share, and the tables of all: default, what a key may hold, what it is.

A method's own keys stand in its file, as `keys` of the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from dassl.config import get_cfg_default
from yacs.config import CfgNode

from .hostkeys import conflicts, host_rules
from .keys import Key, Rule, one, whole
from .oraclekeys import local_keys, remote_keys
from .registry import node_of, ours
from .run.errors import BlackBoxError

KEYS: dict[str, dict[str, Key]] = {
    "DATASET": {
        "SUBSAMPLE_CLASSES": Key(
            "all", one("all", "base", "new"), "CoOp's key: which classes are used"
        ),
    },
    "INPUT": {
        "CACHE_MB": Key(2048, whole(0), "memory for decoded training pictures; 0: none is kept"),
        # they take turns by epoch: once all were met, nothing is encoded again
        "VIEWS": Key(0, whole(0), "augmented views of a training picture; 0: ever new ones"),
    },
    # A query is one candidate on one batch of at most 128 images.
    "ORACLE": {
        **local_keys(),
        **remote_keys(),
        "MAX_QUERIES": Key(5000, whole(0), "training budget in queries; 0: no limit"),
        "MAX_IMAGE_QUERIES": Key(0, whole(0), "the same in candidates x images; 0: no limit"),
        # besides, every tenth of a run is saved
        "SAVE_EVERY": Key(500, whole(0), "queries between checkpoints; 0: no more than the tenths"),
        "VAL_EVERY": Key(0, whole(0), "queries between looks at val (val_curve.csv); 0: never"),
    },
}


def tables() -> dict[str, Mapping[str, Key]]:
    """The keys of every node: `KEYS`, and what each trainer brings in its own file as `keys`."""
    return {
        **KEYS,
        **{f"TRAINER.{node_of(cls)}": cls.keys for cls in ours().values() if cls.keys},
    }


def extend_cfg(cfg: CfgNode) -> None:
    """Add our nodes to a Dassl configuration, in place. Calling it twice changes nothing."""
    if "ORACLE" in cfg:
        return
    for name, keys in tables().items():
        node = cfg
        for part in name.split("."):
            if part not in node or part not in ("DATASET", "INPUT", "TRAINER"):
                node[part] = CfgNode()
            node = node[part]
        for key, entry in keys.items():
            if key != "SUBSAMPLE_CLASSES" or key not in node:  # a fork has it, as CoOp does
                node[key] = deepcopy(entry.default)


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries, such as a configuration, as {"ORACLE.PREC": "fp32", …}."""
    return {
        name: leaf
        for key, value in node.items()
        for name, leaf in (
            leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        ).items()
    }


def rules(trainer: str) -> dict[str, Rule]:
    """What our keys and Dassl's may hold where this trainer of ours runs, by their full names."""
    known = {
        f"{node}.{key}": entry.rule
        for node, keys in tables().items()
        for key, entry in keys.items()
    }
    return {**host_rules(trainer), **known}


def check_cfg(cfg: CfgNode) -> None:
    """Look at every key that our trainers read, before anything is loaded.

    Raises:
        BlackBoxError: a blank value, a wrong type, a value out of its range, two that exclude each
            other. The first one is named, with what is expected.
    """
    given, known = leaves(cfg), rules(cfg.TRAINER.NAME)
    for name, value in given.items():
        if name in known and not known[name].fits(value):
            raise BlackBoxError(known[name].sentence(name, value))
    for name, default in leaves(get_cfg_default()).items():
        if default is not None and given.get(name, default) is None:
            raise BlackBoxError(f"{name} is blank; a value such as {default!r} is expected.")
    for sentence in conflicts(cfg):
        raise BlackBoxError(sentence)
