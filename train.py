"""Trains or evaluates one run. The flags are CoOp's, and Dassl's configuration is resolved in CoOp's order:

data-set YAML < trainer YAML < flags < trailing KEY VALUE options
"""

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import dassl_blackbox  # noqa: F401  registers the trainers and data sets, and finds a Dassl
import dassl
import torch
import yaml
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from dassl_blackbox.datasets.base import DatasetError
from dassl_blackbox.runlog import LIFE, RunLog, is_evaluated, is_finished
from dassl_blackbox.trainers.blackbox.config import extend_cfg
from dassl_blackbox.trainers.blackbox.run.errors import BlackBoxError, one_of
from dassl_blackbox.trainers.blackbox.run.files import write_atomically
from dassl_blackbox.trainers.blackbox.run.settings import as_text, differences, larger, settings


def header(args, cfg):
    """The lines that a log begins with."""
    arguments = "\n".join(f"{key}: {value}" for key, value in sorted(vars(args).items()))
    return f"***************\n{LIFE}\n***************\n{arguments}\n************\n** Config **\n************\n{cfg}"


def print_environment():
    """Versions and device, without the subprocesses that torch's full report starts."""
    print("** System info **")
    print(
        f"Dassl {dassl.__version__}"
        + (" (our stand-in for it: no Dassl is installed)" if hasattr(dassl, "__compat__") else "")
    )
    print(
        f"Python {platform.python_version()}, "
        + ", ".join(
            f"{name} {version(name)}"
            for name in ("torch", "torchvision", "open_clip_torch", "numpy", "cma")
        )
    )
    print(
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()}, {torch.get_num_threads()} threads, no CUDA device"
    )


def reset_cfg(cfg, args):
    """Flags that were given win over the YAMLs."""
    if args.root:
        cfg.DATASET.ROOT = args.root
    if args.output_dir:
        cfg.OUTPUT_DIR = args.output_dir
    if args.resume:
        cfg.RESUME = args.resume
    if args.seed >= 0:
        cfg.SEED = args.seed
    if args.source_domains:
        cfg.DATASET.SOURCE_DOMAINS = args.source_domains
    if args.target_domains:
        cfg.DATASET.TARGET_DOMAINS = args.target_domains
    if args.transforms:
        cfg.INPUT.TRANSFORMS = args.transforms
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer
    if args.backbone:
        cfg.MODEL.BACKBONE.NAME = args.backbone
    if args.head:
        cfg.MODEL.HEAD.NAME = args.head


