"""Trains or evaluates one run, with CoOp's flags. What comes later wins, as there: data-set YAML,
trainer YAML, flags, trailing KEY VALUE options.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path

import dassl_blackbox  # noqa: F401  # isort: skip  registers ours, and finds a Dassl
import dassl
import torch
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from dassl_blackbox.console import RunLog, parser_of, tool
from dassl_blackbox.trainers.blackbox import config, record
from dassl_blackbox.trainers.blackbox.data import OF_THE_MODEL, training_images
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, masked, one_of
from dassl_blackbox.trainers.blackbox.files import FolderLock, write_atomically
from yacs.config import CfgNode

PACKAGES = "torch", "torchvision", "open_clip_torch", "numpy", "cma"
QUIET = "INPUT.", "DATALOADER.TRAIN_U.", "MODEL.HEAD."  # told where it is not at its default
# name: (the key that it sets, how many values it has, or one, what it is)
FLAGS = {
    "root": ("DATASET.ROOT", None, "path to the data sets"),
    "output-dir": ("OUTPUT_DIR", None, "output directory"),
    "resume": ("RESUME", None, "checkpoint directory from which training resumes"),
    "source-domains": ("DATASET.SOURCE_DOMAINS", "+", "source domains for DA/DG"),
    "target-domains": ("DATASET.TARGET_DOMAINS", "+", "target domains for DA/DG"),
    "transforms": ("INPUT.TRANSFORMS", "+", "data augmentation methods"),
    "trainer": ("TRAINER.NAME", None, "name of the trainer"),
    "backbone": ("MODEL.BACKBONE.NAME", None, "name of the backbone"),
    "head": ("MODEL.HEAD.NAME", None, "name of the head"),
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of("train.py", __doc__)
    add = parser.add_argument
    for name, (_, values, about) in FLAGS.items():
        add(f"--{name}", nargs=values, default="", help=about)
    add("--seed", type=int, default=-1, help="0 or more fixes the seed")
    add("--config-file", default="", help="configuration of the trainer")
    add("--dataset-config-file", default="", help="configuration of the data set")
    add("--eval-only", action="store_true", help="evaluation only")
    add("--model-dir", default="", help="with --eval-only: output directory of the run to load")
    add("--load-epoch", type=int, help="with --eval-only: the model's epoch; without it, the last")
    add("--no-train", action="store_true", help="do not train; print what the run would cost")
    add("--skip-done", action="store_true", help="skip what is finished; a grown budget goes on")
    add("opts", default=None, nargs=argparse.REMAINDER, help="KEY VALUE options, at the end")
    return parser.parse_args(arguments)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The resolved, frozen configuration; a BlackBoxError where it cannot be."""
    cfg, trainers = config.defaults(), TRAINER_REGISTRY.registered_names()
    if args.trainer:  # before its file, which is not there either
        one_of("trainer (--trainer)", args.trainer, trainers)
    config.merge_files(cfg, (args.dataset_config_file, args.config_file))
    for flag, (key, *_) in FLAGS.items():
        if given := getattr(args, flag.replace("-", "_")):
            node, name = config.place_of(cfg, key)
            node[name] = given
    if args.seed >= 0:
        cfg.SEED = args.seed
    config.put(cfg, config.pairs(args.opts), "the options")
    one_of("trainer (--trainer)", cfg.TRAINER.NAME, trainers)
    config.check_cfg(cfg)
    one_of("data set (DATASET.NAME)", cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    if args.no_train and not args.eval_only:
        cfg.OUTPUT_DIR = ""  # nothing is left behind, and no other run disturbed
    cfg.freeze()
    return cfg


def print_args(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Arguments, what of the configuration is read, versions; `config.yaml` has everything."""
    keys, default = config.leaves(cfg), config.leaves(config.defaults())
    unread = keys.keys() - config.values_read(cfg).keys()
    changed = {key for key, value in keys.items() if value != default.get(key, value)}
    told = {key for key in keys if key in changed or not key.startswith(QUIET)} - unread
    print("***************\n** Arguments **\n***************")
    print(masked("\n".join(f"{key}: {vars(args)[key]}" for key in sorted(vars(args)))))
    print("************\n** Config **\n************")
    print(masked("\n".join(f"{key}: {keys[key]}" for key in keys if key in told)))
    compat = " (our stand-in for it: no Dassl is installed)" * hasattr(dassl, "__compat__")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    print(f"** System info **\nDassl {dassl.__version__}{compat}, {versions}")
    print(f"Python {sys.version.split()[0]}, {torch.get_num_threads()} threads, {device}")
    trainer, other = cfg.TRAINER.NAME, Path(args.config_file).parent.name
    if unread & changed:
        print(f"Note: {trainer} does not read {', '.join(sorted(unread & changed))}")
    if other != trainer and other in TRAINER_REGISTRY.registered_names():
        print(f"Note: {args.config_file} is {other}'s, and the trainer is {trainer}")


def asked(args: argparse.Namespace, cfg: CfgNode) -> dict[str, str]:
    """What a run is asked to do: its settings, on what data, and the model that is evaluated."""
    here = record.counted(config.values_read(cfg))
    for key in OF_THE_MODEL:  # which was not asked here, and is compared itself
        here.pop(f"INPUT.{key}", None)
    models = Path(args.model_dir).glob("*/*") if args.model_dir else ()
    newest = max((model.stat().st_mtime for model in models), default=0)
    here["DATASET.ROOT"] = os.path.realpath(os.path.expanduser(cfg.DATASET.ROOT))
    return here | {"model": f"{args.model_dir} {args.load_epoch} {newest}"}


def is_done(args: argparse.Namespace, cfg: CfgNode) -> bool:
    """Whether the folder holds what was asked for; a BlackBoxError for a run of other settings."""
    folder, here = cfg.OUTPUT_DIR, asked(args, cfg)
    stage = (record.END_OF_TRAINING, record.EVALUATION)[args.eval_only]
    result = record.read(Path(folder, record.NAME)).get(stage, {})
    made = result.get("settings") or {}
    if same := made == here:  # an evaluation, or zero-shot
        print(f"{folder} holds this evaluation: skipped")
    if same or not made or args.eval_only:
        return same
    images = made.get(record.IMAGES, "")
    if not os.path.isdir(here["DATASET.ROOT"]):  # there is nothing to compare
        here.pop("DATASET.ROOT")
    elif images:
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)  # as before the draw of a run's shots
        images = training_images(build_dataset(cfg).train_x)
    differ = record.differences(made, record.with_contents(here, images))
    told, changes = f"{folder} holds a finished run of", record.as_text(differ)
    if not differ:
        mark = " (it lost more than a tenth of its queries)" * record.lost_much(result["queries"])
        print(f"{told} this configuration: skipped{mark}")
    elif all(record.grew(name, *values) for name, values in differ.items()):
        print(f"{told} a smaller budget ({changes}): it goes on")
    else:
        raise BlackBoxError(f"{told} another configuration ({changes}). Give another --output-dir.")
    return not differ


def run(args: argparse.Namespace, log: RunLog) -> None:
    cfg = setup_cfg(args)
    if args.eval_only or not args.no_train:
        log.lock = FolderLock(cfg.OUTPUT_DIR)  # before anything in the folder is read
        if args.skip_done and is_done(args, cfg):
            return
    print_args(args, cfg)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    torch.backends.cudnn.benchmark = cfg.USE_CUDA
    trainer = build_trainer(cfg)
    if not cfg.OUTPUT_DIR:
        cost = getattr(trainer, "describe_cost", lambda: "no queries that are counted")
        print(f"This run would cost {cost()}")
        return
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    elif hasattr(trainer, "check_training"):
        trainer.check_training()
    log.open()
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    if not (args.eval_only and path.exists()):  # that of a training run stays
        write_atomically(path, trainer.cfg.dump().encode())  # with the input of the model
    trainer.made_with = getattr(trainer, "made_with", None) or asked(args, cfg)
    trainer.test() if args.eval_only else trainer.train()
    if args.eval_only and getattr(trainer, "counted", False):
        print(trainer.oracle.summary())


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 with a sentence on stderr, 128 + signal, or 70 for a fault."""
    with RunLog() as log:
        return tool(lambda: run(args, log), log)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
