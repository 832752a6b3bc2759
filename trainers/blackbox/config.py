"""The configuration: keys (a method's own stand in its file), YAML files and options, checks."""

import re
import sys
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import reduce
from io import StringIO
from math import inf
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import yaml
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, SequentialLR
from yacs.config import CfgNode

from .errors import BlackBoxError, masked
from .files import read_text
from .oracle.interface import GRANTS

SIZE = 100_000  # of a dimension, a width, a population: a typing error, not memory, ends the run


class Validator(NamedTuple):
    """What a key may hold beside the type of its default: `expects` completes "… is expected"."""

    expects: str
    fits: Callable[[Any], Any] = lambda value: True
    names: tuple[Any, ...] = ()


class Key(NamedTuple):
    """An entry of a table; `about` says what it is."""

    default: Any
    valid: Validator
    about: str
    when: Callable[[Any], Any] = lambda node: True  # whether it is read, by what its node holds
    inferred_with: bool = False  # whether evaluation reads it too, and no checkpoint carries it
    names_file: bool = False  # whether it may be a path, but for `valid.names`; the content counts

    def fits(self, value: Any) -> bool:
        """Whether it can hold the value, which is of the default's type then."""
        kind, kinds = type(self.default), {float: (float, int), tuple: (tuple, list)}
        return type(value) in kinds.get(kind, (kind,)) and bool(self.valid.fits(value))


def where(name: str, value: Any, has: bool = True) -> Callable[[Any], bool]:
    """The condition that another key of the same node has this value, or has not."""
    return lambda node: (node[name] == value) is has


def whole(low: int, high: int = 10**12) -> Validator:
    return Validator(f"a whole number from {low:,} to {high:,}", lambda n: low <= n <= high)


def number(
    low: float = -inf, high: float = 1e9, *, above: float = -inf, below: float = inf
) -> Validator:
    """Numbers from `low` to `high`, or strictly `above` and `below`; none is infinite."""
    least = f"above {above:g}" if above > -inf else f"of {low:g} or more"
    most = f"below {below:g}" if below < inf else f"at most {high:g}"
    expects = f"a number {least} and {most}"
    return Validator(expects, lambda value: low <= value <= high and above < value < below)


def one(*names: Any) -> Validator:
    return Validator(" or ".join(map(repr, names)), lambda value: value in names, names)


def flag() -> Validator:
    return Validator("True or False")


def text(*names: str) -> Validator:
    """Text that a log and a file's name can hold; some of it has a meaning of its own."""
    return Validator("text in UTF-8", re.compile("[^\0\ud800-\udfff]*").fullmatch, names)


def is_url(value: str) -> bool:
    """Whether it is nothing, or a service's URL without a secret or key, which logs would show."""
    address = r"(https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?([/?#]\S*)?)?"
    plain, sound = unquote(value), re.fullmatch(address, value) and text().fits(value)
    return bool(sound) and masked(plain) == plain and not re.search(r"\b(sk-|hf_|eyJ)\w", value)


