"""What can be read from the folder of a run afterwards.

`metrics.json` has all of it. Where there is none (runs of version 0.1.0, and CoOp's own) the text
log, the bill and the configuration stand in.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .console import note
from .textlog import (
    END_OF_TRAINING,
    RESULT,
    ends_with_evaluation,
    read_log,
    read_metrics,
    seconds_in,
    seed_in,
    trainer_in,
)
from .trainers.blackbox import record as stored
from .trainers.blackbox.config import read_yaml
from .trainers.blackbox.errors import BlackBoxError, first_line, printable
from .trainers.blackbox.files import MODEL, read_text
from .trainers.blackbox.oracle.bill import LOST, PURPOSES, UNITS, Counts, counts_in

OWN_PICTURES = "ImageFolder"  # the data set whose name does not tell what it is
LEFT_OUT, UNCOUNTED = "The run is left out.", "Its queries are shown as '?'."
# from the least that must cross the wall to the most: what is needed beside words and pictures
ACCESS = {
    "logits": "words",
    "contexts": "contexts",
    "image_tokens": "image tokens",
    "features": "features",
    "weights": "weights",
}
METRICS = "accuracy", "error_rate", "macro_f1"
T = TypeVar("T")
D = TypeVar("D")


@dataclass
class Run:
    """What a finished run left.

    Attributes:
        metrics: accuracies and the like, per cent; from a log, as they are printed there.
        counts: `training`, `evaluation` and `lost`, as in `queries.json`; None: there are none.
        seconds: of training and evaluation; None: not known.
        registered: name of the data set in the registry.
        root: folder of the data; empty: not known.
        uncounted: what stands in a table where there are no counts.
        access: the most demanding of what the method needs, of `ACCESS`.
        test_queries: of the test, a batch of at most 128 images; None: not known.
        split: of the evaluation.
        seed: of the run, or of the training whose model was evaluated; None: not known, or none.
    """

    folder: Path
    trainer: str
    metrics: dict[str, float]
    counts: dict[str, Counts] | None
    seconds: float | None
    registered: str = "?"
    shots: int | None = None
    backbone: str = "?"
    classes: str = "all"  # or base, or new
    uncounted: str = "–"
    access: str = "?"
    test_queries: float | None = None
    split: str = "?"  # test, or val
    root: str = ""
    seed: int | None = None

    @property
    def seed_name(self) -> str:
        """The name that the folder should have: by its seed, or, where that is not known, as is."""
        return self.folder.name if self.seed is None else f"seed{self.seed}"

    @property
    def dataset(self) -> str:
        """The data set's name, which tells two folders of one's own pictures apart."""
        own = self.registered == OWN_PICTURES and self.root
        return f"{self.registered} ({self.root})" if own else self.registered

    @property
    def lost_much(self) -> bool:
        """Whether more than a tenth of the training queries trained nothing."""
        if self.counts is None:
            return False
        return 10 * self.counts[LOST]["queries"] > self.counts["training"]["queries"]


def once(runs: list[Run]) -> list[Run]:
    """Every seed once: a folder may be a copy, or have been made with another's seed; a note."""
    taken: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.folder.name != run.seed_name):
        first = taken.setdefault(run.seed_name, run)
        if first is not run:
            note(f"{run.folder} is of seed {run.seed}, as {first.folder} is, and is left out.")
        elif run.folder.name != run.seed_name and re.fullmatch(r"seed\d+", run.folder.name):
            note(f"{run.folder} is of seed {run.seed}, and counts as that.")
    return [run for run in runs if taken[run.seed_name] is run]


def is_finished(folder: str | Path) -> bool:
    """Whether the folder holds a run that ended with a result.

    Raises:
        BlackBoxError: there is no result in `metrics.json`, and the log is damaged.
    """
    return stored.END_OF_TRAINING in read_stored(folder) or bool(read_metrics(folder))


def read_result(folder: str | Path) -> Run | None:
    """A finished training run, or else a finished evaluation; None where the folder holds neither.

    What an unfinished run saw on val is no result, nor is an evaluation of it in its own folder.
    What is damaged is noted on stderr.

    Raises:
        BlackBoxError: there is no result in `metrics.json`, and the log is damaged.
    """
    runs = read_stored(folder)
    trained = runs.get(stored.END_OF_TRAINING) or read_run(folder)
    if trained:
        return trained
    if (Path(folder) / MODEL).is_dir():  # training that is not finished
        return None
    if stored.EVALUATION in runs:
        return runs[stored.EVALUATION]
    evaluated = ends_with_evaluation(read_log(folder, LEFT_OUT))
    return read_run(folder, RESULT) if evaluated else None


def read_stored(folder: str | Path) -> dict[str, Run]:
    """The results in a folder's `metrics.json`, by section; where it is damaged, that is noted."""
    path = Path(folder) / stored.NAME
    if not os.path.lexists(path):
        return {}
    try:
        sections, runs = stored.read(path), {}
        for name in (stored.END_OF_TRAINING, stored.EVALUATION):
            if name in sections:
                try:
                    runs[name] = run_of(Path(folder), sections[name])
                except BlackBoxError as e:
                    raise BlackBoxError(
                        f"{path} is damaged: in '{name}', {e}. The log is read in its place."
                    ) from e
    except BlackBoxError as e:
        note(str(e))
        return {}
    return runs


