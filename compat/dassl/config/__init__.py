from yacs.config import CfgNode

from .defaults import DEFAULTS


def get_cfg_default():
    """A fresh, unfrozen copy of every default."""
    return CfgNode(DEFAULTS)


def clean_cfg(cfg, trainer):
    """Drop every other trainer's settings from `cfg.TRAINER`: a printed config is short."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
