"""Test results of several seeds, read from their logs, as CoOp's script of this name reads them:

    python parse_test_res.py output/caltech101/ZIP/vit_b16_16shots              # <directory>/seed<k>/log.txt
    python parse_test_res.py output/caltech101/ZIP --multi-exp                  # <directory>/<experiment>/seed<k>/log.txt

Each run is listed with its queries; the summary has mean and standard deviation as in CoOp (`--ci95`: 95 % interval), and
mean and standard error (ddof 1).
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean, pstdev

from dassl_blackbox.results import mean_and_error
from dassl_blackbox.runlog import END_OF_TRAINING, RESULT, read_run


def subfolders(directory):
    return sorted(p for p in Path(directory).iterdir() if p.is_dir() and not p.name.startswith("."))


def parse(directory, keyword, end_signal, ci95):
    """Print the runs below a directory and their summary; returns the mean.

    Raises:
        SystemExit: a run without a log, or nothing found.
    """
    print(f"Parsing files in {directory}")
    values = []
    for folder in subfolders(directory):
        if not (folder / "log.txt").is_file():
            raise SystemExit(
                f"error: no log at {folder / 'log.txt'}; with one more level of folders, add --multi-exp"
            )
        run = read_run(folder, end_signal)
        if run is None or keyword not in run.metrics:
            continue
        values.append(run.metrics[keyword])
        spent = "–" if run.counts is None else f"{run.counts['training']['queries']:,}"
        print(f"file: {folder / 'log.txt'}. {keyword}: {values[-1]:.2f}%. queries: {spent}.")
    if not values:
        raise SystemExit(
            f"error: nothing found in {directory}: no log with '{end_signal}' followed by '* {keyword}: x%'"
        )
    mean, error = mean_and_error(values)
    spread = pstdev(values) * (1.96 / len(values) ** 0.5 if ci95 else 1)
    print("===")
    print(f"Summary of directory: {directory}")
    print(f"* {keyword}: {mean:.2f}% +- {spread:.2f}%")
    print(
        f"* {keyword}, standard error over {len(values)} seeds: "
        + ("–" if error is None else f"{mean:.2f}% +- {error:.2f}%")
    )
    print("===")
    return mean


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    experiments = subfolders(args.directory) if args.multi_exp else [args.directory]
    means = [parse(directory, args.keyword, end_signal, args.ci95) for directory in experiments]
    if args.multi_exp:
        print("Average performance")
        print(f"* {args.keyword}: {fmean(means):.2f}%")


if __name__ == "__main__":
    sys.exit(main())
