"""Which keys a run reads, and which were set and have no effect on it."""

from __future__ import annotations

from typing import Any

from dassl.config import get_cfg_default
from yacs.config import CfgNode

from .config import KEYS, extend_cfg, leaves, rules, tables
from .data.loaders import OF_THE_MODEL
from .registry import node_of, ours


def unread(cfg: CfgNode) -> list[str]:
    """Names of keys under OPTIM, ORACLE and our trainers' nodes, in order, that are not at their
    default and that the trainer does not read with the other settings as they are.

    Nothing is known, and nothing listed, of a trainer that is not ours.
    """
    return sorted(without_effect(cfg) & changed(cfg))


def in_use(cfg: CfgNode) -> dict[str, Any]:
    """What one of our trainers reads, save what its model decides. Of INPUT, and of what is not
    known here, that is what is not at its default.
    """
    known = {name for name in rules(cfg.TRAINER.NAME) if not name.startswith("INPUT.")}
    shown = (known | changed(cfg)) - without_effect(cfg) - {f"INPUT.{key}" for key in OF_THE_MODEL}
    return {name: value for name, value in leaves(cfg).items() if name in shown}


def changed(cfg: CfgNode) -> set[str]:
    """Names of keys that are not at their default."""
    default = get_cfg_default()
    extend_cfg(default)
    before = leaves(default)
    return {name for name, value in leaves(cfg).items() if before.get(name, value) != value}


def without_effect(cfg: CfgNode) -> set[str]:
    """The keys under OPTIM, ORACLE and our trainers' nodes that the run does not read."""
    if cfg.TRAINER.NAME not in ours():
        return set()
    read = reads(cfg)
    nodes = ("OPTIM.", "ORACLE.", *(f"{name}." for name in tables() if name.startswith("TRAINER.")))
    return {
        name
        for name in leaves(cfg)
        if name.startswith(nodes)
        and (not read & {name, name.split(".")[0]} or not is_read(cfg, name))
    }


def is_read(cfg: CfgNode, name: str) -> bool:
    """Whether a shared key has an effect, by the values beside it."""
    node, _, key = name.rpartition(".")
    entry = KEYS.get(node, {}).get(key)
    return entry is None or entry.when(cfg[node])


def reads(cfg: CfgNode) -> set[str]:
    """The keys, and the whole nodes, that `cfg.TRAINER.NAME` reads of those."""
    trainer = ours()[cfg.TRAINER.NAME]
    node = node_of(trainer)
    own = {
        f"TRAINER.{node}.{key}"
        for key, entry in trainer.keys.items()
        if entry.when(cfg.TRAINER[node])
    }
    return own | set(trainer.reads) | ({"OPTIM"} if trainer.scheduled else set())
