"""All methods on one data set, under one budget, several seeds:

    python scripts/compare.py --root data --dataset digits --queries 5000

Every run is a `python train.py …` that is printed; a finished one is skipped, a crashed one goes
on. Ends in a table (Markdown too), ordered by what a method asks of the model beside words and
pictures, and in a plot of validation accuracy against queries, both in the output folder. Words to
start from are those of the data set's template, before its slot.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dassl_blackbox import plots
from dassl_blackbox.console import note, parser_of, tool
from dassl_blackbox.results import HEADERS, LOST, SHOWN, Group, narrow, row, show
from dassl_blackbox.runs import read_result
from dassl_blackbox.trainers.blackbox.config import PLAIN, TEMPLATES, ours, read_yaml
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, first_line, nearest
from dassl_blackbox.trainers.blackbox.trainer import handled
from sweep import as_they_end, attempt, end_if
from tabulate import tabulate
from tqdm import tqdm

HOME = Path(__file__).resolve().parents[1]
# what the folders and labels tell, which the flags set
NAMED = (
    "SEED",
    "OUTPUT_DIR",
    "DATASET.NAME",
    "DATASET.NUM_SHOTS",
    "TRAINER.NAME",
    "ORACLE.MAX_QUERIES",
)
# label: (trainer, whether a budget and a curve apply, further options; {words} are the template's)
METHODS = {
    "zero-shot": ("ZeroshotOracle", False, []),
    "head alone": (
        "SONAR",
        True,
        ["TRAINER.SONAR.TEXTS", "0", "TRAINER.SONAR.VIEWS", "0"],
    ),
    "SONAR": ("SONAR", True, []),
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
            "('contexts', 'logits', 'features')",
            # a small budget can end before the tenth, the paper's
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
# a trainer that is not in the table stands for itself
METHODS |= {
    name: (name, True, [])
    for name in ours()
    if name not in {trainer for trainer, _, _ in METHODS.values()}
}


def configs_of(trainer: str) -> Path:
    """The folder of a trainer's YAMLs; of ZIP's, where it has none of its own yet."""
    folder = HOME / "configs/trainers" / trainer
    return folder if folder.is_dir() else HOME / "configs/trainers/ZIP"


def among(folder: Path, name: str, what: str) -> None:
    """Raise a BlackBoxError unless `name` is a YAML in the folder."""
    known = [path.stem for path in folder.glob("*.yaml")]
    if name not in known:
        raise BlackBoxError(f"Unknown {what} '{name}': {nearest(name, known)}")


def registered_name(dataset: str) -> str:
    """The registry name in a data set's YAML."""
    among(HOME / "configs/datasets", dataset, "data set (--dataset)")
    path = HOME / f"configs/datasets/{dataset}.yaml"
    try:
        return read_yaml(path, "")["DATASET"]["NAME"]
    except (KeyError, TypeError) as e:
        raise BlackBoxError(f"{path} has no DATASET.NAME.") from e


def words_of(dataset: str) -> str:
    """The words before the slot of the data set's template; there may be none."""
    return TEMPLATES.get(registered_name(dataset), PLAIN).split("{}")[0].strip()


def folder_of(args: argparse.Namespace, label: str) -> Path:
    return (
        Path(args.output)
        / args.dataset
        / f"{args.cfg}_{args.shots}shots_{args.queries}queries"
        / label.replace(", ", "_").replace(" ", "-")
    )


