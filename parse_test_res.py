"""Test results of several seeds, read from their logs, as CoOp's script of this name reads them:

    python parse_test_res.py output/caltech101/ZIP/vit_b16_16shots
    python parse_test_res.py output/caltech101/ZIP --multi-exp

Logs are <directory>/seed<k>/log.txt, or with --multi-exp one level of folders further down. Each
run is listed with its queries; the summary has mean and standard deviation as in CoOp (`--ci95`: an
interval), and mean and standard error (ddof 1).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from statistics import fmean, pstdev

from dassl_blackbox.console import note, parser_of, tool
from dassl_blackbox.results import mean_and_error
from dassl_blackbox.runs import END_OF_TRAINING, RESULT, Run, once, read_run
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, printable


def subfolders(directory: str | Path) -> list[Path]:
    """The folders in a directory, hidden ones aside.

    Raises:
        BlackBoxError: the directory cannot be read.
    """
    try:
        folders = [path for path in Path(directory).iterdir() if path.is_dir()]
    except OSError as e:
        raise BlackBoxError(f"{directory} cannot be read ({e.strerror or e}).") from e
    return sorted(path for path in folders if not path.name.startswith("."))


def queries(run: Run) -> str:
    """What a run's queries are in its line."""
    if run.counts is None:
        return run.uncounted
    lost, much = run.counts["lost"]["queries"], ", more than a tenth" if run.lost_much else ""
    return f"{run.counts['training']['queries']:,}" + (f" ({lost:,} lost{much})" if lost else "")


def parse(directory: str | Path, keyword: str, end_signal: str, ci95: bool) -> float | None:
    """Print the runs below a directory and their summary; returns the mean, None without a result.

    Raises:
        SystemExit: a run without a log.
    """
    print(f"Parsing files in {printable(str(directory))}")
    runs = []
    for folder in subfolders(directory):
        log = folder / "log.txt"
        if not os.path.lexists(log):
            raise SystemExit(
                f"error: no log at {log}; with one more level of folders, add --multi-exp"
            )
        try:
            run = read_run(folder, end_signal)
        except BlackBoxError as e:
            note(str(e))
            continue
        if run is None or keyword not in run.metrics:
            note(f"{log} has no '{end_signal}' followed by '* {keyword}: x%': it is left out.")
            continue
        runs.append(run)
        line = f"file: {log}. {keyword}: {run.metrics[keyword]:.2f}%. queries: {queries(run)}."
        print(printable(line))
    if not runs:
        return None
    values = [run.metrics[keyword] for run in once(runs)]
    mean, error = mean_and_error(values)
    spread = pstdev(values) * (1.96 / len(values) ** 0.5 if ci95 else 1)
    print("===")
    print(f"Summary of directory: {printable(str(directory))}")
    print(f"* {keyword}: {mean:.2f}% +- {spread:.2f}%")
    print(
        f"* {keyword}, standard error over {len(values)} seeds: "
        + ("–" if error is None else f"{mean:.2f}% +- {error:.2f}%")
    )
    print("===")
    return mean


def main() -> None:
    parser = parser_of("parse_test_res.py", __doc__)
    parser.add_argument("directory", help="path to directory")
    parser.add_argument(
        "--ci95",
        action="store_true",
        help="95%% confidence interval instead of the standard deviation",
    )
    parser.add_argument("--test-log", action="store_true", help="parse test-only logs")
    parser.add_argument("--multi-exp", action="store_true", help="parse multiple experiments")
    parser.add_argument("--keyword", default="accuracy", help="which keyword to extract")
    args = parser.parse_args()
    if not Path(args.directory).is_dir():
        raise SystemExit(f"error: {args.directory} is not a directory")
    end_signal = RESULT if args.test_log else END_OF_TRAINING
    experiments = subfolders(args.directory) if args.multi_exp else [Path(args.directory)]
    parsed = {path: parse(path, args.keyword, end_signal, args.ci95) for path in experiments}
    means = [mean for mean in parsed.values() if mean is not None]
    if not means:
        raise SystemExit(
            f"error: nothing found in {args.directory}: no log with '{end_signal}' followed by "
            f"'* {args.keyword}: x%'"
        )
    if args.multi_exp:
        for path in [path for path, mean in parsed.items() if mean is None]:
            note(f"{path} has no result, and is left out of the average.")
        print("Average performance")
        print(f"* {args.keyword}: {fmean(means):.2f}%")


if __name__ == "__main__":
    sys.exit(tool(main))
