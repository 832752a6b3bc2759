"""Whether what is on disk belongs to a run: a checkpoint by its method, model, classes, sizes and,
where the run goes on from it, its settings; a finished run by its settings.
"""

from __future__ import annotations

import hashlib
from math import inf
from pathlib import Path
from typing import Any

import yaml
from dassl.config import get_cfg_default
from yacs.config import CfgNode

from ..config import all_keys, defaults, leaves, reads
from ..errors import BlackBoxError
from ..files import load_state
from ..reading import read_yaml

PARTS = {"state_dict", "epoch", "optimizer", "scheduler", "blackbox"}
SECTIONS = "SEED", "ORACLE", "OPTIM", "DATASET", "DATALOADER", "INPUT", "TRAINER", "MODEL", "TEST"
# where data lie, how often and in what portions they are read and written: results are the same
HARMLESS = {
    *("DATASET.ROOT", "DATALOADER.NUM_WORKERS", "DATALOADER.TEST.BATCH_SIZE"),
    *("DATALOADER.TEST.SAMPLER", "INPUT.CACHE_MB", "ORACLE.GRANTS", "ORACLE.SAVE_EVERY"),
    # how a service is reached, not what it is
    *("ORACLE.BATCH", "ORACLE.CACHE", "ORACLE.IMAGES", "ORACLE.PATIENCE", "ORACLE.PRICE"),
    *("ORACLE.THREADS", "ORACLE.TIMEOUT", "ORACLE.URL"),
}
BUDGETS = "ORACLE.MAX_QUERIES", "ORACLE.MAX_IMAGE_QUERIES", "OPTIM.MAX_EPOCH"
# the model is known to a checkpoint by its weights
NOT_TRAINING = "TEST.", "ORACLE.VAL_EVERY", "MODEL."
IMAGES = "training images"
SHOWN = 3

Differences = dict[str, tuple[str, str]]  # name: (there, here)


# ---------------------------------------------------------------------- settings


def counting(content: dict[str, Any]) -> dict[str, str]:
    return {
        name: str(value)
        for name, value in leaves(content).items()
        if name.split(".")[0] in SECTIONS and name not in HARMLESS
    }


def settings(cfg: CfgNode) -> dict[str, str]:
    """What of a configuration makes a run what it is, by name: what its method reads."""
    counted = counting(yaml.safe_load(cfg.dump()))
    return {name: value for name, value in counted.items() if reads(cfg.TRAINER.NAME, name)}


def read_settings(path: str | Path) -> dict[str, str]:
    """The same, and what the method does not read, of the `config.yaml` of a run.

    Raises:
        BlackBoxError: the file cannot be read, or is not a whole configuration.
    """
    cure = "Choose another --output-dir, or move that run away."
    content = read_yaml(path, cure)
    for name, default in get_cfg_default().items():
        if name not in content or isinstance(content[name], dict) != isinstance(default, dict):
            raise BlackBoxError(f"{path} is damaged: it has no whole {name}. {cure}")
    return counting(content)


def names_of_files() -> set[str]:
    """The settings that may name a file, whose content counts."""
    return {name for name, key in all_keys().items() if key.names_file}


def with_contents(run: dict[str, str], images_digest: str) -> dict[str, str]:
    """Settings, with what lies behind names in them: training images, and the content of files."""
    content = {IMAGES: images_digest}
    for name in names_of_files() & run.keys():
        path = Path(run[name])
        if run[name] not in all_keys()[name].valid.names and path.is_file():
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            content[name] = f"{path.name}, SHA-256 {sha[:12]}"
    return {**run, **content}


def differences(made: dict[str, str], here: dict[str, str]) -> Differences:
    """The settings of this run that another was not made with.

    One that the other does not tell was added between versions, and had today's default.
    """
    there = {**settings(defaults()), **made}
    return {
        name: (there[name], value)
        for name, value in here.items()
        if there.get(name, value) != value
    }


def grew(name: str, there: str, here: str) -> bool:
    """Whether a difference is a budget that has grown; 0 is no limit."""
    try:
        return name in BUDGETS and (int(here) or inf) > (int(there) or inf)
    except ValueError:  # a file that was written by hand
        return False


def as_text(differing: Differences) -> str:
    """The first few of them."""
    words = [
        name if name == IMAGES else f"{name}: {there} there, {here} here"
        for name, (there, here) in differing.items()
    ]
    more = f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return "; ".join(words[:SHOWN]) + more


# ---------------------------------------------------------------------- checkpoints


