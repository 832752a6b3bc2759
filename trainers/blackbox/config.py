"""Every key of the project: its default, what it may hold, and what it is."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from dassl.config import get_cfg_default
from yacs.config import CfgNode

from .hostkeys import conflicts, host_rules
from .keys import (
    SIZE,
    Key,
    Rule,
    cma_options,
    distinct,
    flag,
    number,
    one,
    several,
    template,
    text,
    whole,
)
from .registry import ours
from .run.errors import BlackBoxError

# rules that several methods share
tokens, size, positive = whole(1, 1000), whole(1, SIZE), number(above=0)
space, covariance = one("context", "lowrank", "projection"), one("full", "diagonal", "vd", "vkd")
dampings = several(
    positive,
    "a tuple of one or more numbers above 0",
    range(1, 101),
    [(1.0,), [0.1, 10.0]],
    [(0.0,), (1.0, -1.0), 1.0, ("1.0",)],
)

# ZIP's defaults are those of the paper's few-shot scripts (ICLR 2025), WHITEBOX's are CoOp's.
KEYS: dict[str, dict[str, Key]] = {
    "DATASET": {
        "SUBSAMPLE_CLASSES": Key(
            "all", one("all", "base", "new"), "CoOp's key: which classes are used"
        ),
    },
    "INPUT": {
        "CACHE_MB": Key(2048, whole(0), "memory for decoded training pictures; 0: none is kept"),
        # CACHE_MB of them; others are decoded at every use
        "CROP_ON_DEVICE": Key(
            False, flag(), "keep and crop training pictures where they are encoded"
        ),
        # they take turns by epoch: once all were met, nothing is encoded again
        "VIEWS": Key(0, whole(0), "augmented views of a training picture; 0: ever new ones"),
    },
    # A query is one candidate on one batch of at most 128 images.
    "ORACLE": {
        "PREC": Key("fp32", one("fp32", "fp16", "bf16", "amp"), "precision; amp: autocast"),
        "GRANTS": Key(
            ("contexts", "logits"),
            distinct("contexts", "image_tokens", "logits", "features"),
            "what the model's owner lets out or in",
        ),
        "TOP_K": Key(0, whole(0), "0: logits; k: only an image's k largest log-probabilities"),
        "MAX_QUERIES": Key(5000, whole(0), "training budget in queries; 0: no limit"),
        "MAX_IMAGE_QUERIES": Key(0, whole(0), "the same in candidates x images; 0: no limit"),
        # besides, every tenth of a run is saved
        "SAVE_EVERY": Key(500, whole(0), "queries between checkpoints; 0: no more than the tenths"),
        "VAL_EVERY": Key(0, whole(0), "queries between looks at val (val_curve.csv); 0: never"),
    },
    "TRAINER.ZIP": {
        "N_CTX": Key(8, tokens, "context tokens n (ignored where CTX_INIT gives words)"),
        "CTX_INIT": Key("", text(), "words to start from; empty: random, N(0, 0.02^2)"),
        "SPACE": Key("lowrank", space, "prompt space"),
        "ID": Key(500, whole(1, 10**7), "intrinsic dimension; a token gets m = ID // n numbers"),
        "RANK": Key(5, size, "rank r of the low-rank part"),
        "RULE": Key("spsa-clip", one("spsa-clip", "spsa-gc", "spsa"), "update rule"),
        "SP_AVG": Key(5, size, "perturbations averaged in a step, two queries each"),
        "O": Key(1.0, number(above=-1), "step size a_k = A / (k + O) ** ALPHA"),
        "C": Key(0.01, positive, "perturbation scale c_k = C / k ** GAMMA"),
        "A": Key(0.01, positive, "numerator of the step size"),
        "ALPHA": Key(0.4, number(0, 10), "its exponent"),
        "GAMMA": Key(0.1, number(0, 10), "exponent of the perturbation scale"),
        "BETA": Key(0.8, number(0, below=1), "momentum of spsa-gc"),
    },
    "TRAINER.CBBT": {
        "N_CTX": Key(1, tokens, "context tokens n (ignored where CTX_INIT gives words)"),
        "CTX_INIT": Key("a", text(), "words to start from; empty: random, N(0, 0.02^2)"),
        "SPACE": Key(
            "context", space, "prompt space (sizes of lowrank: ZIP's, projection: CRAFT's)"
        ),
        "Q": Key(256, size, "random directions of a step, which costs Q + 1 queries"),
        "CLIP": Key(5.0, positive, "largest norm of the gradient estimate"),
        "ADAPTER": Key(False, flag(), "train an adapter on image features too (grant features)"),
        "ADAPTER_RATIO": Key(0.2, number(0, 1), "share of its output in the feature"),
        "ADAPTER_WIDTH": Key(0.25, number(above=0, high=100), "hidden width / feature's width"),
        "ADAPTER_EPOCH": Key(10, whole(0), "epochs of the prompt alone before it joins"),
    },
    "TRAINER.CRAFT": {
        "N_CTX": Key(4, tokens, "context tokens n (ignored where CTX_INIT gives words)"),
        "CTX_INIT": Key("a photo of a", text(), "words to start from; empty: random"),
        "SPACE": Key("projection", space, "prompt space (sizes of lowrank: ZIP's)"),
        "DIM": Key(512, size, "length of the vector z that is projected"),
        "STD": Key(0.2, positive, "deviation of the projection's entries"),
        "SIGMA": Key(1.0, positive, "step size that CMA-ES starts with"),
        "BOUND": Key(5.0, number(0), "bounds of z, plus and minus; 0: none"),
        "POPULATION": Key(40, whole(2, SIZE), "candidates of a generation"),
        "LAMBDA": Key(0.1, number(0), "weight of the KL terms"),
        "KL_PART": Key(
            4, whole(1), "the head's KL term is on for the first 1 / KL_PART of the run"
        ),
        "HEAD": Key(True, flag(), "train the prediction refinement"),
        "HEAD_WIDTH": Key(256, size, "its hidden width"),
        "HEAD_LR": Key(1e-3, positive, "its learning rate (Adam)"),
        "HEAD_BATCH": Key(256, size, "its batch"),
        "COVARIANCE": Key("full", covariance, "model of the covariance"),
        "CMA_OPTIONS": Key([], cma_options(), "further options of pycma, [key, value, ...]"),
    },
    "TRAINER.BPTVLM": {
        "N_CTX": Key(8, tokens, "text tokens n_L (ignored where CTX_INIT gives words)"),
        "CTX_INIT": Key("", text(), "words that the projection is added to; empty: zeros"),
        "N_IMAGE": Key(5, whole(0, 1000), "image tokens n_V (grant image_tokens); 0: text alone"),
        "DIM_TEXT": Key(500, size, "d_L"),
        "DIM_IMAGE": Key(500, size, "d_V"),
        "SIGMA": Key(1.0, positive, "step size that CMA-ES starts with"),
        "POPULATION": Key(30, whole(2, SIZE), "candidates of a generation"),
        "LOSS": Key("ce", one("ce", "focal"), "focal: with gamma 2"),
        "COVARIANCE": Key("full", covariance, "model of the covariance"),
        "CMA_OPTIONS": Key([], cma_options(), "further options of pycma, [key, value, ...]"),
    },
    "TRAINER.JOLT": {
        "N_CTX": Key(4, tokens, "context tokens n (ignored where CTX_INIT gives words)"),
        "CTX_INIT": Key("a photo of a", text(), "words to start from; empty: random"),
        "SPACE": Key(
            "context", space, "prompt space (sizes of lowrank: ZIP's, projection: CRAFT's)"
        ),
        "DIRECTIONS": Key(64, whole(8, SIZE), "directions m of a step's subspace"),
        # a proposal each: a step costs 1 + their number + m queries
        "DAMPINGS": Key((0.1, 1.0, 10.0), dampings, "factors of the damping"),
        "DAMPING": Key(1.0, positive, "damping to begin with, in units of the mean curvature"),
        # from which logits are made here: a candidate costs one query and no image query
        "FEATURES": Key(False, flag(), "ask for features (grant features)"),
        "DECAY": Key(0.01, number(0), "weight of half the squared distance from the start"),
        "HEAD": Key(True, flag(), "train a residual head on the logits that come back"),
        # each is checked on the training images that it does not learn from; 1 is not checked
        "HEAD_FOLDS": Key(4, whole(1, 100), "MLPs of the head"),
        "HEAD_WIDTH": Key(256, size, "their hidden width"),
        "HEAD_DROPOUT": Key(0.5, number(0, below=1), "share of the hidden layers left out"),
        "HEAD_LR": Key(1e-3, positive, "their learning rate (AdamW)"),
        "HEAD_DECAY": Key(0.01, number(0), "their weight decay"),
        "HEAD_STEPS": Key(8, whole(1), "their steps after every step of the prompt"),
        "HEAD_MEMORY": Key(1024, whole(1), "logits of so many crops are remembered, the latest"),
    },
    "TRAINER.ZEROSHOT": {
        "TEMPLATE": Key("", template(), "text with a slot {} for the class name; empty: the set's"),
    },
    "TRAINER.WHITEBOX": {
        "N_CTX": Key(8, tokens, "context tokens n (ignored where CTX_INIT gives words)"),
        "CTX_INIT": Key("", text(), "words to start from; empty: random, N(0, 0.02^2)"),
    },
}


def tables() -> dict[str, dict[str, Key]]:
    """`KEYS`, and what a trainer brings in its own file as `keys`, by its name in capitals."""
    brought = {
        f"TRAINER.{name.upper()}": trainer.keys
        for name, trainer in ours().items()
        if hasattr(trainer, "keys")
    }
    return {**KEYS, **brought}


def extend_cfg(cfg: CfgNode) -> None:
    """Add our nodes to a Dassl configuration, in place. Calling it twice changes nothing."""
    if "ORACLE" in cfg:
        return
    for name, keys in tables().items():
        node = cfg
        for part in name.split("."):
            if part not in node or part not in ("DATASET", "INPUT", "TRAINER"):
                node[part] = CfgNode()
            node = node[part]
        for key, entry in keys.items():
            if key != "SUBSAMPLE_CLASSES" or key not in node:  # a fork has it, as CoOp does
                node[key] = deepcopy(entry.default)


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries, such as a configuration, as {"ORACLE.PREC": "fp32", …}."""
    return {
        name: leaf
        for key, value in node.items()
        for name, leaf in (
            leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        ).items()
    }


def rules(trainer: str) -> dict[str, Rule]:
    """What our keys and Dassl's may hold where this trainer of ours runs, by their full names."""
    known = {
        f"{node}.{key}": entry.rule
        for node, keys in tables().items()
        for key, entry in keys.items()
    }
    return {**host_rules(trainer), **known}


def check_cfg(cfg: CfgNode) -> None:
    """Look at every key that our trainers read, before anything is loaded.

    Raises:
        BlackBoxError: a blank value, a wrong type, a value out of its range, two that exclude each
            other. The first one is named, with what is expected.
    """
    given, known = leaves(cfg), rules(cfg.TRAINER.NAME)
    for name, value in given.items():
        if name in known and not known[name].fits(value):
            raise BlackBoxError(known[name].sentence(name, value))
    for name, default in leaves(get_cfg_default()).items():
        if default is not None and given.get(name, default) is None:
            raise BlackBoxError(f"{name} is blank; a value such as {default!r} is expected.")
    for sentence in conflicts(cfg):
        raise BlackBoxError(sentence)
