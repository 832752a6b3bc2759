"""What JOLT's curvature is worth: Gauss-Newton steps against gradient steps from the same slopes.

    python benchmarks/curvature.py --root data --datasets digits shapes --queries 500 5000

Both ask for the same candidates and make the same number of proposals; the one of the ablation
takes the mean curvature in all directions (`H = mu I`). Test accuracy; nothing is chosen by it.
"""

import argparse
import contextlib
import io
from pathlib import Path
from statistics import fmean

from jolt_run import jolt_trainer  # isort: skip  finds this project

import torch
from dassl_blackbox.trainers import jolt
from dassl_blackbox.trainers.blackbox.losses import softmax_model
from dassl_blackbox.trainers.blackbox.optimizers import SubspaceGaussNewton
from tabulate import tabulate
from tqdm import tqdm


class MeanCurvature(SubspaceGaussNewton):
    """The same, with the mean of the curvature's diagonal for the curvature."""

    def solve(self, slopes, offset, labels):
        g, H = softmax_model(self.here, slopes, labels)
        mu = H.diagonal().mean().clamp_min(1e-12)
        ridge = mu + self.damping * torch.tensor(self.factors).to(mu) * mu + self.decay
        return ((g + self.decay * offset.to(g)) / ridge[:, None]).to(self.theta)


def accuracy(args, dataset, optimizer, head, queries, seed):
    """Test accuracy of a run, per cent."""
    folder = Path(args.output) / f"{dataset}_{optimizer.__name__}_{head}_{queries}" / f"seed{seed}"
    jolt.SubspaceGaussNewton = optimizer
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = jolt_trainer(args, dataset, seed, folder, queries, head)
        trainer.train()
        return trainer.test()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="data")
    parser.add_argument("--datasets", nargs="+", default=["digits"])
    parser.add_argument("--cfg", default="tiny")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--queries", type=int, nargs="+", default=[500])
    parser.add_argument("--output", default="output/curvature")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    kinds = {"Gauss-Newton": SubspaceGaussNewton, "mean curvature": MeanCurvature}
    rows = [(d, h, q) for d in args.datasets for h in (False, True) for q in args.queries]
    table = []
    for dataset, head, queries in tqdm(rows):
        found = [
            fmean(accuracy(args, dataset, kind, head, queries, s) for s in args.seeds)
            for kind in kinds.values()
        ]
        cells = [f"{value:.1f}" for value in found]
        table.append([dataset, "with its head" if head else "prompt alone", queries, *cells])
    headers = ["data set", "JOLT", "budget", *kinds]
    print(tabulate(table, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
