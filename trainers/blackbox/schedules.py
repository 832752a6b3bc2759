"""The schedule of a learning rate, of torch's own parts.

Dassl 0.6.3's warm-up schedulers pass an argument that torch no longer takes from 2.7 on; these give
the same rates.
"""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, SequentialLR
from yacs.config import CfgNode


def build_schedule(optimizer: torch.optim.Optimizer, optim: CfgNode) -> LRScheduler:
    """Cosine over `MAX_EPOCH` epochs, the first `WARMUP_EPOCH` at the constant `WARMUP_CONS_LR`.

    One step an epoch. As in Dassl, the cosine starts from its top after the warm-up and is not
    shortened by it. `optim` is the node `cfg.OPTIM`; other schedules are refused where it is read.
    """
    if optim.WARMUP_EPOCH <= 0:
        return CosineAnnealingLR(optimizer, optim.MAX_EPOCH)
    warm_up = ConstantLR(optimizer, optim.WARMUP_CONS_LR / optim.LR, total_iters=optim.WARMUP_EPOCH)
    cosine = CosineAnnealingLR(optimizer, optim.MAX_EPOCH)
    return SequentialLR(optimizer, [warm_up, cosine], milestones=[optim.WARMUP_EPOCH])
