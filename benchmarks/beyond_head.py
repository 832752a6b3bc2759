"""What do queries for a prompt buy beyond the head? SONAR's head on the scores of the template, of
a prompt that JOLT tuned (its prompt alone), and of both.

    python benchmarks/beyond_head.py --root data --datasets digits shapes --queries 1000 --split val

Every head is fitted to the same views of the same images, by the same cross-validation. `further`
are SONAR's generic names. The tuned prompts are kept in the output folder and used again.
"""

import argparse
import contextlib
import io
from pathlib import Path

from jolt_run import jolt_trainer  # isort: skip  finds this project

import torch
from dassl_blackbox.trainers.blackbox.bank import further_texts
from dassl_blackbox.trainers.blackbox.config import PLAIN, TEMPLATES
from dassl_blackbox.trainers.blackbox.data import ordered_loader
from dassl_blackbox.trainers.blackbox.heads.scores import ScoreHead
from dassl_blackbox.trainers.blackbox.heads.selection import Gathered, folds_of
from dassl_blackbox.trainers.blackbox.oracle import Prompt
from tabulate import tabulate

VIEWS, FOLDS = 4, 5


def tuned(args, dataset, seed):
    """A JOLT trainer, its prompt alone trained, its oracle no longer metered."""
    folder = Path(args.output) / f"{dataset}_{args.shots}_{args.queries}" / f"seed{seed}"
    untested = "TEST.NO_TEST", "True"
    trainer = jolt_trainer(args, dataset, seed, folder, args.queries, False, *untested)
    trainer.train()
    trainer.oracle = trainer.oracle.inner
    return trainer


def scores(trainer, prompts, items, augmented):
    """Scores of images under every prompt side by side `[N, A]`, and labels `[N]`."""
    rows, labels = [], []
    augmentation = trainer.augmentation if augmented else None
    for batch in ordered_loader(trainer.cfg, items, trainer.pictures, augmentation, 128):
        images = trainer.oracle.upload(batch["img"])
        rows.append(torch.cat([ask(trainer, images, prompt) for prompt in prompts], dim=1))
        labels.append(batch["label"])
    return torch.cat(rows), torch.cat(labels)


def ask(trainer, images, prompt):
    known = TEMPLATES.get(trainer.cfg.DATASET.NAME, PLAIN)
    template = known if prompt.contexts is None else "{}."
    trainer.oracle.set_classes(trainer.dm.dataset.classnames, template)
    return trainer.oracle.query(images, prompt)[0]


def accuracies(trainer, split, names):
    """{what the head reads: accuracy, per cent}."""
    dataset, C = trainer.dm.dataset, trainer.num_classes
    with torch.no_grad():
        prompt = trainer.learner()
    texts = further_texts("names", names, dataset.classnames, "{}", torch.Generator())
    prompts = [Prompt(texts=texts), prompt]
    clean = scores(trainer, prompts, dataset.train_x, False)
    views = [clean]
    for trainer.augmentation.epoch in range(1, VIEWS + 1):
        views.append(scores(trainer, prompts, dataset.train_x, True))
    rows, labels = (torch.cat(parts) for parts in zip(*views, strict=True))
    index = torch.arange(len(dataset.train_x)).repeat(1 + VIEWS)
    held, truth = scores(trainer, prompts, getattr(dataset, split), False)
    M, folds = len(texts), folds_of(dataset.train_x, FOLDS)
    columns = torch.arange(2 * C + M)
    template, further, context = columns.split([C, M, C])
    found = {"zero-shot": held[:, template], "prompt": held[:, context]}
    for name, parts in {
        "template + head": [template],
        "prompt + head": [context],
        "template + further + head": [template, further],
        "prompt + further + head": [context, further],
        "all + head": [context, further, template],
    }.items():
        chosen, further = torch.cat(parts), sum(map(len, parts[1:]))
        head = ScoreHead(dataset.classnames, further, further)
        head.fit(Gathered(rows[:, chosen], labels, index), folds)
        found[name] = head(held[:, chosen])
    return {k: 100 * (v.argmax(1) == truth).float().mean().item() for k, v in found.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="data")
    parser.add_argument("--datasets", nargs="+", default=["digits", "shapes"])
    parser.add_argument("--cfg", default="tiny")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--queries", type=int, default=1000, help="training budget of the prompt")
    parser.add_argument("--names", type=int, default=400, help="further names")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--output", default="output/beyond_head")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    table = {}
    for dataset in args.datasets:
        with contextlib.redirect_stdout(io.StringIO()):
            runs = [accuracies(tuned(args, dataset, s), args.split, args.names) for s in args.seeds]
        for name in runs[0]:
            mean = sum(run[name] for run in runs) / len(runs)
            table.setdefault(name, [name]).append(f"{mean:.1f}")
    headers = [f"{args.split} accuracy, %", *args.datasets]
    print(tabulate(table.values(), headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
