"""Learning-rate schedules with warm-up, from torch's own parts.

Dassl 0.6.3's warm-up schedulers pass an argument that torch no longer takes from 2.7 on; these give
the same rates.
"""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, SequentialLR
from yacs.config import CfgNode

from .run.errors import BlackBoxError


def build_schedule(optimizer: torch.optim.Optimizer, optim: CfgNode) -> LRScheduler:
    """Cosine over `MAX_EPOCH` epochs, the first `WARMUP_EPOCH` at the constant `WARMUP_CONS_LR`.

    One step an epoch. As in Dassl, the cosine starts from its top after the warm-up and is not
    shortened by it.

    Args:
        optim: the node `cfg.OPTIM`.

    Raises:
        BlackBoxError: another schedule or warm-up.
    """
    if optim.LR_SCHEDULER != "cosine" or (
        optim.WARMUP_EPOCH > 0 and optim.WARMUP_TYPE != "constant"
    ):
        raise BlackBoxError(
            f"OPTIM.LR_SCHEDULER {optim.LR_SCHEDULER} with OPTIM.WARMUP_TYPE {optim.WARMUP_TYPE} "
            f"is not built here; use cosine, with a constant warm-up or none."
        )
    if optim.WARMUP_EPOCH <= 0:
        return CosineAnnealingLR(optimizer, optim.MAX_EPOCH)
    warm_up = ConstantLR(optimizer, optim.WARMUP_CONS_LR / optim.LR, total_iters=optim.WARMUP_EPOCH)
    return SequentialLR(
        optimizer,
        [warm_up, CosineAnnealingLR(optimizer, optim.MAX_EPOCH)],
        milestones=[optim.WARMUP_EPOCH],
    )
