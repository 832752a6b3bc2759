"""The log of a run, and what can be read from it afterwards."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

END_OF_TRAINING, RESULT = "Finish training", "=> result"
LIFE = "** Arguments **"  # every process that writes into a log begins with it
EVALUATION = "\neval_only: True\n"


class RunLog:
    """Copies stdout into `<output>/log.txt`, from the start of the process on.

    The file is opened late, when the run is known to be sound, so that a bad input leaves nothing behind. It is appended to: a resumed run has
    one log (Dassl's own logger would begin `log.txt-<date>`, which `parse_test_res.py` never sees).
    """

    def __init__(self):
        self.console, self.file, self.held = sys.stdout, None, []

    def open(self, output):
        path = Path(output) / "log.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "a", encoding="utf-8")
        self.file.write("".join(self.held))
        self.held.clear()

    def write(self, text):
        self.console.write(text)
        self.note(text, end="")

    def note(self, text, end="\n"):
        """Into the log alone."""
        if self.file is None:
            self.held.append(text + end)
        else:
            self.file.write(text + end)
            self.file.flush()

    def flush(self):
        self.console.flush()

    def isatty(self):
        return self.console.isatty()

    def __enter__(self):
        sys.stdout = self
        return self

    def __exit__(self, *_):
        sys.stdout = self.console
        if self.file is not None:
            self.file.close()


@dataclass
class Run:
    """What a finished run left: accuracies in per cent, counts as in `queries.json`, seconds of training and evaluation."""

    folder: Path
    trainer: str
    metrics: dict
    counts: dict | None
    seconds: float | None
    dataset: str = (
        "?"  # registry name; this and the rest are of the resolved configuration beside the log
    )
    shots: int | None = None
    backbone: str = "?"
    classes: str = "all"  # or base, or new


def is_finished(folder):
    """Whether the folder holds a run that ended with a result."""
    log = Path(folder) / "log.txt"
    return log.is_file() and bool(read_metrics(log, END_OF_TRAINING))


def is_evaluated(folder, header, model_dir):
    """Whether the folder's log ends with the result of an evaluation with this header, and the model is not newer than that."""
    log, models = Path(folder) / "log.txt", Path(model_dir).glob("*/*") if model_dir else ()
    if not log.is_file() or any(path.stat().st_mtime > log.stat().st_mtime for path in models):
        return False
    last = log.read_text(encoding="utf-8").rpartition(LIFE)[2]
    return last.startswith(header.partition(LIFE)[2]) and bool(read_metrics(log, RESULT))


def read_metrics(log, end_signal=END_OF_TRAINING):
    """The last `* name: x%` of each name after the line `end_signal`, as CoOp's parser reads them.

    Only the last life of a run counts: one that was continued and crashed has no result, whatever its first life ended with.
    """
    metrics, ready = {}, False
    lives = Path(log).read_text(encoding="utf-8").split(LIFE)
    if (
        end_signal == END_OF_TRAINING
    ):  # an evaluation afterwards leaves the training's result standing
        lives = [life for life in lives if EVALUATION not in life] or [""]
    for line in lives[-1].splitlines():
        line = line.strip()
        ready = ready or line == end_signal
        match = re.match(r"\* ([\w ]+): ([\d.eE+-]+)%", line)
        if ready and match:
            metrics[match.group(1)] = float(match.group(2))
    return metrics


def read_run(folder, end_signal=END_OF_TRAINING):
    """A finished run, or None where the folder holds none."""
    folder = Path(folder)
    log, bill, config = folder / "log.txt", folder / "queries.json", folder / "config.yaml"
    metrics = read_metrics(log, end_signal) if log.is_file() else {}
    if not metrics:
        return None
    text = log.read_text(encoding="utf-8")
    trainer = re.findall(r"^Loading trainer: (\w+)", text, re.M)
    # every life of a resumed run reports its own time
    elapsed = [
        sum(int(part) * scale for part, scale in zip(t.split(":"), (3600, 60, 1)))
        for t in re.findall(r"^Elapsed: (\d+:\d+:\d+)", text, re.M)
    ]
    # a white-box run asks no queries, and its table shows a dash rather than 0
    counts = json.loads(bill.read_text(encoding="utf-8")) if bill.is_file() else None
    cfg = (
        yaml.safe_load(config.read_text(encoding="utf-8"))
        if config.is_file()
        else {"DATASET": {}, "MODEL": {"BACKBONE": {}}}
    )
    dataset = cfg["DATASET"]
    return Run(
        folder,
        trainer[-1] if trainer else "?",
        metrics,
        counts,
        float(sum(elapsed)) if elapsed else None,
        dataset.get("NAME", "?"),
        dataset.get("NUM_SHOTS"),
        cfg["MODEL"]["BACKBONE"].get("NAME", "?"),
        dataset.get("SUBSAMPLE_CLASSES", "all"),
    )


def read_result(folder):
    """A finished training run, or else a finished evaluation; what an unfinished run saw on val is no result."""
    log = Path(folder) / "log.txt"
    evaluated = log.is_file() and EVALUATION in log.read_text(encoding="utf-8").rpartition(LIFE)[2]
    return read_run(folder) or (read_run(folder, RESULT) if evaluated else None)
