"""What a run leaves on disk: whether a checkpoint belongs to another run, and `metrics.json`."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import torch

from .config import all_keys, defaults, leaves
from .errors import BlackBoxError, first_line
from .files import load_state, read_text, write_atomically
from .oracle.bill import Counts, batches_of, larger, query_cost

# where data lie, how often and in what portions they are read and written, how a service is reached
HARMLESS = (
    *("OUTPUT_DIR", "RESUME", "TRAIN.", "USE_CUDA", "VERBOSE", "VERSION", "DATASET.ROOT"),
    *("DATALOADER.NUM_WORKERS", "DATALOADER.TEST.", "INPUT.CACHE_MB", "ORACLE.BATCH"),
    *("ORACLE.CACHE", "ORACLE.FEATURES", "ORACLE.GRANTS", "ORACLE.IMAGES", "ORACLE.PATIENCE"),
    *("ORACLE.PRICE", "ORACLE.SAVE_EVERY", "ORACLE.THREADS", "ORACLE.TIMEOUT", "ORACLE.URL"),
)
BUDGETS = "ORACLE.MAX_QUERIES", "ORACLE.MAX_IMAGE_QUERIES", "OPTIM.MAX_EPOCH"
NOT_TRAINING = "TEST.", "ORACLE.VAL_EVERY", "MODEL."  # a checkpoint knows the model by its weights
IMAGES = "training images"
BINS = 15
NAME = "metrics.json"  # a section for each kind of evaluation, the last of its kind
END_OF_TRAINING, EVALUATION = "end_of_training", "evaluation"


def counted(content: Mapping[str, Any]) -> dict[str, str]:
    """What of a configuration, of its file, or of what is read of it may make a run what it is."""
    return {
        name: str(list(value) if isinstance(value, tuple) else value)
        for name, value in leaves(content).items()
        if not name.startswith(HARMLESS)
    }


def with_contents(run: dict[str, str], images: str) -> dict[str, str]:
    """Settings, with what lies behind names: training images, and the content of files."""
    found = {**run, IMAGES: images}
    for name, key in all_keys().items():
        path = Path(run.get(name, ""))
        if key.names_file and run.get(name) not in key.valid.names and path.is_file():
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = f"{path.name}, SHA-256 {sha[:12]}"
    return found


def differences(made: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The settings of this run that another was not made with, as name: (there, here).

    One that the other does not tell was added between versions, and had today's default.
    """
    there = {**here, **counted(defaults()), **made}
    return {name: (there[name], value) for name, value in here.items() if there[name] != value}


def grew(name: str, there: str, here: str) -> bool:
    """Whether a difference is a budget that has grown; 0 is no limit."""
    return name in BUDGETS and there.isdigit() and (int(here) or inf) > (int(there) or inf)


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
    model, tied = trainer.description, getattr(trainer.head, "class_bound", False)
    own = {"method": type(trainer).__name__, "backbone": model.name, "weights": model.fingerprint}
    return {**own, "classes": list(trainer.dm.dataset.classnames) if tied else None}


def load(path: Path, trainer: Any, run: Mapping[str, str], resumed: bool) -> dict[str, Any]:
    """Read a checkpoint into the `learner` of a run with these settings, if it is fit for that."""
    state, here, head, keys = load_state(path), identity(trainer), trainer.head, all_keys()
    extra, known = state.get("blackbox", {}), ["method", "weights"]
    made = extra.get("identity")
    if made is None:
        raise BlackBoxError(f"{path} is no checkpoint of these trainers. Give another --model-dir.")
    if "format" not in extra:
        old, known = f"{path} was written by version 0.1.0", ["method", "backbone"]
        if resumed:
            raise BlackBoxError(f"{old} and can only be evaluated. Choose another --output-dir.")
        print(f"Note: {old}: neither damage nor other weights would show")
    if any(made[name] != here[name] for name in known):
        told = f"{path} is of {made['method']} on {made['backbone']}, this run of {here['method']}"
        raise BlackBoxError(f"{told} on {here['backbone']}, or weights differ: give the same.")
    former, given = made.get("classes"), here["classes"]
    if former and given and former != given and not getattr(head, "moves", False):
        told = f"{path} has a head for the classes {few(former)}; here they are {few(given)}"
        raise BlackBoxError(f"{told}. It cannot move to others: give the same, or train a prompt.")
    differ = differences(extra.get("settings", {}), run)
    counts = {}
    for name, pair in differ.items():
        # a schedule ends with the epochs that it was made for
        grown = grew(name, *pair) and not (trainer.sched and name == "OPTIM.MAX_EPOCH")
        barred = not grown and not name.startswith(NOT_TRAINING)
        if barred if resumed else name in keys and keys[name].inferred_with:
            counts[name] = pair
    told = f"{path} was made with other settings ({as_text(counts)})"
    if counts and (resumed or getattr(head, "class_bound", False)):
        cure = "Give the same, or train in another --output-dir"
        raise BlackBoxError(f"{told}. {cure}: only budgets may grow, not the epochs of a schedule.")
    if counts:
        print(f"Note: {told}, which evaluation reads")
    try:
        trainer.learner.load_state_dict(state["state_dict"])
    except RuntimeError as e:
        own = as_text({name: pair for name, pair in differ.items() if name.startswith("TRAINER.")})
        told = f"{path} has a prompt or a head of another size: {own or str(e).splitlines()[-1]}"
        raise BlackBoxError(f"{told}. Give the same settings as in training.") from e
    return state


