"""Trains or evaluates one run. The flags are CoOp's, and Dassl's configuration is resolved in
CoOp's order:

data-set YAML < trainer YAML < flags < trailing KEY VALUE options
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import traceback
from contextlib import ExitStack, redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import dassl_blackbox  # noqa: F401  # isort: skip  registers ours, and finds a Dassl
import dassl
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer
from dassl.utils import set_random_seed
from dassl_blackbox.console import parser_of
from dassl_blackbox.datasets.base import DatasetError
from dassl_blackbox.runlog import LIFE, RunLog, is_evaluated, is_finished, read_result
from dassl_blackbox.trainers.blackbox.config import (
    all_keys,
    check_cfg,
    defaults,
    leaves,
    masked,
    merge_files,
    ours,
    put,
    read_yaml,
    values_read,
)
from dassl_blackbox.trainers.blackbox.data import OF_THE_MODEL, training_images
from dassl_blackbox.trainers.blackbox.errors import (
    BlackBoxError,
    first_line,
    nearest,
    one_of,
    printable,
)
from dassl_blackbox.trainers.blackbox.files import (
    MODEL,
    FolderLock,
    load_state,
    newest,
    write_atomically,
)
from dassl_blackbox.trainers.blackbox.record import (
    IMAGES,
    as_text,
    counted,
    differences,
    grew,
    with_contents,
)
from dassl_blackbox.trainers.blackbox.record import NAME as METRICS
from dassl_blackbox.trainers.blackbox.trainer import handled
from yacs.config import CfgNode

NO_QUERIES = "No queries are counted here"
QUIET = "INPUT.", "DATALOADER.TRAIN_U.", "MODEL.HEAD."  # told where it is not at its default
CURE = "Choose another --output-dir, or move that run away."


def header(args, cfg):
    """The lines that a log begins with: the arguments, and what of the configuration is read.

    What the model decides of INPUT follows when it is there; `config.yaml` has everything.
    """
    arguments = "\n".join(f"{key}: {value}" for key, value in sorted(vars(args).items()))
    config, stars = cfg, "*" * 15
    if cfg.TRAINER.NAME in ours():
        told = changed(cfg)
        config = "\n".join(
            f"{name}: {value}"
            for name, value in values_read(cfg).items()
            if name in told or not name.startswith(QUIET)
        )
    return masked(
        f"{stars}\n{LIFE}\n{stars}\n{arguments}\n{stars[3:]}\n** Config **\n{stars[3:]}\n{config}"
    )


def unread(cfg: CfgNode) -> set[str]:
    """Names of keys that were set and have no effect on the run."""
    return changed(cfg) - values_read(cfg).keys()


def changed(cfg: CfgNode) -> set[str]:
    """Names of keys that are not at their default."""
    before = leaves(defaults())
    return {name for name, value in leaves(cfg).items() if before.get(name, value) != value}


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
        BlackBoxError: a file is missing, a key or a trainer or a data set is unknown, a value is
            of the wrong type.
    """
    cfg = defaults()
    trainers = TRAINER_REGISTRY.registered_names()
    if args.trainer:  # before its file, which is not there either
        one_of("trainer (--trainer)", args.trainer, trainers)
    merge_files(cfg, (args.dataset_config_file, args.config_file))
    reset_cfg(cfg, args)
    if len(args.opts) % 2:
        raise BlackBoxError(f"{len(args.opts)} words at the end are no KEY VALUE pairs.")
    put(cfg, dict(zip(args.opts[::2], args.opts[1::2], strict=True)), "the options")
    if not cfg.TRAINER.NAME:
        raise BlackBoxError(f"No trainer is named: pass --trainer. {nearest('', trainers)}")
    one_of("trainer (--trainer)", cfg.TRAINER.NAME, trainers)
    check_cfg(cfg)
    one_of("data set (DATASET.NAME)", cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    cfg.freeze()
    return cfg


def run(args: argparse.Namespace, log: RunLog, held: ExitStack) -> None:
    """Train or evaluate; `held` gives the output folder back when all has been said."""
    cfg = setup_cfg(args)
    if args.no_train and not args.eval_only:
        cfg = without_folder(cfg)
        print(header(args, cfg))
        trainer = build(cfg)
        asks = getattr(trainer, "counted", False)
        print(f"This run would cost {trainer.describe_cost()}" if asks else NO_QUERIES)
        return
    lock = FolderLock(cfg.OUTPUT_DIR)  # before anything in the folder is read
    held.callback(lock.release)
    log.folder = lock.folder
    if args.skip_done and is_done(args, cfg):
        return
    print(header(args, cfg))
    ignored = sorted(unread(cfg))
    if ignored:
        print(f"Note: {cfg.TRAINER.NAME} does not read {', '.join(ignored)}")
    other = Path(args.config_file).parent.name
    if other != cfg.TRAINER.NAME and other in TRAINER_REGISTRY.registered_names():
        print(f"Note: {args.config_file} is {other}'s, and the trainer is {cfg.TRAINER.NAME}")
    trainer = build(cfg)
    if hasattr(trainer, "lock"):  # which has taken it over
        held.callback(trainer.lock.release)
    evaluate(trainer, args, log) if args.eval_only else train(trainer, log)


def without_folder(cfg: CfgNode) -> CfgNode:
    """The configuration of a run that leaves nothing behind and disturbs no other."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    cfg.freeze()
    return cfg


def is_done(args: argparse.Namespace, cfg: CfgNode) -> bool:
    """Whether the output folder holds what was asked for.

    Raises:
        BlackBoxError: it holds a finished run of other settings, budgets that grew aside.
    """
    folder, config = cfg.OUTPUT_DIR, Path(cfg.OUTPUT_DIR) / "config.yaml"
    if args.eval_only:
        if is_evaluated(folder, header(args, cfg), args.model_dir):
            print(f"{folder} holds this evaluation: skipped")
            return True
        return False
    if not is_finished(folder):
        return False
    if not config.is_file():
        raise BlackBoxError(
            f"{folder} holds a finished run without its config.yaml, which would tell its "
            f"settings. {CURE}"
        )
    differ = differences(*before_and_now(cfg, config))
    if cfg.TRAINER.NAME in ours():
        for key in OF_THE_MODEL:  # which was not asked here, and is compared itself
            differ.pop(f"INPUT.{key}", None)
    if not differ:
        print(f"{folder} holds a finished run of this configuration: skipped{marks(folder)}")
        return True
    if not all(grew(name, *values) for name, values in differ.items()):
        raise BlackBoxError(
            f"{folder} holds a finished run of another configuration ({as_text(differ)}). {CURE}"
        )
    print(f"{folder} holds a finished run of a smaller budget ({as_text(differ)}): it goes on")
    return False


def before_and_now(cfg: CfgNode, config: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Settings of the finished run in the output folder, and of this one.

    A checkpoint tells of training images and a bank's content too. A run without one (zero-shot)
    knows its data by their folder. Where they are gone, there is nothing to compare.
    """
    content, here = read_yaml(config, CURE), counted(values_read(cfg))
    if not leaves(get_cfg_default()).keys() <= leaves(content).keys():
        raise BlackBoxError(f"{config} is damaged: keys of Dassl are missing. {CURE}")
    made = counted(content)
    if not os.path.isdir(os.path.expanduser(cfg.DATASET.ROOT)):
        return made, here
    path = newest(Path(cfg.OUTPUT_DIR) / MODEL)
    extra = load_state(path).get("blackbox", {}) if path else {}
    if "format" not in extra:  # nor does one of version 0.1.0
        folders = content["DATASET"]["ROOT"], cfg.DATASET.ROOT
        then, now = (os.path.realpath(os.path.expanduser(root)) for root in folders)
        return {**made, "DATASET.ROOT": then}, {**here, "DATASET.ROOT": now}
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)  # as before the draw of a run's shots
    with redirect_stdout(io.StringIO()):
        images = training_images(build_dataset(cfg).train_x)
    known = extra["settings"]
    files = {name for name, key in all_keys().items() if key.names_file}
    told = {name: known[name] for name in {IMAGES, *files} & known.keys()}
    return {**made, **told}, with_contents(here, images)


