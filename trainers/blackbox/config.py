"""The configuration: keys that all methods share, what they may hold, and what a run reads of them.

A method's own keys stand in its file, as `keys` of the trainer. A data-set YAML, a trainer YAML and
options of the command line are put over the defaults in turn, and every value is checked before
anything is loaded.
"""

from __future__ import annotations

import os
import re
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import reduce
from operator import attrgetter
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from yacs.config import CfgNode

from .errors import BlackBoxError
from .keys import (
    Key,
    Validator,
    did_you_mean,
    is_text,
    number,
    one,
    only,
    several,
    shown,
    text,
    url,
    where,
    whole,
)
from .oracle.interface import GRANTS
from .reading import read_yaml
from .registry import node_of, ours

APIS = ("blackbox", "openai", "hf")
# keys that there were, and what to give in their place
GONE = {
    "TRAINER.SONAR.PROBES": "TRAINER.SONAR.TEXTS is the number of further texts, whatever that of "
    "the classes; 0 is the head alone."
}
CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_service(node: Any) -> bool:
    """Whether it is another service than our own server."""
    return bool(node.URL) and node.API != "blackbox"


def is_spoken_to(node: Any) -> bool:
    """Whether `API` says what is asked; a class of one's own may do without a URL."""
    return bool(node.URL) or ":" in node.API


def lets_out(node: Any) -> bool:
    """Whether what is let out is as `TOP_K` says: services give all that they are asked about."""
    return not is_service(node)


LOCAL, REMOTE = where("URL", ""), attrgetter("URL")
API = Validator(
    f"one of {', '.join(APIS)}, or module:Class",
    lambda value: is_text(value) and (value in APIS or bool(CLASS.fullmatch(value))),
    APIS,
)
# Where the model is, and what its owner lets in and out; the key of a service is in the environment
# variable BLACKBOX_KEY
ACCESS = {
    "PREC": Key("fp32", one("fp32", "fp16", "bf16", "amp"), "precision; amp: autocast", LOCAL),
    "GRANTS": Key(
        ("contexts", "logits"),
        several(one(*GRANTS), f"a tuple of names out of {', '.join(GRANTS)}"),
        "what the model's owner lets out or in",
        LOCAL,
    ),
    "TOP_K": Key(
        0, whole(0), "0: logits; k: an image's k largest log-probabilities", lets_out, True
    ),
    "URL": Key("", url(), "of a service that holds the model; empty: it is in this process"),
    "API": Key("blackbox", API, "what it speaks: blackbox is our own server", is_spoken_to),
    "TIMEOUT": Key(60.0, number(above=0), "seconds without a byte before a new try", REMOTE),
    "PATIENCE": Key(300.0, number(0), "seconds before a request is given up", REMOTE),
    # for OpenAI's and OpenCLIP's CLIP models; no service tells it
    "LOGIT_SCALE": Key(100.0, number(above=0), "logits = scale x cosine", is_service, True),
    "IMAGES": Key(
        "modality", one("modality", "items", "data_uri"), "an image in openai's JSON", is_service
    ),
    "BATCH": Key(32, whole(1), "pictures or texts of one call (Infinity: 32)", is_service),
    "THREADS": Key(8, whole(1, 100), "calls at a time, if each is about a picture", is_service),
    "PRICE": Key(0.0, number(0), "of a picture, in money; 0: no bill in money", is_service),
    "CACHE": Key("~/.cache/dassl-blackbox", text(), "folder of answers; empty: none", is_service),
}
WHERE = tuple(f"ORACLE.{key}" for key in ACCESS)
KEYS: dict[str, Mapping[str, Key]] = {
    "DATASET": {
        "SUBSAMPLE_CLASSES": Key("all", one("all", "base", "new"), "CoOp's: classes in use"),
    },
    "INPUT": {
        "CACHE_MB": Key(2048, whole(0), "memory for decoded training pictures; 0: none is kept"),
        # they take turns by epoch: once all were met, nothing is encoded again
        "VIEWS": Key(0, whole(0), "augmented views of a training picture; 0: ever new ones"),
    },
    # A query is one candidate on one batch of at most 128 images.
    "ORACLE": {
        **ACCESS,
        "MAX_QUERIES": Key(5000, whole(0), "training budget in queries; 0: no limit"),
        "MAX_IMAGE_QUERIES": Key(0, whole(0), "the same in candidates x images; 0: no limit"),
        # besides, every tenth of a run is saved
        "SAVE_EVERY": Key(500, whole(0), "queries between checkpoints; 0: no more than the tenths"),
        "VAL_EVERY": Key(0, whole(0), "queries between looks at val (val_curve.csv); 0: never"),
    },
}


def named_in_file(flag: str) -> Validator:
    """A name that a configuration file gives; mostly the file was forgotten."""
    expects = f"a name (pass {flag}, or another file of that folder)"
    return Validator(expects, lambda value: is_text(value) and bool(value.strip()))


