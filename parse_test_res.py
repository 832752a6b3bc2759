"""Test results of several seeds, read from their logs, as CoOp's script of this name reads them:

    python parse_test_res.py output/caltech101/ZIP/vit_b16_16shots
    python parse_test_res.py output/caltech101/ZIP --multi-exp

Logs are <directory>/seed<k>/log.txt, or with --multi-exp one level of folders further down. Each
run is listed with its queries; the summary has mean and standard deviation as in CoOp (`--ci95`: an
interval), and mean and standard error (ddof 1).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import NamedTuple

from dassl_blackbox.console import note, parser_of, tool
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, printable
from dassl_blackbox.trainers.blackbox.files import read_text

END_OF_TRAINING, RESULT = "Finish training", "=> result"
LIFE = "** Arguments **"  # every process that writes into a log begins with it
EVALUATION = "\neval_only: True\n"


class Result(NamedTuple):
    """What the log of a run that ended tells."""

    folder: Path
    value: float
    queries: str
    seed: str  # the name that the folder should have


def read_result(folder: Path, keyword: str, end_signal: str) -> Result | None:
    """The last `* keyword: x%` after the line `end_signal`, None where there is none.

    Only the last process counts: a run that was continued and crashed has no result, whatever its
    first process ended with. An evaluation afterwards leaves the result of training standing.

    Raises:
        BlackBoxError: the log cannot be read, or has a value that is no percentage.
    """
    lives = read_text(folder / "log.txt", "It is left out.").split(LIFE)
    if end_signal == END_OF_TRAINING:
        lives = [life for life in lives if EVALUATION not in life]
    life = lives[-1] if lives else ""
    rest = re.split(rf"^\s*{end_signal}\s*$", life, maxsplit=1, flags=re.M)[-1]
    values = re.findall(rf"^\s*\* {re.escape(keyword)}: ([\d.eE+-]+)%", rest, re.M)
    if rest == life or not values:
        return None
    number = re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d+)?", values[-1], re.I)
    value = float(values[-1]) if number else inf
    if not 0 <= value <= 100:
        raise BlackBoxError(f"{folder}/log.txt is damaged: its last {keyword} is no percentage.")
    found = re.findall(r"^\* (training|lost) queries: ([\d,]+)", rest, re.M)
    counts = {name: int(count.replace(",", "")) for name, count in found}
    queries = f"{counts['training']:,}" if counts else "–"
    if lost := counts.get("lost"):
        much = ", more than a tenth" if 10 * lost > counts["training"] else ""
        queries += f" ({lost:,} lost{much})"
    seeds = re.findall(r"^seed: (\d+)$", life, re.M)
    trained = seeds and EVALUATION not in life  # that of an evaluation draws nothing
    return Result(folder, value, queries, f"seed{seeds[-1]}" if trained else folder.name)


def once(results: list[Result]) -> list[float]:
    """Values, every seed once: a folder may be a copy, or have been made with another's seed."""
    first: dict[str, Result] = {}
    for result in sorted(results, key=lambda result: result.folder.name != result.seed):
        kept = first.setdefault(result.seed, result)
        if kept is not result:
            seed = result.seed.removeprefix("seed")
            note(f"{result.folder} is of seed {seed}, as {kept.folder} is, and is left out.")
    return [result.value for result in first.values()]


def subfolders(directory: str | Path) -> list[Path]:
    """The folders in a directory, hidden ones aside."""
    folders = [path for path in Path(directory).iterdir() if path.is_dir()]
    return sorted(path for path in folders if not path.name.startswith("."))


def parse(directory: str | Path, keyword: str, end_signal: str, ci95: bool) -> float | None:
    """Print the runs below a directory and their summary; returns the mean, None without a result.

    Raises:
        BlackBoxError: a run without a log.
    """
    print(f"Parsing files in {printable(str(directory))}")
    results = []
    for folder in subfolders(directory):
        log = folder / "log.txt"
        if not os.path.lexists(log):
            raise BlackBoxError(f"There is no log at {log}. With one more level, add --multi-exp.")
        try:
            result = read_result(folder, keyword, end_signal)
        except BlackBoxError as e:
            note(str(e))
            continue
        if result is None:
            note(f"{log} has no '{end_signal}' followed by '* {keyword}: x%': it is left out.")
            continue
        results.append(result)
        line = f"file: {log}. {keyword}: {result.value:.2f}%. queries: {result.queries}."
        print(printable(line))
    if not results:
        return None
    values = once(results)
    mean = fmean(values)
    error = f"{stdev(values) / len(values) ** 0.5:.2f}%" if len(values) > 1 else ""
    spread = pstdev(values) * (1.96 / len(values) ** 0.5 if ci95 else 1)
    print("===")
    print(f"Summary of directory: {printable(str(directory))}")
    print(f"* {keyword}: {mean:.2f}% +- {spread:.2f}%")
    print(
        f"* {keyword}, standard error over {len(values)} seeds: "
        + (f"{mean:.2f}% +- {error}" if error else "–")
    )
    print("===")
    return mean


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of("parse_test_res.py", __doc__)
    add = parser.add_argument
    add("directory", help="path to directory")
    interval = "95%% confidence interval instead of the standard deviation"
    add("--ci95", action="store_true", help=interval)
    add("--test-log", action="store_true", help="parse test-only logs")
    add("--multi-exp", action="store_true", help="parse multiple experiments")
    add("--keyword", default="accuracy", help="which keyword to extract")
    args = parser.parse_args(argv)
    if not Path(args.directory).is_dir():
        raise BlackBoxError(f"{args.directory} is not a directory.")
    end_signal = RESULT if args.test_log else END_OF_TRAINING
    experiments = subfolders(args.directory) if args.multi_exp else [Path(args.directory)]
    parsed = {path: parse(path, args.keyword, end_signal, args.ci95) for path in experiments}
    means = [mean for mean in parsed.values() if mean is not None]
    if not means:
        raise BlackBoxError(
            f"Nothing found in {args.directory}: no log with '{end_signal}' followed by "
            f"'* {args.keyword}: x%'."
        )
    if args.multi_exp:
        for path in [path for path, mean in parsed.items() if mean is None]:
            note(f"{path} has no result, and is left out of the average.")
        print("Average performance")
        print(f"* {args.keyword}: {fmean(means):.2f}%")


if __name__ == "__main__":
    sys.exit(tool(main))