LOCAL, REMOTE = where("URL", ""), where("URL", "", False)
OUR_SERVER, SERVICE = where("API", "blackbox"), where("API", "blackbox", False)
URL = Validator("a URL without user, password or key (see BLACKBOX_KEY), http(s)://…,", is_url)
SPOKEN = re.compile(r"blackbox|openai|hf|[^\W\d][\w.]*:\w+")
API = Validator("blackbox, openai, hf or module:Class", SPOKEN.fullmatch)
LET_IN = Validator(f"a tuple out of {', '.join(GRANTS)}", set(GRANTS).issuperset)
# where the model is, and what its owner lets in and out; a service's key is in BLACKBOX_KEY
ACCESS = {
    "PREC": Key("fp32", one("fp32", "fp16", "bf16", "amp"), "precision; amp: autocast", LOCAL),
    "GRANTS": Key(("contexts", "logits"), LET_IN, "let in or out", LOCAL),
    "FEATURES": Key("", text(), "folder where probes share image features; empty: none", LOCAL),
    "TOP_K": Key(0, whole(0), "k largest log-probabilities; 0: logits", OUR_SERVER, True),
    "URL": Key("", URL, "of a service that holds the model; empty: it is in this process"),
    # a class of one's own may do without a URL
    "API": Key("blackbox", API, "what it speaks", lambda node: node.URL or ":" in node.API),
    "TIMEOUT": Key(60.0, number(above=0), "seconds without a byte before a new try", REMOTE),
    "PATIENCE": Key(300.0, number(0), "seconds before a request is given up", REMOTE),
    "LOGIT_SCALE": Key(100.0, number(above=0), "of CLIP: logits = scale x cosine", SERVICE, True),
    "IMAGES": Key("modality", one("modality", "items", "data_uri"), "in openai's JSON", SERVICE),
    "BATCH": Key(32, whole(1), "pictures or texts of one call (Infinity: 32)", SERVICE),
    "THREADS": Key(8, whole(1, 100), "calls at a time, about a picture or texts", SERVICE),
    "PRICE": Key(0.0, number(0), "of a picture, in money; 0: no bill in money", SERVICE),
    "PRICE_TOKENS": Key(0.0, number(0), "of a million tokens, as the service tells them", SERVICE),
    "CACHE": Key("~/.cache/dassl-blackbox", text(), "folder of answers; empty: none", SERVICE),
}
KEYS = {
    "DATASET.SUBSAMPLE_CLASSES": Key("all", one("all", "base", "new"), "CoOp's: those in use"),
    "INPUT.CACHE_MB": Key(2048, whole(0), "memory for decoded training pictures; 0: none is kept"),
    "INPUT.VIEWS": Key(0, whole(0), "augmented views of a picture, in turn; 0: ever new ones"),
    **{f"ORACLE.{name}": key for name, key in ACCESS.items()},
    # a query is one candidate on one batch of at most 128 images
    "ORACLE.MAX_QUERIES": Key(5000, whole(0), "training budget in queries; 0: no limit"),
    "ORACLE.MAX_IMAGE_QUERIES": Key(0, whole(0), "the same in candidates x images; 0: no limit"),
    "ORACLE.SAVE_EVERY": Key(500, whole(0), "queries between checkpoints; 0: tenths alone"),
    "ORACLE.VAL_EVERY": Key(0, whole(0), "queries between looks at val (val_curve.csv); 0: never"),
}
DOMAINS = Validator(
    "a tuple of domains' names (options KEY VALUE that follow such a flag become its own)",
    lambda names: not any(re.fullmatch(r"[A-Z_]+(\.[A-Z0-9_]+)+", str(name)) for name in names),
)
NAMED = "a name (pass --{} configs/{}.yaml)"
# Dassl's own keys whose wrong value it would take in silence, or name by its line of code alone
HOST = {
    "OUTPUT_DIR": text(),
    "SEED": whole(-(2**31), 2**32 - 1),  # negative: every run another, as in Dassl
    "DATASET.NAME": Validator(NAMED.format("dataset-config-file", "datasets/digits"), bool),
    "DATASET.SOURCE_DOMAINS": DOMAINS,
    "DATASET.TARGET_DOMAINS": DOMAINS,
    "DATASET.NUM_SHOTS": Validator("-1 (all images), or 1 or more", lambda n: n == -1 or n > 0),
    # others leave images out, or take them twice
    "DATALOADER.TRAIN_X.SAMPLER": one("RandomSampler", "SequentialSampler"),
    "DATALOADER.TEST.SAMPLER": one("RandomSampler", "SequentialSampler"),
    # these trainers take one view of a picture as pixels, and a trained model, and have own heads
    "DATALOADER.K_TRANSFORMS": one(1),
    "DATALOADER.RETURN_IMG0": one(False),
    "INPUT.NO_TRANSFORM": one(False),
    "MODEL.INIT_WEIGHTS": Validator("nothing (MODEL.BACKBONE.NAME may be a path)", lambda p: not p),
    "MODEL.BACKBONE.PRETRAINED": one(True),
    "MODEL.HEAD.NAME": one(""),
    "OPTIM.LR": number(above=0),
    "OPTIM.STAGED_LR": one(False),
    "OPTIM.MAX_EPOCH": whole(1),
    "TRAIN.PRINT_FREQ": whole(1),
    "TEST.SPLIT": one("test", "val"),
    "TEST.FINAL_MODEL": one("last_step", "best_val"),
}
# CoOp's names of trainers' files, which are `vit_b16.yaml` with another backbone
BACKBONES = {"vit_b32": "ViT-B/32", "vit_l14": "ViT-L/14", "rn50": "RN50", "rn101": "RN101"}
SLOT = re.compile(r"([^{}\0\ud800-\udfff]*\{\}[^{}\0\ud800-\udfff]*)?")
TEMPLATE = Validator("text with exactly one slot {}, or nothing,", SLOT.fullmatch)
# of a method that reads class texts without a context
TEMPLATE_KEYS = {"TEMPLATE": Key("", TEMPLATE, "of class texts; '': the set's", inferred_with=True)}
# of SPSA and its gains; the momentum, `BETA`, stands with the method
SPSA_KEYS = {
    "SP_AVG": Key(5, whole(1, SIZE), "perturbations averaged in a step, two queries each"),
    "O": Key(1.0, number(above=-1), "step size a_k = A / (k + O) ** ALPHA"),
    "C": Key(0.01, number(above=0), "perturbation scale c_k = C / k ** GAMMA"),
    "A": Key(0.01, number(above=0), "numerator of the step size"),
    "ALPHA": Key(0.4, number(0, 10), "its exponent"),
    "GAMMA": Key(0.1, number(0, 10), "exponent of the perturbation scale"),
}
SET_HERE = {"popsize", "seed", "randn"}
CMA_OPTIONS = Validator(
    "a list of pairs [key, value, ...] of pycma's options, but popsize, seed and randn",
    lambda items: len(items) % 2 == 0 and SET_HERE.isdisjoint(map(str, items[::2])),
)
CMA_KEYS = {
    "SIGMA": Key(1.0, number(above=0), "step size that CMA-ES starts with"),
    "COVARIANCE": Key("full", one("full", "diagonal", "vd", "vkd"), "model of the covariance"),
    "CMA_OPTIONS": Key((), CMA_OPTIONS, "further options of pycma, [key, value, ...]"),
}


