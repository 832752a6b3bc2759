"""What a searched prompt is worth, by JOLT.

    python benchmarks/prompt.py head --datasets digits shapes --queries 1000 --split val
    python benchmarks/prompt.py curvature --datasets digits shapes --queries 500

`head`: SONAR's head on the scores of the template, of a prompt that JOLT tuned (its prompt alone),
and of both, with 400 generic names; every head is fitted to the same views of the same images, by
the same cross-validation. `curvature`: JOLT's Gauss-Newton steps beside gradient steps of the same
slopes, which take the mean curvature in all directions (`H = mu I`), with its head and without.
"""

import contextlib
import io
from pathlib import Path
from statistics import fmean

import torch
from common import configuration, parser, show
from dassl.engine import build_trainer
from dassl_blackbox.trainers.blackbox import optimizers
from dassl_blackbox.trainers.blackbox.bank import PLAIN, TEMPLATES, further_texts
from dassl_blackbox.trainers.blackbox.data import ordered_loader
from dassl_blackbox.trainers.blackbox.heads.scores import ScoreHead
from dassl_blackbox.trainers.blackbox.heads.selection import Gathered, folds_of
from dassl_blackbox.trainers.blackbox.losses import softmax_model
from dassl_blackbox.trainers.blackbox.optimizers import SubspaceGaussNewton
from dassl_blackbox.trainers.blackbox.oracle import Prompt

VIEWS, FOLDS, NAMES = 4, 5, 400


class MeanCurvature(SubspaceGaussNewton):
    """The same, with the mean of the curvature's diagonal for the curvature."""

    def solve(self, slopes, offset, labels):
        g, H = softmax_model(self.here, slopes, labels)
        mu = H.diagonal().mean().clamp_min(1e-12)
        ridge = mu + self.damping * torch.tensor(self.factors).to(mu) * mu + self.decay
        return ((g + self.decay * offset.to(g)) / ridge[:, None]).to(self.theta)


def trained(args, dataset, seed, kind, head):
    """A JOLT trainer whose run is over."""
    optimizers.SubspaceGaussNewton = kind
    run = f"{dataset}_{args.shots}_{args.queries}_{kind.__name__}_{head}"
    line = ["--root", args.root, "--seed", seed, "--output-dir", args.output / run / f"seed{seed}"]
    line += ["TRAINER.JOLT.HEAD", head, "DATASET.NUM_SHOTS", args.shots, "TEST.NO_TEST", True]
    line += ["ORACLE.MAX_QUERIES", args.queries, "TEST.SPLIT", args.split, *args.opts]
    trainer = build_trainer(configuration("JOLT", args.cfg, dataset, *line))
    trainer.train()
    return trainer


def scores(trainer, prompts, items, augmented):
    """Scores of images under every prompt side by side `[N, A]`, and labels `[N]`."""
    rows, labels, cfg = [], [], trainer.cfg
    augmentation = trainer.augmentation if augmented else None
    for batch in ordered_loader(cfg, trainer.pictures, items, augmentation, 128):
        images, answers = trainer.oracle.upload(batch["img"]), []
        for prompt in prompts:
            known = TEMPLATES.get(cfg.DATASET.NAME, PLAIN)
            template = known if prompt.contexts is None else "{}."
            trainer.oracle.set_classes(trainer.dm.dataset.classnames, template)
            answers.append(trainer.oracle.query(images, prompt)[0])
        rows.append(torch.cat(answers, dim=1))
        labels.append(batch["label"])
    return torch.cat(rows), torch.cat(labels)


def beyond_head(args, dataset, seed):
    """{what is read: accuracy, per cent}."""
    trainer = trained(args, dataset, seed, SubspaceGaussNewton, False)
    trainer.oracle = trainer.oracle.inner  # no longer metered
    data, C = trainer.dm.dataset, trainer.num_classes
    with torch.no_grad():
        prompt = trainer.learner()
    texts = further_texts("names", NAMES, data.classnames, "{}", torch.Generator())
    prompts = [Prompt(texts=texts), prompt]
    views = [scores(trainer, prompts, data.train_x, False)]
    for trainer.augmentation.epoch in range(1, VIEWS + 1):
        views.append(scores(trainer, prompts, data.train_x, True))
    rows, labels = (torch.cat(parts) for parts in zip(*views))
    index = torch.arange(len(data.train_x)).repeat(1 + VIEWS)
    held, truth = scores(trainer, prompts, getattr(data, args.split), False)
    M, folds = len(texts), folds_of(data.train_x, FOLDS)
    template, further, context = torch.arange(2 * C + M).split([C, M, C])
    found = {"zero-shot": held[:, template], "prompt": held[:, context]}
    for name, parts in {
        "template + head": [template],
        "prompt + head": [context],
        "template + further + head": [template, further],
        "prompt + further + head": [context, further],
        "all + head": [context, further, template],
    }.items():
        chosen, besides = torch.cat(parts), sum(map(len, parts[1:]))
        head = ScoreHead(data.classnames, besides, besides)
        head.fit(Gathered(rows[:, chosen], labels, index), folds)
        found[name] = head(held[:, chosen])
    return {k: 100 * (v.argmax(1) == truth).float().mean().item() for k, v in found.items()}


def curvature(args, dataset, seed):
    """{steps, and whether JOLT has its head: accuracy, per cent}."""
    found = {}
    for words, head in {"prompt alone": False, "with its head": True}.items():
        for name, kind in {"Gauss-Newton": SubspaceGaussNewton, "mean": MeanCurvature}.items():
            found[f"{name}, {words}"] = trained(args, dataset, seed, kind, head).test()
    return found


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("question", choices=["head", "curvature"])
    made.add_argument("--root", default="data")
    made.add_argument("--datasets", nargs="+", default=["digits", "shapes"])
    made.add_argument("--cfg", default="tiny")
    made.add_argument("--shots", type=int, default=16)
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    made.add_argument("--queries", type=int, default=1000, help="training budget of a prompt")
    made.add_argument("--split", choices=("val", "test"), default="val", help="to look at")
    made.add_argument("--output", type=Path, default=Path("output/prompt"), help="kept runs")
    made.add_argument("--opts", nargs="...", default=[], help="KEY VALUE options of every run")
    args = made.parse_args()
    measure = beyond_head if args.question == "head" else curvature
    table = {}
    for dataset in args.datasets:
        with contextlib.redirect_stdout(io.StringIO()):
            runs = [measure(args, dataset, seed) for seed in args.seeds]
        for name in runs[0]:
            table.setdefault(name, [name]).append(f"{fmean(run[name] for run in runs):.1f}")
    show([f"{args.split} accuracy, %", *args.datasets], table.values())