def command(args: argparse.Namespace, label: str, seed: int) -> list[str]:
    """The `python train.py …` of one run."""
    trainer, budgeted, options = METHODS[label]
    words = words_of(args.dataset)
    config = configs_of(trainer) / f"{args.cfg}_{args.dataset}.yaml"
    if not config.is_file():
        config = configs_of(trainer) / f"{args.cfg}.yaml"
    budget = (
        ["ORACLE.MAX_QUERIES", args.queries, "ORACLE.VAL_EVERY", max(1, args.queries // 20)]
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


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse_args() -> argparse.Namespace:
    parser = parser_of("scripts/compare.py", __doc__)
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--dataset", default="digits", help="name of a YAML in configs/datasets")
    parser.add_argument("--cfg", default="tiny", help="name of the trainers' YAMLs")
    parser.add_argument("--shots", type=positive, default=16, help="of a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of each method")
    parser.add_argument(
        "--queries", type=positive, default=5000, help="training budget of every black-box method"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help=f"default: all that the settings are for; of: {'; '.join(METHODS)}",
    )
    parser.add_argument(
        "--jobs", type=positive, default=1, help="runs at a time; each gets its share of the cores"
    )
    parser.add_argument("--output", default="output/compare", help="folder of the runs")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE options for every run, at the end",
    )
    args = parser.parse_args()
    if len(set(args.seeds)) < len(args.seeds) or not all(0 <= s < 2**32 for s in args.seeds):
        parser.error("--seeds takes whole numbers from 0 to 2**32 - 1, each of them once")
    if not args.root:
        parser.error("--root is empty; it takes the folder of the data sets")
    args.methods = list(dict.fromkeys(args.methods)) if args.methods else with_settings(args.cfg)
    for label in args.methods:  # whose name, or whose folder's, would be wrong
        fixed = {*METHODS[label][2][::2], *NAMED} & set(args.opts[::2])
        if fixed:
            parser.error(f"--opts may not set {', '.join(sorted(fixed))}: {label} has it fixed")
    return args


def with_settings(cfg: str) -> list[str]:
    """All methods that have a YAML of this name; all there are, if none has one."""
    found = {
        label for label in METHODS if (configs_of(METHODS[label][0]) / f"{cfg}.yaml").is_file()
    }
    gone = [label for label in METHODS if label not in found]
    if found and gone:
        print(f"There is no {cfg}.yaml of {', '.join(gone)}: left out")
    return [label for label in METHODS if label in found or not found]


def run_all(args: argparse.Namespace) -> dict[str, str]:
    """Every method with every seed; {method: what failed, a line a seed}.

    Raises:
        SystemExit: a signal came, and the runs under way have stopped; 128 + its number.
    """
    for label in args.methods:
        among(configs_of(METHODS[label][0]), args.cfg, f"--cfg of {label}")
    runs = [(label, seed) for label in args.methods for seed in args.seeds]
    share = max(1, (os.cpu_count() or 1) // args.jobs)
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))}
    signals: list[int] = []

    def run(label: str, seed: int) -> str:
        if signals:
            return ""
        line = command(args, label, seed)
        tqdm.write(shlex.join(line))
        said = attempt(line, environment, signals)
        bar.update(not (said and signals))  # one that was stopped is not done
        return said and f"{label}, seed {seed}: {said}"

    with (
        handled(lambda signum, frame: signals.append(signum)),
        tqdm(total=len(runs), unit="run") as bar,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        futures = [pool.submit(run, label, seed) for label, seed in runs]
        for future in as_they_end(futures):
            future.result()
    end_if(signals)
    failed: dict[str, list[str]] = {}
    for (label, _), future in zip(runs, futures, strict=True):
        if future.result():
            failed.setdefault(label, []).append(future.result())
    return {label: "\n".join(lines) for label, lines in failed.items()}


def group_of(args: argparse.Namespace, label: str) -> Group:
    """The runs of a method.

    Raises:
        BlackBoxError: one of them has no result.
    """
    folders = [folder_of(args, label) / f"seed{seed}" for seed in args.seeds]
    runs = [run for run in map(read_result, folders) if run is not None]
    if len(runs) < len(folders):
        raise BlackBoxError(f"A run of {label} has no result in {folders[0].parent}.")
    return Group(Path(label), runs)


def table_of(groups: list[Group]) -> str:
    """The methods' results in Markdown, those with the least access first."""
    table = tabulate(
        [
            [group.access, str(group.path), *row(group)[3:]]
            for group in sorted(groups, key=lambda group: group.demand)
        ],
        headers=("access", "method", *HEADERS[3:]),
        tablefmt="github",
        disable_numparse=True,
    )
    return f"{table}\n\n{LOST}" if any(group.lost_much for group in groups) else table


def main() -> None:
    args = parse_args()
    name = registered_name(args.dataset)
    if not words_of(args.dataset):
        without = [label for label in args.methods if "{words}" not in METHODS[label][2]]
        gone = [label for label in args.methods if label not in without]
        if gone:
            print(
                f"The template of {args.dataset} begins with its slot, so there are no words to "
                f"start from: {', '.join(gone)} left out"
            )
        args.methods = without
    if not args.methods:
        raise SystemExit("error: no method is left")
    failed = run_all(args)
    groups = [group_of(args, label) for label in args.methods if label not in failed]
    if not groups:
        raise SystemExit("\n".join(failed.values()))
    target, table = folder_of(args, "x").parent, table_of(groups)
    try:
        (target / "table.md").write_text(table + "\n", encoding="utf-8")
    except OSError as e:
        note(f"{target / 'table.md'} could not be written ({first_line(e)}).")
    curves = plots.queries(
        {str(group.path): [run.folder for run in group.runs] for group in groups},
        target / "val_curves.png",
        f"{name}, {args.shots} shots, mean of {len(args.seeds)} seeds ({args.cfg})",
    )
    groups.sort(key=lambda group: group.demand)
    show(("method", *SHOWN), [[str(group.path), *narrow(group)] for group in groups])
    if any(group.lost_much for group in groups):
        print(LOST)
    print(f"± is the standard error over seeds. The table with all counts is {target}/table.md.")
    if curves:
        print(f"The plot of validation accuracy against queries is {target}/val_curves.png.")
    if failed:
        raise SystemExit("\n".join(["Not in the table:", *failed.values()]))


if __name__ == "__main__":
    sys.exit(tool(main))