def marks(folder: str) -> str:
    """What is to be said of a finished run, in brackets."""
    run = read_result(folder)
    if run is None or not run.lost_much:
        return ""
    return " (it lost more than a tenth of its training queries)"


def build(cfg: CfgNode) -> TrainerBase:
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    print_environment()
    return build_trainer(cfg)


def evaluate(trainer: TrainerBase, args: argparse.Namespace, log: RunLog) -> None:
    cfg = trainer.cfg  # with the input that the model wants
    trainer.load_model(args.model_dir, epoch=args.load_epoch)
    log.open(cfg.OUTPUT_DIR)
    config = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not config.exists():  # that of a training run stays
        write_atomically(config, cfg.dump().encode())
    trainer.test()
    if getattr(trainer, "counted", False):
        print(trainer.oracle.summary())


def train(trainer: TrainerBase, log: RunLog) -> None:
    cfg = trainer.cfg
    if hasattr(trainer, "check_training"):
        trainer.check_training()
    log.open(cfg.OUTPUT_DIR)
    # before the configuration that the former result is not of
    Path(cfg.OUTPUT_DIR, METRICS).unlink(missing_ok=True)
    write_atomically(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump().encode())
    trainer.train()


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 with a sentence on stderr, 128 + signal, or 70 for a fault of
    ours.

    A sentence is in the log too, where there is one. With DASSL_BLACKBOX_TRACEBACK set, a fault is
    raised instead of being written down.
    """
    os.environ["MPLBACKEND"] = "Agg"  # pycma and Letters import matplotlib, which reads it
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # for a terminal that knows ASCII alone, and a file with both streams in order
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    with RunLog() as log, handled(end), ExitStack() as held:
        try:
            run(args, log, held)
        except (BlackBoxError, DatasetError) as e:
            return report(log, sentence_of(e), 1)
        except OSError as e:
            log.note(traceback.format_exc())
            what = f"{e.filename or 'A file'} cannot be written or read ({e.strerror or e})"
            return report(log, f"{what}. Make room, or choose another --output-dir.", 1)
        except SystemExit as e:
            return e.code if isinstance(e.code, int) else 1
        except Exception as e:
            if os.environ.get("DASSL_BLACKBOX_TRACEBACK"):
                raise
            return report(log, fault(e, log), 70)
    return 0


def end(signum: int, frame: FrameType | None) -> None:
    """Handle a signal: the folder's lock is released on the way out."""
    raise SystemExit(128 + signum)