def build_schedule(optimizer: Optimizer, optim: CfgNode) -> LRScheduler:
    """Dassl's, whose warm-up does not run with torch >= 2.7: a constant rate, then a cosine."""
    if optim.WARMUP_EPOCH <= 0:
        return CosineAnnealingLR(optimizer, optim.MAX_EPOCH)
    warm_up = ConstantLR(optimizer, optim.WARMUP_CONS_LR / optim.LR, total_iters=optim.WARMUP_EPOCH)
    cosine = CosineAnnealingLR(optimizer, optim.MAX_EPOCH)
    return SequentialLR(optimizer, [warm_up, cosine], milestones=[optim.WARMUP_EPOCH])


def register_trainer(cls: Any) -> Any:
    """Class decorator: register with Dassl, unless a trainer of that name is registered already."""
    name = cls.__name__
    if name not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register(cls)
    elif name not in ours():  # else it is installed *and* copied into a fork
        owner = TRAINER_REGISTRY.get(name).__module__
        print(f"Note: {owner} has a trainer named {name}; ours is left out", file=sys.stderr)
    return cls


def ours() -> dict[str, Any]:
    """The trainers of this project that are registered, by name."""
    found = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return {name: cls for name, cls in found.items() if hasattr(cls, "reads")}


def node_of(trainer: type) -> str:
    """The node under TRAINER that holds a trainer's keys; without keys of its own, its parent's."""
    owner = next((cls for cls in trainer.__mro__ if vars(cls).get("keys")), trainer)
    return vars(owner).get("node", owner.__name__.upper())


def all_keys() -> dict[str, Key]:
    """Our keys by full name: `KEYS`, and what each trainer brings in its own file as `keys`."""
    own = {f"TRAINER.{node_of(cls)}.": cls.keys for cls in ours().values()}
    return KEYS | {node + name: key for node, keys in own.items() for name, key in keys.items()}


def extend_cfg(cfg: CfgNode) -> CfgNode:
    """Add our nodes to a Dassl configuration, in place; what it has of them already stays."""
    for name, entry in all_keys().items():
        node, key = place_of(cfg, name)
        node.setdefault(key, entry.default)
    return cfg


def defaults() -> CfgNode:
    return extend_cfg(get_cfg_default())


def place_of(cfg: CfgNode, name: str) -> tuple[CfgNode, str]:
    """The node that holds a key, made where there is none, and the key's name in it."""
    *sections, key = name.split(".")
    return reduce(lambda node, part: node.setdefault(part, CfgNode()), sections, cfg), key