def identity(trainer: Any) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that loads it.

    Class names, in their order, only where the head is tied to them.
    """
    description, tied = trainer.description, getattr(trainer.head, "class_bound", False)
    return {
        "method": trainer.cfg.TRAINER.NAME,
        "backbone": description.name,
        "weights": description.fingerprint,
        "classes": list(trainer.dm.dataset.classnames) if tied else None,
    }


def load(path: Path, trainer: Any) -> dict[str, Any]:
    """Read a checkpoint into the trainer's `learner`; the rest of it is returned too.

    Raises:
        BlackBoxError: it is of another method, model or size, or of other classes.
    """
    state, here = load_state(path), identity(trainer)
    if not PARTS <= state.keys() or not isinstance(state["blackbox"], dict):
        raise BlackBoxError(
            f"{path} was not written by this version of a black-box trainer, nor by its WhiteBox "
            f"(a checkpoint of CoOp's, perhaps). Give the folder of a {here['method']} run."
        )
    made, key = state["blackbox"]["identity"], "weights"
    if made["method"] != here["method"]:
        raise BlackBoxError(
            f"{path} is a checkpoint of {made['method']}, this run is {here['method']}. Give the "
            "same --trainer as in training."
        )
    if "format" not in state["blackbox"]:
        key = "backbone"
        print(
            f"Note: {path} was written by version 0.1.0, without a digest and with the model's "
            "name as its only certain mark: neither damage nor other weights of that name would "
            "show"
        )
    elif "digest" not in state:
        raise BlackBoxError(
            f"{path} is damaged: its digest is missing. Put a sound copy in its place."
        )
    if made[key] != here[key]:
        raise BlackBoxError(
            f"{path} was made with the backbone {made['backbone']}, this run uses "
            f"{here['backbone']}, and their weights or architectures differ. Give the same "
            "MODEL.BACKBONE.NAME as in training."
        )
    made_for, classes = made.get("classes", here["classes"]), here["classes"]
    moves = getattr(trainer.head, "moves", False)
    if made_for and classes and made_for != classes and not moves:
        raise BlackBoxError(
            f"{path} has a head for the classes {few(made_for)}; here they are {few(classes)}. "
            "This head is tied to the classes that it was trained on and cannot move to others: "
            "evaluate on the same ones, or train the prompt alone, which moves."
        )
    try:
        trainer.learner.load_state_dict(state["state_dict"])
    except RuntimeError as e:
        pairs = differing(state, trainer).items()
        differ = {name: pair for name, pair in pairs if name.startswith("TRAINER.")}
        raise BlackBoxError(
            f"{path} has a prompt or a head of another size, or of an earlier version "
            f"({str(e).splitlines()[-1].strip()}). Give the same settings as in training"
            f"{f' ({as_text(differ)})' if differ else ''}."
        ) from e
    return state


def few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''} ({len(names)})"


def differing(state: dict[str, Any], trainer: Any) -> Differences:
    """The settings that are not as in training."""
    return differences(state["blackbox"].get("settings", {}), settings(trainer.cfg))


def check_inference(path: Path, state: dict[str, Any], trainer: Any) -> None:
    """Raise, or note, where evaluation reads another value beside the checkpoint than training did.

    A prompt may be tried with one; a head that is tied to its classes was fitted to these answers.
    """
    read = {name for name, key in all_keys().items() if key.inferred_with}
    differ = {name: pair for name, pair in differing(state, trainer).items() if name in read}
    if differ and getattr(trainer.head, "class_bound", False):
        raise BlackBoxError(
            f"{path} has a head that was fitted with other settings ({as_text(differ)}), which "
            f"decide what it is given. Give the same in evaluation."
        )
    if differ:
        print(
            f"Note: {path} was trained with other settings that evaluation reads: {as_text(differ)}"
        )


def check_settings(
    path: Path, extra: dict[str, Any], here: dict[str, str], scheduled: bool
) -> None:
    """Raise unless a checkpoint was made with the settings `here`, budgets aside.

    With a schedule, which was laid over the epochs, these may not grow. `extra` is the checkpoint's
    section `blackbox`.
    """
    if "format" not in extra:
        raise BlackBoxError(
            f"{path} was written by version 0.1.0, which drew other crops and knew its "
            "pictures by name alone: it can be evaluated, but a run cannot go on from it. "
            "Choose another --output-dir."
        )
    budgets = BUDGETS[:2] if scheduled else BUDGETS
    differ = {
        name: pair
        for name, pair in differences(extra["settings"], here).items()
        if not name.startswith(budgets + NOT_TRAINING)
    }
    if differ:
        grow = "the epochs are its schedule's" if BUDGETS[2] in differ else "budgets may grow"
        raise BlackBoxError(
            f"{path} was made with other settings ({as_text(differ)}), and a run goes on only "
            f"as it began. Choose another --output-dir, or give the same configuration; {grow}."
        )
