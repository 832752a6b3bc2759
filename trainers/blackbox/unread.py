"""Keys that were set and that have no effect on the run."""

from __future__ import annotations

from dassl.config import get_cfg_default
from yacs.config import CfgNode

from .config import KEYS, extend_cfg, leaves, tables
from .registry import node_of, ours


def unread(cfg: CfgNode) -> list[str]:
    """Names of keys under OPTIM, ORACLE and our trainers' nodes, in order, that are not at their
    default and that the trainer does not read with the other settings as they are.

    Nothing is known, and nothing listed, of a trainer that is not ours.
    """
    if cfg.TRAINER.NAME not in ours():
        return []
    default = get_cfg_default()
    extend_cfg(default)
    before, read = leaves(default), reads(cfg)
    nodes = ("OPTIM.", "ORACLE.", *(f"{name}." for name in tables() if name.startswith("TRAINER.")))
    return sorted(
        name
        for name, value in leaves(cfg).items()
        if name.startswith(nodes)
        and (not read & {name, name.split(".")[0]} or not is_read(cfg, name))
        and before.get(name, value) != value
    )


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
