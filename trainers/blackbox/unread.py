"""Keys that were set and that have no effect on the run."""

from __future__ import annotations

from dassl.config import get_cfg_default
from yacs.config import CfgNode

from .config import extend_cfg, leaves, tables
from .hostkeys import SCHEDULED

ANSWERS = {"ORACLE.PREC", "ORACLE.GRANTS", "ORACLE.TOP_K"}  # keys that evaluation reads too
SIZES = {
    "lowrank": {"TRAINER.ZIP.ID", "TRAINER.ZIP.RANK"},
    "projection": {"TRAINER.CRAFT.DIM", "TRAINER.CRAFT.STD"},
}


def unread(cfg: CfgNode) -> list[str]:
    """Names of keys under OPTIM, ORACLE and our trainers' nodes, in order, that are not at their
    default and that the trainer does not read with the other settings as they are.
    """
    default = get_cfg_default()
    extend_cfg(default)
    before, read = leaves(default), reads(cfg)
    nodes = ("OPTIM.", "ORACLE.", *(f"{name}." for name in tables() if name.startswith("TRAINER.")))
    return sorted(
        name
        for name, value in leaves(cfg).items()
        if name.startswith(nodes) and name not in read and before.get(name, value) != value
    )


def reads(cfg: CfgNode) -> set[str]:
    """The keys of those nodes that `cfg.TRAINER.NAME` reads."""
    name = cfg.TRAINER.NAME
    node = {"ZeroshotOracle": "ZEROSHOT"}.get(name, name.upper())
    own = cfg.TRAINER.get(node, {})
    idle = tuple(f"{part}_" for part in ("HEAD", "ADAPTER") if own.get(part) is False)
    read = {f"TRAINER.{node}.{key}" for key in own if not (idle and key.startswith(idle))}
    for sizes in SIZES.values():
        read -= sizes
    read |= SIZES.get(own.get("SPACE"), set())
    if own.get("CTX_INIT"):
        read.discard(f"TRAINER.{node}.N_CTX")
    if own.get("RULE") != "spsa-gc":
        read.discard("TRAINER.ZIP.BETA")
    if own.get("N_IMAGE") == 0:
        read.discard("TRAINER.BPTVLM.DIM_IMAGE")
    if name == "ZeroshotOracle":
        return read | ANSWERS
    read |= {"OPTIM.MAX_EPOCH"} | {f"OPTIM.{key}" for key in cfg.OPTIM if name in SCHEDULED}
    return read if name == "WhiteBox" else read | {f"ORACLE.{key}" for key in cfg.ORACLE}