def run_of(folder: Path, section: dict[str, Any]) -> Run:
    """The run that a section of `metrics.json` tells of.

    Raises:
        BlackBoxError: a number in it cannot be; the text is a clause.
    """
    metrics = {name: section[name] for name in METRICS if name in section}
    for name, value in metrics.items():
        if type(value) not in (int, float) or not 0 <= value <= 100:
            raise BlackBoxError(f"{name} is no percentage")
    if "accuracy" not in metrics:
        raise BlackBoxError("there is no accuracy")
    counts, test_queries = None, None
    if section.get("queries") is not None:
        counts = counts_of(section["queries"])
        asked, once = counts_in(section["queries"], "test"), found(section, int, 0, "batches")
        test_queries = asked["queries"] / once if once > 0 else None
    needs, shots = found(section, list, ["?"], "access"), found(section, int, 0, "shots")
    seed = found(section, int, -1, "seed")
    return Run(
        folder,
        found(section, str, "?", "trainer"),
        metrics,
        counts,
        found(section, float, None, "seconds"),
        found(section, str, "?", "dataset"),
        shots if shots > 0 else None,
        found(section, str, "?", "backbone"),
        found(section, str, "all", "classes"),
        access=access_of(needs),
        test_queries=test_queries,
        split=found(section, str, "?", "split"),
        root=found(section, str, "", "root"),
        seed=seed if seed >= 0 else None,
    )


def access_of(needs: list[str]) -> str:
    """The most demanding of what a method needs; "?" where one of them is not known here."""
    order = list(ACCESS)
    if not all(need in order for need in needs):
        return "?"
    return ACCESS[max(needs, key=order.index, default="logits")]


def counts_of(bill: Any) -> dict[str, Counts]:
    """The counts in a bill: `training`, `evaluation` and `lost`, which may be left out.

    Raises:
        BlackBoxError: it is no bill; the text is a clause.
    """
    counts = {purpose: counts_in(bill, purpose) for purpose in PURPOSES}
    counts[LOST] = counts_in(bill, LOST) if LOST in bill else dict.fromkeys(UNITS, 0)
    if any(counts[LOST][unit] > counts["training"][unit] for unit in UNITS):
        raise BlackBoxError("more queries are lost than were asked")
    return counts


def found(content: dict, kind: type[T], default: D, *keys: str) -> T | D:
    """The value below these keys of nested dictionaries, or the default for one of another kind.

    A text is as it can be printed.
    """
    value: object = content
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, str):
        value = printable(value)
    return value if type(value) is kind else default


# What stands in where there is no `metrics.json`


def read_run(folder: str | Path, end_signal: str = END_OF_TRAINING) -> Run | None:
    """A finished run as its text log tells it, or None where the folder holds none.

    What is damaged beside the log is noted on stderr, and not used.

    Raises:
        BlackBoxError: the log is damaged.
    """
    folder = Path(folder)
    text, metrics = read_log(folder, LEFT_OUT), read_metrics(folder, end_signal, LEFT_OUT)
    if not metrics:
        return None
    # a white-box run asks no queries, and its table shows a dash rather than 0
    counts, config, uncounted = None, {}, "–"
    try:
        if os.path.lexists(folder / "queries.json"):
            uncounted = "?"
            counts = read_bill(folder / "queries.json")
    except BlackBoxError as e:
        note(str(e))
    try:
        if os.path.lexists(folder / "config.yaml"):
            config = read_yaml(folder / "config.yaml", "Its data set and method are not known.")
    except BlackBoxError as e:
        note(str(e))
    shots, seed = found(config, int, 0, "DATASET", "NUM_SHOTS"), -1
    if end_signal == END_OF_TRAINING or not ends_with_evaluation(text):  # whose seed draws nothing
        seed = found(config, int, seed_in(text), "SEED")
    return Run(
        folder,
        # CoOp's logs stand beside no configuration
        found(config, str, "", "TRAINER", "NAME") or trainer_in(text) or "?",
        metrics,
        counts,
        seconds_in(text),
        found(config, str, "?", "DATASET", "NAME"),
        shots if shots > 0 else None,
        found(config, str, "?", "MODEL", "BACKBONE", "NAME"),
        found(config, str, "all", "DATASET", "SUBSAMPLE_CLASSES"),
        uncounted,
        root=found(config, str, "", "DATASET", "ROOT"),
        seed=seed if seed >= 0 else None,
    )


def read_bill(path: Path) -> dict[str, Counts]:
    """The counts in a `queries.json`.

    Raises:
        BlackBoxError: it cannot be read, or is no bill.
    """
    text = read_text(path, UNCOUNTED)
    try:
        return counts_of(json.loads(text))
    except (BlackBoxError, ValueError, RecursionError) as e:
        raise BlackBoxError(f"{path} is no bill ({first_line(e)}). {UNCOUNTED}") from e
