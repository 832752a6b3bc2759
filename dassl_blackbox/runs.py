"""What can be read from the folder of a run afterwards."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TypeVar

from .console import note
from .trainers.blackbox.oracle.meter import LOST, PURPOSES, UNITS, counts_in
from .trainers.blackbox.run.errors import BlackBoxError, first_line
from .trainers.blackbox.run.files import read_text
from .trainers.blackbox.run.reading import read_yaml

END_OF_TRAINING, RESULT = "Finish training", "=> result"
LIFE = "** Arguments **"  # every process that writes into a log begins with it
EVALUATION = "\neval_only: True\n"
ELAPSED = r"^Elapsed: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)$"
ELSEWHERE = "Choose another --output-dir, or move that run away."
LEFT_OUT, UNCOUNTED = "The run is left out.", "Its queries are shown as '?'."
T = TypeVar("T")


@dataclass
class Run:
    """What a finished run left.

    Attributes:
        metrics: accuracies and the like, per cent.
        counts: `training`, `evaluation` and `lost`, as in `queries.json`; None: there are none.
        seconds: of training and evaluation.
        dataset: registry name; this and the rest are of the configuration beside the log.
        uncounted: what stands in a table where there are no counts.
    """

    folder: Path
    trainer: str
    metrics: dict[str, float]
    counts: dict[str, dict[str, int]] | None
    seconds: float | None
    dataset: str = "?"
    shots: int | None = None
    backbone: str = "?"
    classes: str = "all"  # or base, or new
    uncounted: str = "–"

    @property
    def lost_much(self) -> bool:
        """Whether more than a tenth of the training queries trained nothing."""
        if self.counts is None:
            return False
        return 10 * self.counts["lost"]["queries"] > self.counts["training"]["queries"]


def is_finished(folder: str | Path) -> bool:
    """Whether the folder holds a run that ended with a result."""
    return bool(read_metrics(folder))


def is_evaluated(folder: str | Path, header: str, model_dir: str) -> bool:
    """Whether the log ends with the result of this evaluation, and the model is not newer."""
    models = Path(model_dir).glob("*/*") if model_dir else ()
    text = read_log(folder)
    if not text or any(changed(path) > changed(Path(folder) / "log.txt") for path in models):
        return False
    last = text.rpartition(LIFE)[2]
    return last.startswith(header.partition(LIFE)[2]) and bool(read_metrics(folder, RESULT))


def changed(path: Path) -> float:
    """When a file was changed, in seconds; a link without an end is newer than anything."""
    try:
        return path.stat().st_mtime
    except OSError:
        return inf


def read_log(folder: str | Path, cure: str = ELSEWHERE) -> str:
    """The text of a folder's log; empty where it has none.

    Raises:
        BlackBoxError: it cannot be read; ends with `cure`.
    """
    log = Path(folder) / "log.txt"
    return read_text(log, cure) if os.path.lexists(log) else ""


def read_metrics(
    folder: str | Path, end_signal: str = END_OF_TRAINING, cure: str = ELSEWHERE
) -> dict[str, float]:
    """The last `* name: x%` of each name after the line `end_signal`, as CoOp's parser reads them.

    Only the last life of a run counts: one that was continued and crashed has no result, whatever
    its first life ended with.

    Raises:
        BlackBoxError: the log cannot be read, or has a value that is no percentage.
    """
    metrics, ready = {}, False
    lives = read_log(folder, cure).split(LIFE)
    if end_signal == END_OF_TRAINING:  # an evaluation afterwards leaves its result standing
        lives = [life for life in lives if EVALUATION not in life] or [""]
    for line in lives[-1].splitlines():
        line = line.strip()
        ready = ready or line == end_signal
        match = re.match(r"\* ([\w ]+): ([\d.eE+-]+)%", line)
        if ready and match:
            try:
                metrics[match.group(1)] = float(match.group(2))
            except ValueError:
                metrics[match.group(1)] = inf
    for name, value in metrics.items():
        if not 0 <= value <= 100:
            raise BlackBoxError(
                f"{Path(folder) / 'log.txt'} is damaged: its last {name} is no percentage. {cure}"
            )
    return metrics


def read_bill(path: Path) -> dict[str, dict[str, int]]:
    """The counts in a `queries.json`: `training`, `evaluation` and `lost`, which may be left out.

    Raises:
        BlackBoxError: it cannot be read, or is no bill.
    """
    text = read_text(path, UNCOUNTED)
    try:
        bill = json.loads(text)
        counts = {purpose: counts_in(bill, purpose) for purpose in PURPOSES}
        counts[LOST] = counts_in(bill, LOST) if LOST in bill else dict.fromkeys(UNITS, 0)
        if any(counts[LOST][unit] > counts["training"][unit] for unit in UNITS):
            raise BlackBoxError("more queries are lost than were asked")
    except (ValueError, RecursionError) as e:
        raise BlackBoxError(f"{path} is no bill ({first_line(e)}). {UNCOUNTED}") from e
    return counts


def found(content: dict, kind: type[T], default: T, *keys: str) -> T:
    """The value below these keys of nested dictionaries, or the default for one of another kind."""
    value: object = content
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if type(value) is kind else default


def read_run(folder: str | Path, end_signal: str = END_OF_TRAINING) -> Run | None:
    """A finished run, or None where the folder holds none.

    What is damaged beside its log is noted on stderr, and not used.

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
    # with VERBOSE False a log does not name it, and CoOp's logs stand beside no configuration
    named = re.findall(r"^Loading trainer: (\w+)", text, re.M)
    # every life of a resumed run reports its own time
    elapsed = [
        86400 * int(days or 0) + 3600 * int(hours) + 60 * int(minutes) + int(seconds)
        for days, hours, minutes, seconds in re.findall(ELAPSED, text, re.M)
    ]
    shots = found(config, int, 0, "DATASET", "NUM_SHOTS")
    return Run(
        folder,
        found(config, str, "", "TRAINER", "NAME") or (named[-1] if named else "?"),
        metrics,
        counts,
        float(sum(elapsed)) if elapsed else None,
        found(config, str, "?", "DATASET", "NAME"),
        shots if shots > 0 else None,
        found(config, str, "?", "MODEL", "BACKBONE", "NAME"),
        found(config, str, "all", "DATASET", "SUBSAMPLE_CLASSES"),
        uncounted,
    )


def read_result(folder: str | Path) -> Run | None:
    """A finished training run, or else a finished evaluation.

    What an unfinished run saw on val is no result.

    Raises:
        BlackBoxError: the log is damaged.
    """
    evaluated = EVALUATION in read_log(folder, LEFT_OUT).rpartition(LIFE)[2]
    return read_run(folder) or (read_run(folder, RESULT) if evaluated else None)
