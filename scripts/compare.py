"""All methods on one data set, under one budget, several seeds:

    python scripts/compare.py --root data --dataset digits --queries 5000

Every run is a `python train.py …` that is printed; a finished one is skipped, a crashed one goes
on. Ends in a table (Markdown too), ordered by what a method asks of the model beside words and
pictures, and in a plot of validation accuracy against queries, both in the output folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl_blackbox.console import note, tool
from dassl_blackbox.datasets.table import ROWS
from dassl_blackbox.plots import plot
from dassl_blackbox.results import LOST, SHOWN, grouped, read, show, table
from dassl_blackbox.trainers.blackbox.bank import PLAIN, TEMPLATES
from dassl_blackbox.trainers.blackbox.config import BACKBONES, ours
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from sweep import HOME, arguments, parser_for, run_all, whole

# what the folders and labels tell, which the flags set
NAMED = {"SEED", "OUTPUT_DIR", "DATASET.NAME", "DATASET.NUM_SHOTS", "TRAINER.NAME"}
NAMED |= {"ORACLE.MAX_QUERIES"}
# label: trainer and further options; {words} are those of the template before its slot
METHODS = {
    "zero-shot": "ZeroshotOracle",
    "head alone": "SONAR TRAINER.SONAR.TEXTS 0 TRAINER.SONAR.VIEWS 0",
    "SONAR": "SONAR",
    "ZIP": "ZIP",
    "ZIP, from words": "ZIP TRAINER.ZIP.CTX_INIT {words}",
    "CBBT": "CBBT",
    "CBBT, from the template": "CBBT TRAINER.CBBT.CTX_INIT {words}",
    # a small budget can end before the paper's tenth epoch, in which the adapter joins
    "CBBT + adapter": "CBBT TRAINER.CBBT.ADAPTER True TRAINER.CBBT.ADAPTER_EPOCH 1"
    " ORACLE.GRANTS ('contexts','logits','features')",
    "CraFT, prompt alone": "CraFT TRAINER.CRAFT.HEAD False",
    "CraFT": "CraFT",
    "BPT-VLM": "BPTVLM",
    "BPT-VLM, from words": "BPTVLM TRAINER.BPTVLM.CTX_INIT {words}",
    "JOLT, prompt alone": "JOLT TRAINER.JOLT.HEAD False",
    "JOLT": "JOLT",
    "JOLT, from the template": "JOLT TRAINER.JOLT.CTX_INIT {words}",
    "white-box": "WhiteBox",
    "white-box, from words": "WhiteBox TRAINER.WHITEBOX.CTX_INIT {words}",
}
# a trainer that is not in the table stands for itself
METHODS |= {name: name for name in ours() if name not in " ".join(METHODS.values()).split()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_for("compare.py", __doc__, "output/compare")
    add = parser.add_argument
    add("--dataset", default="digits", help="name of a YAML in configs/datasets")
    add("--shots", type=whole, default=16, help="of a class")
    add("--queries", type=whole, default=5000, help="training budget of black-box methods")
    among = f"default: all that the settings are for; of: {'; '.join(METHODS)}"
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=[], help=among)
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE options, at the end")
    args = parser.parse_args(argv)
    args.root, args.output = map(os.path.abspath, map(os.path.expanduser, (args.root, args.output)))
    os.chdir(HOME)
    registered = {row.config: row.name for row in ROWS}.get(args.dataset, "")
    words = TEMPLATES.get(registered, PLAIN).split("{}")[0].strip()
    target = f"{args.output}/{args.dataset}/{args.cfg}_{args.shots}shots_{args.queries}queries"
    budget = ["ORACLE.MAX_QUERIES", args.queries, "ORACLE.VAL_EVERY", max(1, args.queries // 20)]
    labels, tasks = {}, {}
    file = "vit_b16.yaml" if args.cfg in BACKBONES else f"{args.cfg}.yaml"
    for label in args.methods or METHODS:
        trainer, *options = METHODS[label].split()
        fixed = NAMED.union(options[::2]) & {*args.opts[::2]}
        if fixed and (args.methods or fixed & NAMED):  # a label or a folder would be wrong
            parser.error(f"--opts may not set {', '.join(sorted(fixed))}: {label} has it fixed")
        known = args.methods or Path("configs/trainers", trainer, file).is_file()
        if not known or ("{words}" in options and not words):
            note(f"{label} has no {file}, or no words before its template's slot: it is left out")
            continue
        name = label.replace(", ", "_").replace(" ", "-")
        labels[name] = label
        options = [words if option == "{words}" else option for option in options]
        if trainer not in ("ZeroshotOracle", "WhiteBox"):  # which have no budget and no curve
            options = [*map(str, budget), *options]
        for seed in args.seeds:
            folder = f"{target}/{name}/seed{seed}"
            line = arguments(args, trainer, args.dataset, args.shots, seed, folder)
            tasks[folder] = line + options + args.opts
            print(shlex.join(["python", "train.py", *tasks[folder]]))
    if not tasks:
        raise BlackBoxError(f"No method is left for --cfg {args.cfg} on {args.dataset}.")
    failed = run_all(args, tasks)
    for folder in failed:
        labels.pop(Path(folder).parent.name, None)
    if not labels:
        return 1
    runs = read(target)
    runs = runs[runs.path.isin(labels) & runs.seed.isin(f"seed{seed}" for seed in args.seeds)]
    runs = runs.assign(path=runs.path.map(labels))
    cells = table(runs, wide=True).drop(columns="method").rename(columns={"run": "method"})
    lost = f"\n{LOST}" * bool(runs.lost_much.any())
    markdown = cells.to_markdown(index=False, tablefmt="github", disable_numparse=True)
    Path(target, "table.md").write_text(f"{markdown}\n{lost}", encoding="utf-8")
    show(cells[["method", *SHOWN]])
    title = f"{args.dataset}, {args.shots} shots, {len({*args.seeds})} seeds, {args.cfg}"
    drawn = plot("queries", grouped(runs), f"{target}/val_curves.png", title)
    print(f"All counts are in {target}/table.md{', curves in val_curves.png' * drawn}.{lost}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(tool(main))
