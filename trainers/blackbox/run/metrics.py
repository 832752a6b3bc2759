"""The result of a run as data: `metrics.json` in its output folder.

A section for each kind of evaluation, `end_of_training` and `evaluation` (`--eval-only`), the last
of its kind. Its keys are those of `entry`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BlackBoxError, first_line
from ..files import read_text, write_atomically
from ..oracle.bill import Counts, batches_of, query_cost

if TYPE_CHECKING:
    from .trainer import ResumableTrainer

NAME = "metrics.json"
END_OF_TRAINING, EVALUATION = "end_of_training", "evaluation"
TEST = "test"  # the section of the queries that this evaluation asked


class Kept:
    """An evaluator of Dassl's whose results can be read after its `evaluate`.

    Dassl's `test` prints them and returns the first.

    Attributes:
        results: of the last evaluation, by name; Dassl's classification has `accuracy`,
            `error_rate` and `macro_f1`, per cent.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.results: Mapping[str, float] = {}

    def evaluate(self) -> Mapping[str, float]:
        self.results = self.inner.evaluate()
        return self.results

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def bill(trainer: ResumableTrainer) -> dict[str, Counts] | None:
    """`training`, `evaluation` and `lost`, as in `queries.json`; None where none is counted."""
    oracle = getattr(trainer, "oracle", None)
    return {**oracle.counts, "lost": oracle.lost} if oracle else None


def access(trainer: ResumableTrainer) -> list[str]:
    """The grants that the trainer cannot do without; "weights" for one that has the model."""
    return list(getattr(trainer, "needs", ["weights"]))


def ended_by(trainer: ResumableTrainer) -> str | None:
    """What ended training: "budget" or "epochs"; None where there was nothing to train."""
    if not trainer.steps_total():
        return None
    inside = trainer.epoch_rng is not None and trainer.start_epoch < trainer.max_epoch
    return "budget" if inside else "epochs"


def seconds(trainer: ResumableTrainer) -> float | None:
    """Of training and its evaluation; None for a resumed run, whose earlier time is not known."""
    here = trainer.time_meter.count if trainer.steps_done else 0  # steps that this process made
    return time.time() - trainer.time_start if here == trainer.steps_done else None


def entry(
    trainer: ResumableTrainer, trained: bool, before: dict[str, Counts] | None
) -> dict[str, Any]:
    """What is told of an evaluation that has just ended.

    Args:
        trained: whether it ended the training of this process; if not, `steps`, `ended_by` and
            `seconds` are not known, and None.
        before: the bill at its beginning.
    """
    cfg, dataset, queries = trainer.cfg, trainer.dm.dataset, bill(trainer)
    on_val = cfg.TEST.SPLIT == "val" and trainer.val_loader is not None
    images = len(dataset.val if on_val else dataset.test)
    if queries and before:
        asked = queries["evaluation"]
        queries[TEST] = {unit: asked[unit] - before["evaluation"][unit] for unit in asked}
    if queries and not trained and trainer.loaded_counts:
        known = queries["training"], trainer.loaded_counts["training"]
        queries["training"] = max(known, key=lambda counts: counts["queries"])
    return {
        "version": getattr(sys.modules.get("dassl_blackbox"), "__version__", None),
        "trainer": cfg.TRAINER.NAME,
        "access": access(trainer),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "dataset": cfg.DATASET.NAME,
        "root": os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)),
        "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED if trainer.loaded_seed is None else trainer.loaded_seed,
        "split": "val" if on_val else "test",
        "images": images,
        # what one candidate on all of them costs, in queries
        "batches": sum(
            query_cost(1, size)[0] for size in batches_of(images, cfg.DATALOADER.TEST.BATCH_SIZE)
        ),
        **{name: float(value) for name, value in trainer.evaluator.results.items()},
        "queries": queries,
        "steps": trainer.steps_done if trained else None,
        "ended_by": ended_by(trainer) if trained else None,
        "seconds": seconds(trainer) if trained else None,
    }


def write(trainer: ResumableTrainer, trained: bool, before: dict[str, Counts] | None) -> None:
    """Put an evaluation that has just ended into `metrics.json`.

    Where that cannot be written, a line says so, and no former result is left in its place.
    """
    if not trainer.output_dir:
        return
    path, kept = Path(trainer.output_dir) / NAME, {}
    with contextlib.suppress(BlackBoxError):
        kept = read(path) if path.exists() else {}
    section = END_OF_TRAINING if trained else EVALUATION
    try:
        content = {**kept, section: entry(trainer, trained, before)}
        write_atomically(path, json.dumps(content, indent=1).encode())
    except BlackBoxError as e:
        with contextlib.suppress(OSError):
            path.unlink()
        reason = first_line(e.__cause__ or e)
        print(f"Note: {path} could not be written ({reason}); the result is in the log")


def read(path: str | Path) -> dict[str, dict[str, Any]]:
    """The sections of a `metrics.json`; what they hold is not checked.

    Raises:
        BlackBoxError: the file cannot be read, or is no mapping of sections.
    """
    cure = "The log is read in its place."
    text = read_text(path, cure)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BlackBoxError(f"{path} is not JSON ({first_line(e)}). {cure}") from e
    if not isinstance(content, dict) or not all(isinstance(s, dict) for s in content.values()):
        raise BlackBoxError(f"{path} is damaged: sections of keys are expected. {cure}")
    return content


def forget(folder: str | Path) -> None:
    """Remove the result of a run that goes on.

    Raises:
        BlackBoxError: it cannot be removed.
    """
    path = Path(folder) / NAME
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise BlackBoxError(
            f"{path} cannot be removed ({first_line(e)}). Remove it, or choose another "
            f"--output-dir."
        ) from e