def setup_cfg(args):
    """The resolved, frozen configuration.

    Raises:
        BlackBoxError: a file that is missing, a key that does not exist, a value of the wrong type, an unknown trainer or data set.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    try:
        for path in (args.dataset_config_file, args.config_file):
            if path:
                cfg.merge_from_file(path)
        reset_cfg(cfg, args)
        cfg.merge_from_list(args.opts)
    except OSError as e:
        raise BlackBoxError(
            f"The configuration file {e.filename} cannot be read ({e.strerror})."
        ) from e
    except yaml.YAMLError as e:
        raise BlackBoxError(
            f"The configuration file {path} is not YAML ({' '.join(str(e).split())})."
        ) from e
    except (KeyError, ValueError, AssertionError) as e:
        raise BlackBoxError(
            f"The configuration does not resolve: {e.args[0] if e.args else e}. Keys are those of Dassl and of "
            f"trainers/blackbox/config.py; options come as KEY VALUE pairs."
        ) from e
    one_of("trainer (--trainer)", cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    one_of("data set (DATASET.NAME)", cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    cfg.freeze()
    return cfg


def run(args, log):
    cfg = setup_cfg(args)
    config_file = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if (
        args.skip_done
        and args.eval_only
        and is_evaluated(cfg.OUTPUT_DIR, header(args, cfg), args.model_dir)
    ):
        print(f"{cfg.OUTPUT_DIR} holds this evaluation: skipped")
        return
    if args.skip_done and not args.eval_only and is_finished(cfg.OUTPUT_DIR):
        if not config_file.is_file():
            raise BlackBoxError(
                f"{cfg.OUTPUT_DIR} holds a finished run without its config.yaml, so that nobody knows whose it is. Choose another --output-dir, or move it away."
            )
        differ = differences(
            settings(config_file.read_text(encoding="utf-8")), settings(cfg.dump())
        )
        if not differ:
            print(f"{cfg.OUTPUT_DIR} holds a finished run of this configuration: skipped")
            return
        if not all(larger(name, *values) for name, values in differ.items()):
            raise BlackBoxError(
                f"{cfg.OUTPUT_DIR} holds a finished run of another configuration ({as_text(differ)}). Choose another --output-dir, or move that run away."
            )
        print(
            f"{cfg.OUTPUT_DIR} holds a finished run of a smaller budget ({as_text(differ)}): it goes on"
        )
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    print(header(args, cfg))
    print_environment()

    trainer = build_trainer(cfg)
    if args.no_train and not args.eval_only:
        print(
            f"This run would cost {trainer.describe_cost()}"
            if hasattr(trainer, "describe_cost")
            else "No queries are counted here"
        )
        return
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        log.open(cfg.OUTPUT_DIR)
        if not config_file.exists():  # that of a training run stays
            write_atomically(config_file, cfg.dump().encode())
        trainer.test()
        if hasattr(trainer, "oracle"):
            print(trainer.oracle.summary())
        return
    if hasattr(trainer, "check_training"):
        trainer.check_training()
    log.open(cfg.OUTPUT_DIR)
    write_atomically(config_file, cfg.dump().encode())
    trainer.train()


def main(args):
    """Returns the exit status. An error that the user can mend is one sentence on stderr, and in the log if there is one."""
    with RunLog() as log:
        try:
            run(args, log)
        except (BlackBoxError, DatasetError) as e:
            # an error that crossed from a loader's worker process carries that process's traceback before the sentence
            sentence = str(e).strip().splitlines()[-1]
            if "Original Traceback" in str(e):
                sentence = sentence.split(f"{type(e).__name__}: ", 1)[-1]
            log.note(f"error: {sentence}")
            print(f"error: {sentence}", file=sys.stderr)
            return 1
    return 0


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="", help="path to the data sets")
    parser.add_argument("--output-dir", default="", help="output directory")
    parser.add_argument(
        "--resume", default="", help="checkpoint directory from which training resumes"
    )
    parser.add_argument("--seed", type=int, default=-1, help="0 or more fixes the seed")
    parser.add_argument("--source-domains", nargs="+", help="source domains for DA/DG")
    parser.add_argument("--target-domains", nargs="+", help="target domains for DA/DG")
    parser.add_argument("--transforms", nargs="+", help="data augmentation methods")
    parser.add_argument("--config-file", default="", help="configuration of the trainer")
    parser.add_argument("--dataset-config-file", default="", help="configuration of the data set")
    parser.add_argument("--trainer", default="", help="name of the trainer")
    parser.add_argument("--backbone", default="", help="name of the backbone")
    parser.add_argument("--head", default="", help="name of the head")
    parser.add_argument("--eval-only", action="store_true", help="evaluation only")
    parser.add_argument(
        "--model-dir", default="", help="with --eval-only: the output directory of the run to load"
    )
    parser.add_argument(
        "--load-epoch",
        type=int,
        help="with --eval-only: load the model of this epoch; without it, the last",
    )
    parser.add_argument(
        "--no-train", action="store_true", help="do not train; print what the run would cost"
    )
    parser.add_argument(
        "--skip-done",
        action="store_true",
        help="do nothing where the output directory holds a finished run of this configuration; go on where its budget was smaller",
    )
    parser.add_argument(
        "opts", default=None, nargs=argparse.REMAINDER, help="KEY VALUE options, at the end"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
