"""Whether what is on disk belongs to a run, by its method, model, classes, sizes and settings."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..config import all_keys, defaults, leaves, without_effect
from ..errors import BlackBoxError
from ..files import load_state

# where data lie, how often and in what portions they are read and written, how a service is reached
HARMLESS = (
    *("OUTPUT_DIR", "RESUME", "TRAIN.", "USE_CUDA", "VERBOSE", "VERSION", "DATASET.ROOT"),
    *("DATALOADER.NUM_WORKERS", "DATALOADER.TEST.", "INPUT.CACHE_MB", "ORACLE.BATCH"),
    *("ORACLE.CACHE", "ORACLE.GRANTS", "ORACLE.IMAGES", "ORACLE.PATIENCE", "ORACLE.PRICE"),
    *("ORACLE.SAVE_EVERY", "ORACLE.THREADS", "ORACLE.TIMEOUT", "ORACLE.URL"),
)
BUDGETS = "ORACLE.MAX_QUERIES", "ORACLE.MAX_IMAGE_QUERIES", "OPTIM.MAX_EPOCH"
NOT_TRAINING = "TEST.", "ORACLE.VAL_EVERY", "MODEL."  # a checkpoint knows the model by its weights
IMAGES = "training images"


def counted(content: Mapping[str, Any]) -> dict[str, str]:
    """What of a configuration, or of the content of its file, may make a run what it is."""
    return {
        name: str(list(value) if isinstance(value, tuple) else value)
        for name, value in leaves(content).items()
        if not name.startswith(HARMLESS)
    }


def settings(cfg: CfgNode) -> dict[str, str]:
    """The same, of what the run reads."""
    hidden = without_effect(cfg)
    return {name: value for name, value in counted(cfg).items() if name not in hidden}


def with_contents(run: dict[str, str], images: str) -> dict[str, str]:
    """Settings, with what lies behind names: training images, and the content of files."""
    found = {**run, IMAGES: images}
    for name, key in all_keys().items():
        path = Path(run.get(name, ""))
        if key.names_file and run.get(name) not in key.valid.names and path.is_file():
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = f"{path.name}, SHA-256 {sha[:12]}"
    return found


def differences(made: dict[str, str], here: dict[str, str]) -> dict[str, tuple[str, str]]:
    """The settings of this run that another was not made with, as name: (there, here).

    One that the other does not tell was added between versions, and had today's default.
    """
    there = {**here, **settings(defaults()), **made}
    return {name: (there[name], value) for name, value in here.items() if there[name] != value}


def as_text(differing: dict[str, tuple[str, str]]) -> str:
    """The first few of them."""
    words = [
        name if name == IMAGES else f"{name}: {there or 'nothing'} there, {here or 'nothing'} here"
        for name, (there, here) in differing.items()
    ]
    return "; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")


def few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''} ({len(names)})"


def identity(trainer: Any) -> dict[str, Any]:
    """What a checkpoint and a run have in common; class names where the head is tied to them."""
    description, tied = trainer.description, getattr(trainer.head, "class_bound", False)
    return {
        "method": trainer.cfg.TRAINER.NAME,
        "backbone": description.name,
        "weights": description.fingerprint,
        "classes": list(trainer.dm.dataset.classnames) if tied else None,
    }


def load(path: Path, trainer: Any, run: dict[str, str] | None = None) -> dict[str, Any]:
    """Read a checkpoint into the trainer's `learner`; the rest of it is returned too.

    The run whose settings are given goes on from it; without them it is evaluated.

    Raises:
        BlackBoxError: it is of another method, model, size, of other classes or settings.
    """
    state, here, head = load_state(path), identity(trainer), trainer.head
    extra = state.get("blackbox", {})
    made, model = extra.get("identity"), "weights"
    if made is None:
        raise BlackBoxError(f"{path} is no checkpoint of these trainers. Give another --model-dir.")
    if "format" not in extra:
        old, model = f"{path} was written by version 0.1.0", "backbone"
        if run is not None:
            raise BlackBoxError(f"{old} and can only be evaluated. Choose another --output-dir.")
        print(f"Note: {old}: neither damage nor other weights would show")
    elif "digest" not in state:
        raise BlackBoxError(f"{path} is damaged: it has no digest. Put a sound copy in its place.")
    if made["method"] != here["method"] or made[model] != here[model]:
        raise BlackBoxError(
            f"{path} is of {made['method']} on {made['backbone']}, this run of {here['method']} on "
            f"{here['backbone']}, or their weights differ. Give the same --trainer and backbone."
        )
    made_for, classes = made.get("classes"), here["classes"]
    if made_for and classes and made_for != classes and not getattr(head, "moves", False):
        raise BlackBoxError(
            f"{path} has a head for the classes {few(made_for)}; here they are {few(classes)}. "
            f"It cannot move to others: evaluate on the same, or train a prompt alone, which moves."
        )
    differ, keys = differences(extra.get("settings", {}), run or settings(trainer.cfg)), all_keys()
    if run is None:
        counts = [name for name in differ if name in keys and keys[name].inferred_with]
    else:
        allowed = NOT_TRAINING + (BUDGETS[:2] if trainer.sched else BUDGETS)
        counts = [name for name in differ if not name.startswith(allowed)]
    told = f"{path} was made with other settings ({as_text({n: differ[n] for n in counts})})"
    if counts and run is not None:
        cure = "choose another --output-dir: only budgets may grow, not the epochs of a schedule"
        raise BlackBoxError(f"{told}. Give the same, or {cure}.")
    if counts and getattr(head, "class_bound", False):
        raise BlackBoxError(f"{told}, to which its head was fitted. Give the same in evaluation.")
    if counts:
        print(f"Note: {told}, which evaluation reads")
    try:
        trainer.learner.load_state_dict(state["state_dict"])
    except RuntimeError as e:
        own = as_text({name: pair for name, pair in differ.items() if name.startswith("TRAINER.")})
        raise BlackBoxError(
            f"{path} has a prompt or a head of another size, or of an earlier version "
            f"({own or str(e).splitlines()[-1].strip()}). Give the same settings as in training."
        ) from e
    return state
