from yacs.config import CfgNode

from .defaults import DEFAULTS


def get_cfg_default():
    """A fresh, unfrozen copy of every default."""
    return CfgNode(DEFAULTS)


def clean_cfg(cfg, trainer):
    """Drop the settings of every other trainer from `cfg.TRAINER`, so that a printed config is short."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
