"""Which settings make a run what it is: compared when it goes on, and when it is skipped."""

from __future__ import annotations

import hashlib
from math import inf
from pathlib import Path
from typing import Any

import yaml
from dassl.config import get_cfg_default

from ..config import extend_cfg, leaves, tables
from ..keys import Key
from ..registry import node_of, ours
from .errors import BlackBoxError
from .reading import read_yaml

SECTIONS = "SEED", "ORACLE", "OPTIM", "DATASET", "DATALOADER", "INPUT", "TRAINER", "MODEL", "TEST"
# where data lie, how often and in what portions they are read and written: results are the same
HARMLESS = {
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.BATCH_SIZE",
    "DATALOADER.TEST.SAMPLER",
    "INPUT.CACHE_MB",
    "ORACLE.GRANTS",
    "ORACLE.SAVE_EVERY",
    # how a service is reached, not what it is
    "ORACLE.BATCH",
    "ORACLE.CACHE",
    "ORACLE.IMAGES",
    "ORACLE.PATIENCE",
    "ORACLE.PRICE",
    "ORACLE.THREADS",
    "ORACLE.TIMEOUT",
    "ORACLE.URL",
}
BUDGETS = "ORACLE.MAX_QUERIES", "ORACLE.MAX_IMAGE_QUERIES", "OPTIM.MAX_EPOCH"
NOT_TRAINING = (
    "TEST.",
    "ORACLE.VAL_EVERY",
    "MODEL.",
)  # the model is known to a checkpoint by its weights
IMAGES = "training images"
SHOWN = 3
# where a method's SPACE had its sizes before every method had its own
SIZES = {
    "lowrank": {"ID": "TRAINER.ZIP.ID", "RANK": "TRAINER.ZIP.RANK"},
    "projection": {"DIM": "TRAINER.CRAFT.DIM", "STD": "TRAINER.CRAFT.STD"},
}


def counting(content: dict[str, Any]) -> dict[str, str]:
    return {
        name: str(value)
        for name, value in leaves(content).items()
        if name.split(".")[0] in SECTIONS and name not in HARMLESS
    }


def settings(text: str) -> dict[str, str]:
    """What of a dumped configuration makes a run what it is, by name."""
    return counting(yaml.safe_load(text))


def with_contents(run: dict[str, str], images_digest: str) -> dict[str, str]:
    """Settings, with what lies behind names in them: training images, and the content of files."""
    content = {IMAGES: images_digest}
    for name, key in files_of(run["TRAINER.NAME"]).items():
        path = Path(run[name])
        if run[name] not in key.rule.names and path.is_file():
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            content[name] = f"{path.name}, SHA-256 {sha[:12]}"
    return {**run, **content}


def content_names(trainer: str) -> set[str]:
    """Names of the settings of a trainer's run behind which contents may lie."""
    return {IMAGES, *files_of(trainer)}


def files_of(trainer: str) -> dict[str, Key]:
    """The keys of a trainer's run that may name a file."""
    return {name: key for name, key in keys_of(trainer).items() if key.names_file}


def read_settings(path: str | Path) -> dict[str, str]:
    """The same of the `config.yaml` of a run.

    Raises:
        BlackBoxError: the file cannot be read, or is not a whole configuration.
    """
    cure = "Choose another --output-dir, or move that run away."
    content = read_yaml(path, cure)
    missing = [name for name in get_cfg_default() if name not in content]
    broken = [name for name in SECTIONS[1:] if not isinstance(content.get(name), dict)]
    if missing or broken:
        raise BlackBoxError(f"{path} is damaged: it has no whole {(missing + broken)[0]}. {cure}")
    return counting(content)


def inferred_with(trainer: str) -> set[str]:
    """Names of the settings that a trainer's evaluation reads and no checkpoint carries."""
    return {name for name, key in keys_of(trainer).items() if key.inferred_with}


def keys_of(trainer: str) -> dict[str, Key]:
    """The keys under ORACLE and of one trainer, by their full names."""
    nodes = {"ORACLE"} | ({f"TRAINER.{node_of(ours()[trainer])}"} if trainer in ours() else set())
    return {
        f"{node}.{key}": entry
        for node, keys in tables().items()
        if node in nodes
        for key, entry in keys.items()
    }


def before(run: dict[str, str]) -> dict[str, str]:
    """What a run did while a key was not yet known, where that is not today's default."""
    trainer = ours().get(run.get("TRAINER.NAME", ""))
    if trainer is None:
        return {}
    node = f"TRAINER.{node_of(trainer)}"
    sizes = SIZES.get(run.get(f"{node}.SPACE", ""), {})
    done = {f"{node}.{key}": run[source] for key, source in sizes.items() if source in run}
    if (node, run.get(f"{node}.HEAD")) == ("TRAINER.JOLT", "True"):
        done["TRAINER.JOLT.HEAD_FOLDS"] = "1"
    return done


def differences(
    made: dict[str, str], here: dict[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    """{name: (there, here)}.

    A key that only one side has was added between versions: the other side gets what was done
    before it, mostly today's default.
    """
    default = get_cfg_default()
    extend_cfg(default)
    known = settings(default.dump())
    there, now = ({**known, **before(run), **run} for run in (made, here))
    pairs = {name: (there.get(name), now.get(name)) for name in {**made, **here}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and None not in pair}


def larger(name: str, there: str | None, here: str | None) -> bool:
    """Whether a difference is a budget that has grown; 0 is no limit."""
    if name not in BUDGETS:
        return False
    try:
        return (int(here or "") or inf) > (int(there or "") or inf)
    except ValueError:  # a file that was written by hand
        return False


def as_text(differing: dict[str, tuple[str | None, str | None]]) -> str:
    """The first few of them."""
    words = [
        name if name == IMAGES else f"{name}: {there} there, {here} here"
        for name, (there, here) in differing.items()
    ]
    return "; ".join(words[:SHOWN]) + (
        f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    )