class Calibrated:
    """An evaluator around Dassl's, which also tells how far probabilities are to be believed.

    In per cent: `ece`, the expected calibration error over bins of equal width (Guo et al., 2017,
    https://arxiv.org/abs/1706.04599), `coverage_90` and `coverage_95`, the most images that can be
    labelled with that precision. `reliability`: images, mean confidence, accuracy of each bin.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.results = inner, dict[str, Any]()

    def reset(self) -> None:
        self.told: list[torch.Tensor] = []
        self.inner.reset()

    def process(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        sure, label = logits.double().softmax(1).max(1)
        self.told.append(torch.stack([torch.ones_like(sure), sure, label == labels]).cpu())
        self.inner.process(logits, labels)

    def evaluate(self) -> dict[str, float]:
        told, found = torch.cat(self.told, dim=1), self.inner.evaluate()
        places = (told[1] * BINS).long().clamp(max=BINS - 1)
        sums = told.new_zeros(3, BINS).index_add_(1, places, told)
        count, sure, right = sums[:, sums[0] > 0]
        found["ece"] = 100 * ((sure - right).abs().sum() / told.shape[1]).item()
        number, surest = told[0].cumsum(0), told[1].argsort(descending=True)
        precise = 100 * told[2, surest].cumsum(0) / number
        for least in (90, 95):
            most = (number * (precise >= least)).max().item()
            found[f"coverage_{least}"] = 100 * most / told.shape[1]
        print(f"* expected calibration error: {found['ece']:.1f}%")
        bins = torch.stack([count, sure / count, right / count], dim=1)
        self.results = {**found, "reliability": bins.tolist()}
        return found


def write(trainer: Any, before: Counts) -> None:
    """Put an evaluation that has just ended into `metrics.json`; what was asked `before` it."""
    cfg, dataset, loaded = trainer.cfg, trainer.dm.dataset, trainer.loaded_from
    path, kept = Path(trainer.output_dir, NAME), {}
    with suppress(BlackBoxError):
        kept = read(path)
    images = len(dataset.val if cfg.TEST.SPLIT == "val" else dataset.test)
    batches = batches_of(images, cfg.DATALOADER.TEST.BATCH_SIZE)
    queries = steps = ended_by = seconds = None
    if trainer.counted:
        queries = {**trainer.oracle.counts, "lost": trainer.oracle.lost}
        # of this evaluation alone
        queries["test"] = {unit: n - before[unit] for unit, n in queries["evaluation"].items()}
        if loaded and trainer.stage == EVALUATION:
            queries["training"] = larger(queries["training"], loaded["counts"]["training"])
    if trainer.stage == END_OF_TRAINING:
        steps = trainer.steps_done
        inside = trainer.epoch_rng is not None and trainer.start_epoch < trainer.max_epoch
        if trainer.plan.steps:
            ended_by = "budget" if inside else "epochs"
        if trainer.time_meter.count == steps:  # else an earlier process made some
            seconds = time.time() - trainer.time_start
    data, backbone = cfg.DATASET, cfg.MODEL.BACKBONE.NAME
    kept[trainer.stage] = {
        "version": getattr(sys.modules.get("dassl_blackbox"), "__version__", None),
        **{"trainer": cfg.TRAINER.NAME, "access": list(trainer.needs), "backbone": backbone},
        **{"dataset": data.NAME, "classes": data.SUBSAMPLE_CLASSES, "shots": data.NUM_SHOTS},
        "root": os.path.abspath(os.path.expanduser(data.ROOT)),
        # of the training, whose settings version 0.1.0 did not tell
        "seed": int(loaded.get("settings", {}).get("SEED", -1)) if loaded else cfg.SEED,
        **{"split": cfg.TEST.SPLIT, "images": images, "classnames": dataset.classnames},
        "batches": sum(query_cost(1, size)[0] for size in batches),  # queries of a candidate
        **trainer.calibrated.results,
        **{"queries": queries, "steps": steps, "ended_by": ended_by, "seconds": seconds},
        "settings": trainer.made_with,  # as `--skip-done` compares them
    }
    write_atomically(path, json.dumps(kept, indent=1).encode())


def lost_much(bill: Any) -> bool:
    """Whether more than a tenth of a run's training queries trained nothing."""
    return bool(bill) and 10 * bill.get("lost", {}).get("queries", 0) > bill["training"]["queries"]


def read(path: str | Path) -> dict[str, dict[str, Any]]:
    """The sections of a `metrics.json`, none without it; what they hold is not checked."""
    cure = "Remove it, and the same command evaluates the run anew."
    if not os.path.lexists(path):
        return {}
    try:
        content = json.loads(read_text(path, cure))
        return {name: dict(section) for name, section in content.items()}
    except (AttributeError, TypeError, ValueError, RecursionError) as e:
        raise BlackBoxError(f"{path} is damaged ({first_line(e)}). {cure}") from e
