"""Which settings make a run what it is: compared when a run goes on, and when a finished one is skipped."""

from math import inf

import yaml
from dassl.config import get_cfg_default

from ..config import extend_cfg

SECTIONS = "SEED", "ORACLE", "OPTIM", "DATASET", "DATALOADER", "INPUT", "TRAINER", "MODEL", "TEST"
# where data lie, and how often and in what portions they are read and written: the results are the same
HARMLESS = {
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.BATCH_SIZE",
    "DATALOADER.TEST.SAMPLER",
    "INPUT.CACHE_MB",
    "ORACLE.SAVE_EVERY",
}
BUDGETS = "ORACLE.MAX_QUERIES", "ORACLE.MAX_IMAGE_QUERIES", "OPTIM.MAX_EPOCH"
NOT_TRAINING = (
    "TEST.",
    "ORACLE.VAL_EVERY",
    "MODEL.",
)  # the model is known to a checkpoint by its weights
SHOWN = 3


def flat(node, prefix=""):
    """A nested dictionary as {"ORACLE.PREC": "fp32", …}."""
    return {
        name: text
        for key, value in node.items()
        for name, text in (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {prefix + key: str(value)}
        ).items()
    }


def settings(text):
    """What of a dumped configuration makes a run what it is, by name."""
    return {
        name: value
        for name, value in flat(yaml.safe_load(text)).items()
        if name.split(".")[0] in SECTIONS and name not in HARMLESS
    }


def before(run):
    """What a run of these settings did while a key was not yet known, where that is not today's default."""
    return (
        {"TRAINER.JOLT.HEAD_FOLDS": "1"}
        if (run["TRAINER.NAME"], run["TRAINER.JOLT.HEAD"]) == ("JOLT", "True")
        else {}
    )


def differences(made, here):
    """{name: (there, here)}. A key that only one side has was added between versions: the other side gets what was done before it, mostly today's default."""
    default = get_cfg_default()
    extend_cfg(default)
    default = {**settings(default.dump()), **before(here)}
    pairs = {
        name: tuple(side.get(name, default.get(name)) for side in (made, here))
        for name in {**made, **here}
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and None not in pair}


def larger(name, there, here):
    """Whether a difference is a budget that has grown; 0 is no limit."""
    return name in BUDGETS and (int(here) or inf) > (int(there) or inf)


def as_text(differing):
    """The first few of them."""
    words = [
        name if name == "training images" else f"{name}: {there} there, {here} here"
        for name, (there, here) in differing.items()
    ]
    return "; ".join(words[:SHOWN]) + (
        f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    )