DOMAINS = several(
    text(),
    "a tuple of domains' names (options KEY VALUE that follow such a flag become its own)",
    lambda names: not any(re.fullmatch(r"[A-Z_]+(\.[A-Z0-9_]+)+", name) for name in names),
)
# Dassl's own keys whose wrong value it would take in silence, or name by its line of code alone;
# what its loaders refuse is said there
HOST = {
    "OUTPUT_DIR": text(),
    "SEED": whole(-(2**31), 2**32 - 1),  # negative: every run another, as in Dassl
    "DATASET.NAME": named_in_file("--dataset-config-file configs/datasets/digits.yaml"),
    "DATASET.SOURCE_DOMAINS": DOMAINS,
    "DATASET.TARGET_DOMAINS": DOMAINS,
    "DATASET.NUM_SHOTS": Validator(
        "-1 (all images) or a whole number of 1 or more",
        lambda value: type(value) is int and (value == -1 or value > 0),
    ),
    "DATALOADER.K_TRANSFORMS": only(1, "these trainers take one view of a picture"),
    "DATALOADER.RETURN_IMG0": only(False, "these trainers take one view of a picture"),
    # others leave images out, or take them twice
    "DATALOADER.TEST.SAMPLER": one("RandomSampler", "SequentialSampler"),
    "INPUT.NO_TRANSFORM": only(False, "a model takes pixels, not pictures"),
    "MODEL.INIT_WEIGHTS": only("", "MODEL.BACKBONE.NAME takes the path of a checkpoint"),
    "MODEL.BACKBONE.PRETRAINED": only(True, "what is adapted is a trained model"),
    "MODEL.HEAD.NAME": only("", "heads have keys of their own here"),
    "OPTIM.LR": number(above=0),
    "OPTIM.SGD_DAMPNING": number(0, 1),  # whose default is a whole number
    "OPTIM.STAGED_LR": only(False, "a prompt has no layers"),
    "OPTIM.MAX_EPOCH": whole(1),
    "TRAIN.PRINT_FREQ": whole(1),
    "TEST.SPLIT": one("test", "val"),
    "TEST.FINAL_MODEL": one("last_step", "best_val"),
}


def all_keys() -> dict[str, Key]:
    """Our keys by full name: `KEYS`, and what each trainer brings in its own file as `keys`."""
    own = {f"TRAINER.{node_of(cls)}": cls.keys for cls in ours().values()}
    return {
        f"{node}.{key}": entry
        for node, keys in {**KEYS, **own}.items()
        for key, entry in keys.items()
    }


def extend_cfg(cfg: CfgNode) -> None:
    """Add our nodes to a Dassl configuration, in place. Calling it twice changes nothing."""
    if "ORACLE" in cfg:
        return
    for name, entry in all_keys().items():
        *sections, key = name.split(".")
        node = node_at(cfg, sections)
        if key != "SUBSAMPLE_CLASSES" or key not in node:  # a fork has it, as CoOp does
            node[key] = deepcopy(entry.default)


def defaults() -> CfgNode:
    """Dassl's configuration with our nodes."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


def node_at(cfg: CfgNode, sections: Iterable[str]) -> CfgNode:
    """The node below a configuration that the sections lead to; it is made where there is none."""
    return reduce(lambda node, part: node.setdefault(part, CfgNode()), sections, cfg)


def leaves(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries, such as a configuration, as {"ORACLE.PREC": "fp32", …}."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


# ---------------------------------------------------------------------- files and options


def merge_files(cfg: CfgNode, paths: Iterable[str]) -> None:
    """Put the values of YAML files into a configuration, one after the other; "" is no file.

    Raises:
        BlackBoxError: a file that cannot be read or is no YAML, or an unknown key.
    """
    for path in filter(None, paths):
        cure = f"A configuration is a YAML file such as those in configs/.{beside(Path(path))}"
        put(cfg, leaves(read_yaml(path, cure)), f"in {path}")


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Put `KEY VALUE` pairs of a command line into a configuration.

    Raises:
        BlackBoxError: a key without a value, or an unknown one.
    """
    names, values = options[::2], options[1::2]
    odd = [name for name in names if name.startswith("--")] or names[len(values) :]
    if odd:
        raise BlackBoxError(
            f"{shown(odd[0])} is a key without a value, or a flag, among the {len(options)} words "
            f"at the end; KEY VALUE pairs are expected there, and flags before them."
        )
    put(cfg, dict(zip(names, values, strict=True)), "in the options")


def put(cfg: CfgNode, given: Mapping[str, Any], place: str) -> None:
    """Set keys by full name, as yacs does: text that is a Python literal is read as one.

    A whole number becomes a float, a list a tuple where the default is one; `check_cfg` refuses
    other types.
    """
    known = leaves(cfg)
    for name, value in given.items():
        if name not in known:
            if name in GONE:
                raise BlackBoxError(f"There is no key {name} any more ({place}). {GONE[name]}")
            raise BlackBoxError(
                f"There is no key {shown(name)} ({place})."
                f"{did_you_mean(name.upper()[:100], known, most=2)} Keys are those of Dassl, of "
                f"trainers/blackbox/config.py, and `keys` of the methods in trainers/."
            )
        default = known[name]
        if isinstance(value, str):
            value = decoded(value)
        if type(default) is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        elif isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
            value = type(default)(value)
        *sections, key = name.split(".")
        node_at(cfg, sections)[key] = value


