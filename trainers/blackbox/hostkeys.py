"""What Dassl's own keys may hold where one of our trainers runs.

Dassl reads most of them without a look: a misspelt TEST.SPLIT is the test split. Lists of names are
those of the Dassl that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .keys import Rule, flag, number, one, only, several, text, whole
from .registry import ours

SAMPLERS = (
    "RandomSampler",
    "SequentialSampler",
    "RandomClassSampler",
    "RandomDomainSampler",
    "SeqDomainSampler",
)
BATCH = 1_000_000


def pair(item: Rule, words: str, good: list, bad: list, count: int = 2, **options: Any) -> Rule:
    return several(item, words, range(count, count + 1), good, bad, **options)


def input_rules() -> dict[str, Rule]:
    """Of INPUT: what pictures go through."""
    from dassl.data.transforms import transforms

    elsewhere = set(getattr(transforms, "NEED_REAL_DASSL", ()))  # our stand-in has not all of them
    names = tuple(name for name in transforms.AVAI_CHOICES if name not in elsewhere)
    transform = several(
        one(*names),
        "a tuple of names of transforms"
        + (" (not those for which the real Dassl must be installed)" if elsewhere else ""),
        range(len(names) + 1),
        [(), ("normalize",)],
        ["normalize", ("normalise",)],
    )
    third, share = number(-10, 10), number(0, 1)
    return {
        "SIZE": pair(
            whole(1, 10_000),
            "two whole numbers of pixels (height, width)",
            [(32, 32)],
            [(32,), (0, 32), 32],
        ),
        "INTERPOLATION": one(*transforms.INTERPOLATION_MODES),
        "TRANSFORMS": transform,
        "NO_TRANSFORM": only(False, "a model takes pixels, not pictures"),
        "PIXEL_MEAN": pair(third, "a list of three numbers", [[0.5] * 3], [[0.5], 0.5], 3),
        "PIXEL_STD": pair(
            number(above=0, high=10), "a list of three numbers above 0", [[0.5] * 3], [[0.0] * 3], 3
        ),
        "CROP_PADDING": whole(0, 10_000),
        "RRCROP_SCALE": pair(
            number(above=0, high=1),
            "(least, most) shares of a picture, above 0 and at most 1",
            [(0.08, 1.0), (1, 1)],
            [(1.0, 0.08), (0.0, 1.0), (0.5, 2.0), (0.5,)],
            fits=lambda items: items[0] <= items[1],
        ),
        "CUTOUT_N": whole(1, 1000),
        "CUTOUT_LEN": whole(1, 10_000),
        "GN_MEAN": third,
        "GN_STD": number(0),
        "RANDAUGMENT_N": whole(1, 1000),
        "RANDAUGMENT_M": whole(0, 1000),
        **{f"COLORJITTER_{part}": number(0, 100) for part in "BCS"},
        "COLORJITTER_H": number(0, 0.5),
        "RGS_P": share,
        "GB_P": share,
        "GB_K": one_odd(),
    }


def one_odd() -> Rule:
    rule = whole(1, 999)
    return Rule(
        "an odd whole number from 1 to 999",
        lambda value: rule.fits(value) and value % 2 == 1,
        (1, 21, 999),
        (0, 2, *rule.bad),
    )


def optim_rules(trainer: str) -> dict[str, Rule]:
    """Of OPTIM. All trainers read MAX_EPOCH; those with a schedule read more, and less freely."""
    from dassl.optim.lr_scheduler import AVAI_SCHEDS
    from dassl.optim.optimizer import AVAI_OPTIMS

    rules = {
        "NAME": one(*AVAI_OPTIMS),
        "LR": number(above=0),
        "WEIGHT_DECAY": number(0),
        "MOMENTUM": number(0, below=1),
        "SGD_DAMPNING": number(0, 1),
        "SGD_NESTEROV": flag(),
        "RMSPROP_ALPHA": number(0, below=1),
        "ADAM_BETA1": number(0, below=1),
        "ADAM_BETA2": number(0, below=1),
        "STAGED_LR": only(False, "a prompt has no layers"),
        "LR_SCHEDULER": one(*AVAI_SCHEDS),
        "GAMMA": number(above=0),
        "MAX_EPOCH": whole(1, 10**9),
        "WARMUP_EPOCH": whole(-1),
        "WARMUP_TYPE": one("constant", "linear"),
        "WARMUP_CONS_LR": number(0),
        "WARMUP_MIN_LR": number(0),
        "WARMUP_RECOUNT": flag(),
    }
    running = ours().get(trainer)
    if running and running.scheduled:
        rules["LR_SCHEDULER"] = one("cosine")
        rules["WARMUP_RECOUNT"] = only(True, "the cosine begins after the warm-up")
    if running and running.optimizers:
        rules["NAME"] = one(*running.optimizers)
    return rules


def loader_rules() -> dict[str, Rule]:
    """Of DATALOADER."""
    from dassl.data.transforms import transforms

    standin = hasattr(transforms, "NEED_REAL_DASSL")  # which samples by class, not by domain
    return {
        "NUM_WORKERS": whole(0, 512),
        "K_TRANSFORMS": only(1, "these trainers take one view of a picture"),
        "RETURN_IMG0": only(False, "these trainers take one view of a picture"),
        "TRAIN_X.SAMPLER": one(*(SAMPLERS[:3] if standin else SAMPLERS)),
        "TRAIN_X.BATCH_SIZE": whole(1, BATCH),
        "TRAIN_X.N_DOMAIN": whole(-1, BATCH),
        "TRAIN_X.N_INS": whole(1, BATCH),
        "TEST.SAMPLER": one(*SAMPLERS[:2]),  # others leave images out, or take them twice
        "TEST.BATCH_SIZE": whole(1, BATCH),
    }


def domains() -> Rule:
    """`--source-domains a b SEED 3`: the flag takes all that follows, options too."""
    option = re.compile(r"[A-Z_]+(\.[A-Z0-9_]+)+")
    return several(
        text(1),
        "a tuple of domains' names (options KEY VALUE that follow such a flag become its own)",
        range(1000),
        [(), ("photo", "sketch")],
        ["photo", ("photo", "DATASET.NUM_SHOTS", "3")],
        lambda items: not any(map(option.fullmatch, items)),
    )


def in_file(flag: str) -> Rule:
    """A name that a configuration file gives; mostly the file was forgotten."""
    return replace(text(1), expects=f"a name (pass {flag}, or another file of that folder)")


def host_rules(trainer: str) -> dict[str, Rule]:
    """By their full names; those of the trainer of that name where they differ between ours."""
    from dassl.evaluation import EVALUATOR_REGISTRY

    shots = whole(-1)
    sections = {
        "INPUT": input_rules(),
        "OPTIM": optim_rules(trainer),
        "DATALOADER": loader_rules(),
        "DATASET": {
            "ROOT": text(),
            "NAME": in_file("--dataset-config-file configs/datasets/digits.yaml"),
            "SOURCE_DOMAINS": domains(),
            "TARGET_DOMAINS": domains(),
            "NUM_SHOTS": Rule(
                "-1 (all images) or a whole number of 1 or more",
                lambda value: shots.fits(value) and value != 0,
                (-1, 1, 16),
                (0, *shots.bad),
            ),
        },
        "MODEL": {
            "INIT_WEIGHTS": only("", "MODEL.BACKBONE.NAME takes the path of a checkpoint"),
            "BACKBONE.NAME": in_file(f"--config-file configs/trainers/{trainer}/tiny.yaml"),
            "BACKBONE.PRETRAINED": only(True, "what is adapted is a trained model"),
            "HEAD.NAME": only("", "heads have keys of their own here"),
        },
        "TRAIN": {
            "CHECKPOINT_FREQ": whole(-1),
            "PRINT_FREQ": whole(1),
            "COUNT_ITER": one("train_x"),
        },
        "TEST": {
            "EVALUATOR": one(*EVALUATOR_REGISTRY.registered_names()),
            "PER_CLASS_RESULT": flag(),
            "COMPUTE_CMAT": flag(),
            "NO_TEST": flag(),
            "SPLIT": one("test", "val"),
            "FINAL_MODEL": one("last_step", "best_val"),
        },
    }
    return {
        "OUTPUT_DIR": text(),
        "RESUME": text(),
        "SEED": whole(-(2**31), 2**32 - 1),  # negative: every run another, as in Dassl
        "USE_CUDA": flag(),
        "VERBOSE": flag(),
        **{f"{node}.{key}": rule for node, keys in sections.items() for key, rule in keys.items()},
    }


def conflicts(cfg: Any) -> Iterator[str]:
    """A sentence for every pair of values that exclude each other, each of them valid."""
    x, optim, running = cfg.DATALOADER.TRAIN_X, cfg.OPTIM, ours().get(cfg.TRAINER.NAME)
    if x.SAMPLER == "RandomClassSampler" and x.BATCH_SIZE < x.N_INS:
        yield (
            f"DATALOADER.TRAIN_X.BATCH_SIZE is {x.BATCH_SIZE}; with RandomClassSampler "
            f"DATALOADER.TRAIN_X.N_INS ({x.N_INS}) or more is expected."
        )
    if not running or not running.scheduled:
        return
    if optim.WARMUP_EPOCH > 0:
        if optim.WARMUP_TYPE != "constant":
            yield (
                f"OPTIM.WARMUP_TYPE is '{optim.WARMUP_TYPE}'; constant is expected where "
                f"OPTIM.WARMUP_EPOCH is above 0."
            )
        if optim.WARMUP_CONS_LR > optim.LR:
            yield (
                f"OPTIM.WARMUP_CONS_LR is {optim.WARMUP_CONS_LR}; no more than OPTIM.LR "
                f"({optim.LR}) is expected."
            )
    nesterov = optim.SGD_NESTEROV and optim.NAME == "sgd"
    if nesterov and (optim.MOMENTUM == 0 or optim.SGD_DAMPNING != 0):
        yield (
            "OPTIM.SGD_NESTEROV is True; with it OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0 "
            "are expected."
        )