def leaves(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries, such as a configuration, as {"ORACLE.PREC": "fp32", …}."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


class StrictLoader(yaml.SafeLoader):
    """YAML's plain values; a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(None, None, f"{name} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, cure: str) -> dict[Any, Any]:
    """The mapping in a YAML file; the error of one that is none, or no YAML, ends with `cure`."""
    stream = StringIO(read_text(path, cure))  # of which errors quote no line, with a password
    try:
        content = yaml.load(stream, StrictLoader)
        if not isinstance(content, dict) or not leaves(content):  # which an alias of itself ends
            raise ValueError("it has no sections of keys")
    except Exception as e:  # YAML's errors, and what odd numbers, dates and nesting raise
        raise BlackBoxError(f"{path} is not YAML ({' '.join(str(e).split())}). {cure}") from e
    return content


def merge_files(cfg: CfgNode, paths: Iterable[str]) -> None:
    """Put the values of YAML files into a configuration, one after the other; "" is no file."""
    for path in map(Path, filter(None, paths)):
        cure = "A configuration is a YAML file such as those in configs/."
        base, given = path.with_name("vit_b16.yaml"), {}
        if not path.is_file() and base.is_file() and path.stem in BACKBONES:
            path, given = base, {"MODEL.BACKBONE.NAME": BACKBONES[path.stem]}
        if not path.is_file():
            folder = next(place for place in (path, *path.parents) if place.is_dir())
            names = sorted(file.name for file in folder.glob("*.yaml"))
            cure += f" {folder} has {', '.join(names) or 'none'}."
        put(cfg, leaves(read_yaml(path, cure)) | given, str(path))


def pairs(words: Sequence[str]) -> dict[str, str]:
    """Options KEY VALUE, by key."""
    if len(words) % 2:
        raise BlackBoxError(f"{len(words)} words at the end are no KEY VALUE pairs.")
    return dict(zip(words[::2], words[1::2], strict=True))


def put(cfg: CfgNode, given: Mapping[str, Any], source: str) -> None:
    """Set keys by full name. Text that is a literal is read as one; a float's 1 becomes 1.0."""
    known = leaves(cfg)
    for name, value in given.items():
        if name not in known:
            close = get_close_matches(name.upper()[:100], known, n=1)
            hint = "".join(f" Did you mean {near}?" for near in close)
            raise BlackBoxError(f"There is no key '{masked(name)}' (in {source}).{hint}")
        kind = type(known[name])
        with suppress(Exception):  # it is no literal, or too large for a float
            literal = literal_eval(value) if isinstance(value, str) else value
            # braces are the slot of a template, or no value of any key
            value = value if isinstance(literal, (dict, set)) else literal
            if (type(value), kind) in ((int, float), (list, tuple), (tuple, list)):
                value = kind(value)
        node, key = place_of(cfg, name)
        node[key] = value


def table(cfg: CfgNode) -> dict[str, Key]:
    """Dassl's keys and ours, as the trainer that is named takes them, by full name."""
    trainer, valid = cfg.TRAINER.NAME, dict(HOST)
    running, file = ours().get(trainer), NAMED.format("config-file", f"trainers/{trainer}/tiny")
    valid["MODEL.BACKBONE.NAME"] = Validator(file, bool)
    if running and "OPTIM" in running.reads:  # a cosine that begins after the warm-up
        valid |= {"OPTIM.LR_SCHEDULER": one("cosine"), "OPTIM.WARMUP_RECOUNT": one(True)}
        if cfg.OPTIM.WARMUP_EPOCH not in (-1, 0):
            valid["OPTIM.WARMUP_TYPE"] = one("constant")
    valid |= getattr(running, "host", {})
    return {
        name: Key(default, valid.get(name, Validator(f"a value such as {default!r}")), "Dassl's")
        for name, default in leaves(get_cfg_default()).items()
    } | all_keys()


def check_cfg(cfg: CfgNode) -> None:
    """Raise at the first key with a blank value, of a wrong type or out of its range."""
    given = leaves(cfg)
    for name, key in table(cfg).items():
        value = given.get(name, key.default)
        if not key.fits(value):
            plain = masked(value) if isinstance(value, str) else value  # quotes would hide an end
            told = masked(repr(plain)) if name != "ORACLE.URL" else "not shown here (a secret?)"
            raise BlackBoxError(f"{name} is {told}; {key.valid.expects} is expected.")


def values_read(cfg: CfgNode) -> dict[str, Any]:
    """What the run reads, by full name; a trainer that is not ours reads everything."""
    running, keys, read = ours().get(cfg.TRAINER.NAME), all_keys(), leaves(cfg)
    nodes = {"TRAINER", f"TRAINER.{node_of(running)}", *running.reads} if running else set()
    for name in list(read) if running else ():
        named = name.startswith(("OPTIM.", "ORACLE.", "TRAINER."))
        unread = named and not nodes & {name, name.rpartition(".")[0]}
        if unread or (name in keys and not keys[name].when(place_of(cfg, name)[0])):
            del read[name]
    return read
