"""What can be read from the text log of a run: CoOp's form, which every version writes."""

from __future__ import annotations

import os
import re
from math import inf
from pathlib import Path

from .trainers.blackbox.errors import BlackBoxError
from .trainers.blackbox.files import read_text

END_OF_TRAINING, RESULT = "Finish training", "=> result"
LIFE = "** Arguments **"  # every process that writes into a log begins with it
EVALUATION = "\neval_only: True\n"
ELAPSED = r"^Elapsed: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)$"
ELSEWHERE = "Choose another --output-dir, or move that run away."


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


def trainer_in(text: str) -> str | None:
    """The trainer that a log names; with VERBOSE False it names none."""
    named = re.findall(r"^Loading trainer: (\w+)", text, re.M)
    return named[-1] if named else None


def seed_in(text: str) -> int:
    """The seed that the last process was given, as its log tells; -1: none."""
    given = re.findall(r"^seed: (-?\d+)$", text, re.M)
    return int(given[-1]) if given else -1


def seconds_in(text: str) -> float | None:
    """The time that a log tells; every life of a run that ended with a result tells its own."""
    elapsed = [
        86400 * int(days or 0) + 3600 * int(hours) + 60 * int(minutes) + int(seconds)
        for days, hours, minutes, seconds in re.findall(ELAPSED, text, re.M)
    ]
    return float(sum(elapsed)) if elapsed else None


def ends_with_evaluation(text: str) -> bool:
    """Whether the last process that wrote into a log was an evaluation."""
    return EVALUATION in text.rpartition(LIFE)[2]


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
