"""The result of a run as data: `metrics.json` in its output folder.

A section for each kind of evaluation, the last of its kind; its keys are those of `entry`.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import BlackBoxError, first_line
from ..files import read_text, write_atomically
from ..oracle.bill import Counts, batches_of, larger, query_cost

NAME = "metrics.json"
END_OF_TRAINING, EVALUATION = "end_of_training", "evaluation"
TEST = "test"  # the section of the queries that this evaluation asked


def entry(trainer: Any, before: dict[str, Counts] | None) -> dict[str, Any]:
    """What is told of an evaluation that has just ended; `before`: the counts at its beginning."""
    cfg, dataset, loaded = trainer.cfg, trainer.dm.dataset, trainer.loaded_from
    on_val = cfg.TEST.SPLIT == "val" and trainer.val_loader is not None
    images = len(dataset.val if on_val else dataset.test)
    batches = batches_of(images, cfg.DATALOADER.TEST.BATCH_SIZE)
    queries = steps = ended_by = seconds = None
    if before:
        queries = {**trainer.counts(), "lost": trainer.oracle.lost}
        asked, earlier = queries["evaluation"], before["evaluation"]
        queries[TEST] = {unit: asked[unit] - earlier[unit] for unit in asked}
        if loaded and trainer.stage == EVALUATION:
            queries["training"] = larger(queries["training"], loaded["counts"]["training"])
    if trainer.stage == END_OF_TRAINING:
        steps = trainer.steps_done
        inside = trainer.epoch_rng is not None and trainer.start_epoch < trainer.max_epoch
        if trainer.steps_total():
            ended_by = "budget" if inside else "epochs"
        if trainer.time_meter.count == steps:  # else an earlier process made some
            seconds = time.time() - trainer.time_start
    return {
        "version": getattr(sys.modules.get("dassl_blackbox"), "__version__", None),
        "trainer": cfg.TRAINER.NAME,
        "access": list(getattr(trainer, "needs", ["weights"])),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "dataset": cfg.DATASET.NAME,
        "root": os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)),
        "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        "shots": cfg.DATASET.NUM_SHOTS,
        # of the training, whose settings version 0.1.0 did not tell
        "seed": int(loaded.get("settings", {}).get("SEED", -1)) if loaded else cfg.SEED,
        "split": "val" if on_val else "test",
        "images": images,
        # what one candidate on all of them costs, in queries
        "batches": sum(query_cost(1, size)[0] for size in batches),
        **trainer.results,
        "queries": queries,
        "steps": steps,
        "ended_by": ended_by,
        "seconds": seconds,
        # what it was asked to do, as `--skip-done` compares it
        "settings": getattr(trainer, "run_settings", None) or getattr(trainer, "request", None),
    }


def write(trainer: Any, before: dict[str, Counts] | None) -> None:
    """Put an evaluation that has just ended into `metrics.json`; or else no former one is left."""
    path, kept = Path(trainer.output_dir, NAME), {}
    with suppress(BlackBoxError):
        kept = read(path)
    kept[trainer.stage] = entry(trainer, before)
    try:
        write_atomically(path, json.dumps(kept, indent=1).encode())
    except BlackBoxError as e:
        with suppress(OSError):
            path.unlink()
        reason = first_line(e.__cause__ or e)
        print(f"Note: {path} could not be written ({reason}); the result is in the log")


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