def decoded(text: str) -> Any:
    try:
        value = literal_eval(text)
    except Exception:  # ValueError or SyntaxError; and others where text is deep or long
        return text
    # braces are the slot of a template, or no value of any key
    return text if isinstance(value, (dict, set)) else value


def beside(path: Path) -> str:
    """What was meant, perhaps, where this is no file: the same words, case and signs aside."""
    if path.is_dir():
        inside = ", ".join(sorted(near.name for near in path.glob("*.yaml")))
        return f" Name a file of that folder: {inside}." if inside else ""
    if os.path.lexists(path):
        return ""

    def plain(path: Path) -> str:
        return re.sub(r"\.yaml|[\W_]", "", str(path).lower())

    folder = next(parent for parent in path.parents if parent.is_dir())
    files = [*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]
    there = {plain(file.relative_to(folder)): file for file in files}
    for wanted in (path.relative_to(folder), Path(path.name)):
        if close := get_close_matches(plain(wanted), there, n=1, cutoff=0.85):
            return f" Did you mean {there[close[0]]}?"
    return ""


# ---------------------------------------------------------------------- checks


def like(default: Any) -> Validator:
    """Values of the type of a default; any where there is none."""
    kinds = {float: (float, int), tuple: (list, tuple), list: (list, tuple)}
    kind = kinds.get(type(default), type(default))
    return Validator(
        f"a value such as {default!r}", lambda value: default is None or isinstance(value, kind)
    )


def validators(cfg: CfgNode) -> dict[str, Validator]:
    """What our keys and Dassl's may hold where the trainer that is named runs, by full name."""
    trainer = cfg.TRAINER.NAME
    known = {name: like(default) for name, default in leaves(get_cfg_default()).items()} | HOST
    known |= {name: entry.valid for name, entry in all_keys().items()}
    file = f"--config-file configs/trainers/{trainer}/tiny.yaml"
    known["MODEL.BACKBONE.NAME"] = named_in_file(file)
    running = ours().get(trainer)
    if running and running.scheduled:
        known["OPTIM.LR_SCHEDULER"] = one("cosine")
        known["OPTIM.WARMUP_RECOUNT"] = only(True, "the cosine begins after the warm-up")
        if cfg.OPTIM.WARMUP_EPOCH not in (-1, 0):
            known["OPTIM.WARMUP_TYPE"] = one("constant")
    if running and running.optimizers:
        known["OPTIM.NAME"] = one(*running.optimizers)
    return known


def check_cfg(cfg: CfgNode) -> None:
    """Look at every key that our trainers read, before anything is loaded.

    Raises:
        BlackBoxError: a blank value, a wrong type, a value out of its range. The first one is
            named, with what is expected.
    """
    known = validators(cfg)
    for name, value in leaves(cfg).items():
        if name in known and not known[name].fits(value):
            raise BlackBoxError(known[name].sentence(name, value))


# ---------------------------------------------------------------------- what a run reads


def reads(trainer: str, name: str) -> bool:
    """Whether a trainer ever reads a key: of OPTIM, ORACLE and TRAINER its own, and all others.

    A trainer that is not ours reads everything, as far as is known.
    """
    running, node = ours().get(trainer), name.rpartition(".")[0]
    if running is None or not name.startswith(("OPTIM.", "ORACLE.", "TRAINER.")):
        return True
    own = ("OPTIM",) if running.scheduled else ()
    return bool({name, node} & {"TRAINER", f"TRAINER.{node_of(running)}", *running.reads, *own})


def without_effect(cfg: CfgNode) -> set[str]:
    """The keys that the run does not read with the other settings as they are."""
    keys, trainer = all_keys(), cfg.TRAINER.NAME

    def is_on(name: str) -> bool:
        return name not in keys or keys[name].when(node_at(cfg, name.split(".")[:-1]))

    names = leaves(cfg) if trainer in ours() else ()
    return {name for name in names if not (reads(trainer, name) and is_on(name))}


def changed(cfg: CfgNode) -> set[str]:
    """Names of keys that are not at their default."""
    before = leaves(defaults())
    return {name for name, value in leaves(cfg).items() if before.get(name, value) != value}


QUIET = "INPUT.", "DATALOADER.TRAIN_U.", "MODEL.HEAD."  # told where it is not at its default


def unread(cfg: CfgNode) -> list[str]:
    """Names of keys that were set and have no effect on the run."""
    return sorted(without_effect(cfg) & changed(cfg))


def in_use(cfg: CfgNode) -> dict[str, Any]:
    """What one of our trainers reads; of INPUT, what is not at its default."""
    hidden, told = without_effect(cfg), changed(cfg)
    return {
        name: value
        for name, value in leaves(cfg).items()
        if name not in hidden and (name in told or not name.startswith(QUIET))
    }