def report(log: RunLog, sentence: str, status: int) -> int:
    sentence = masked(sentence)
    log.note(f"error: {sentence}")
    with suppress(OSError):
        print(f"error: {sentence}", file=sys.stderr)
    return status


def sentence_of(error: Exception) -> str:
    """The text of an error that the user can mend.

    One that crossed from a loader's worker process has that process's traceback before it.
    """
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].split(f"{type(error).__name__}: ", 1)[-1]
    return printable(" ".join(text.splitlines()))


def fault(error: Exception, log: RunLog) -> str:
    """What is said of an error that nobody foresaw; the traceback goes into the log alone."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    with suppress(OSError):
        log.open(log.folder)
    log.note(traceback.format_exc())
    where = (
        f"the traceback is in {log.path}" if log.path else "DASSL_BLACKBOX_TRACEBACK=1 shows more"
    )
    return (
        f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: "
        f"{first_line(error)}. This is a fault of the program, or of something it uses; {where}."
    )


def parse_args(arguments=None):
    parser = parser_of("train.py", __doc__)
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
        help=(
            "do nothing where the output directory holds a finished run of this configuration; go "
            "on where its budget was smaller"
        ),
    )
    parser.add_argument(
        "opts", default=None, nargs=argparse.REMAINDER, help="KEY VALUE options, at the end"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
