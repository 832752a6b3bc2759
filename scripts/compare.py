"""All methods on one data set, under one budget, several seeds:

    python scripts/compare.py --root data --dataset digits --queries 5000

Every run is a `python train.py …` that is printed; a finished one is skipped, a crashed one resumed. Ends in a table (Markdown too) and in a plot of
validation accuracy against queries, both in the output folder. Words to start from are those of the data set's template, before its slot.
"""

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

import dassl_blackbox  # noqa: F401
from dassl_blackbox import plots
from dassl_blackbox.results import HEADERS, Group, row
from dassl_blackbox.runlog import read_run
from dassl_blackbox.trainers.blackbox.templates import template_of

HOME = Path(__file__).resolve().parents[1]
# The adapter joins after one epoch: a small budget can end before the tenth, where the paper lets it in.
# label: (trainer, whether a budget and a curve apply, further options; {words} are the template's)
METHODS = {
    "zero-shot": ("ZeroshotOracle", False, []),
    "ZIP": ("ZIP", True, []),
    "ZIP, from words": ("ZIP", True, ["TRAINER.ZIP.CTX_INIT", "{words}"]),
    "CBBT": ("CBBT", True, []),
    "CBBT, from the template": ("CBBT", True, ["TRAINER.CBBT.CTX_INIT", "{words}"]),
    "CBBT + adapter": (
        "CBBT",
        True,
        [
            "TRAINER.CBBT.ADAPTER",
            "True",
            "ORACLE.GRANTS",
            "('logits', 'features')",
            "TRAINER.CBBT.ADAPTER_EPOCH",
            "1",
        ],
    ),
    "CraFT, prompt alone": ("CraFT", True, ["TRAINER.CRAFT.HEAD", "False"]),
    "CraFT": ("CraFT", True, []),
    "BPT-VLM": ("BPTVLM", True, []),
    "BPT-VLM, from words": ("BPTVLM", True, ["TRAINER.BPTVLM.CTX_INIT", "{words}"]),
    "JOLT, prompt alone": ("JOLT", True, ["TRAINER.JOLT.HEAD", "False"]),
    "JOLT": ("JOLT", True, []),
    "JOLT, from the template": ("JOLT", True, ["TRAINER.JOLT.CTX_INIT", "{words}"]),
    "white-box": ("WhiteBox", False, []),
    "white-box, from words": ("WhiteBox", False, ["TRAINER.WHITEBOX.CTX_INIT", "{words}"]),
}


def registered_name(dataset):
    """The registry name in a data set's YAML."""
    import yaml

    return yaml.safe_load((HOME / f"configs/datasets/{dataset}.yaml").read_text(encoding="utf-8"))[
        "DATASET"
    ]["NAME"]


def words_of(dataset):
    """The words before the slot of the data set's template; there may be none."""
    return template_of(registered_name(dataset)).split("{}")[0].strip()


def folder_of(args, label):
    return (
        Path(args.output)
        / args.dataset
        / f"{args.cfg}_{args.shots}shots_{args.queries}queries"
        / label.replace(", ", "_").replace(" ", "-")
    )


def command(args, label, seed):
    """The `python train.py …` of one run."""
    trainer, budgeted, options = METHODS[label]
    words = words_of(args.dataset)
    config = HOME / f"configs/trainers/{trainer}/{args.cfg}_{args.dataset}.yaml"
    if not config.is_file():
        config = HOME / f"configs/trainers/{trainer}/{args.cfg}.yaml"
    budget = (
        ["ORACLE.MAX_QUERIES", args.queries, "ORACLE.VAL_EVERY", args.queries // 20]
        if budgeted
        else []
    )
    return [
        str(part)
        for part in (
            sys.executable,
            HOME / "train.py",
            "--skip-done",
            "--root",
            args.root,
            "--seed",
            seed,
            "--trainer",
            trainer,
            "--dataset-config-file",
            HOME / f"configs/datasets/{args.dataset}.yaml",
            "--config-file",
            config,
            "--output-dir",
            folder_of(args, label) / f"seed{seed}",
            "DATASET.NUM_SHOTS",
            args.shots,
            *budget,
            *[option.format(words=words) if "{words}" in option else option for option in options],
            *args.opts,
        )
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--dataset", default="digits", help="name of a YAML in configs/datasets")
    parser.add_argument("--cfg", default="tiny", help="name of the trainers' YAMLs")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--queries", type=int, default=5000, help="training budget of every black-box method"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=f"of: {'; '.join(METHODS)}",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores"
    )
    parser.add_argument("--output", default="output/compare")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE options for every run, at the end",
    )
    args = parser.parse_args()

    if not words_of(args.dataset):
        without = [label for label in args.methods if "{words}" not in METHODS[label][2]]
        print(
            f"The template of {args.dataset} begins with its slot, so there are no words to start from: {', '.join(set(args.methods) - set(without))} left out"
        )
        args.methods = without
    runs = [(label, seed) for label in args.methods for seed in args.seeds]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs))
        ),
    }

    def run(label, seed):
        line = command(args, label, seed)
        tqdm.write(shlex.join(line))
        done = subprocess.run(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )
        bar.update()
        return (
            None
            if done.returncode == 0
            else f"{label}, seed {seed}: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        )

    with tqdm(total=len(runs), unit="run") as bar, ThreadPoolExecutor(args.jobs) as pool:
        failures = [failure for failure in pool.map(lambda task: run(*task), runs) if failure]
    if failures:
        raise SystemExit("\n".join(failures))
    folders = {
        label: [folder_of(args, label) / f"seed{seed}" for seed in args.seeds]
        for label in args.methods
    }
    rows = [
        [label, *row(Group(Path(label), [read_run(folder) for folder in folders[label]]))[2:]]
        for label in args.methods
    ]
    target = folder_of(args, "x").parent
    table = tabulate(
        rows, headers=("method", *HEADERS[2:]), tablefmt="github", disable_numparse=True
    )
    (target / "table.md").write_text(table + "\n", encoding="utf-8")
    plots.queries(
        folders,
        target / "val_curves.png",
        f"{registered_name(args.dataset)}, {args.shots} shots, mean of {len(args.seeds)} seeds ({args.cfg})",
    )
    print(table)
    print(
        f"± is the standard error over seeds. Table and plot: {target}/table.md, {target}/val_curves.png"
    )


if __name__ == "__main__":
    main()
