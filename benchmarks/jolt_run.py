"""A JOLT trainer over a data set, as the command line builds it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import train
from dassl.engine import build_trainer

HOME = Path(__file__).resolve().parents[1]


def jolt_trainer(args, dataset, seed, folder, queries, head, *options):
    """`args` has root, cfg, shots and opts; `head` is whether the prompt has one of its own."""
    line = ["--root", args.root, "--seed", seed, "--trainer", "JOLT", "--output-dir", folder]
    line += ["--config-file", HOME / f"configs/trainers/JOLT/{args.cfg}.yaml"]
    line += ["--dataset-config-file", HOME / f"configs/datasets/{dataset}.yaml"]
    line += ["TRAINER.JOLT.HEAD", head, "DATASET.NUM_SHOTS", args.shots]
    line += ["ORACLE.MAX_QUERIES", queries, *options, *args.opts]
    return build_trainer(train.setup_cfg(train.parse_args([str(part) for part in line])))
