"""Schedules: learning rates of torch's optimisers, and step sizes as functions of the step.

The former are torch's own parts: Dassl 0.6.3's warm-up schedulers pass an argument that torch no
longer takes from 2.7 on; these give the same rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, SequentialLR
from yacs.config import CfgNode

from .run.errors import BlackBoxError


@dataclass(frozen=True)
class GainSequence:
    """SPSA's gain sequence (Spall, 1992), `numerator / (k + offset)^exponent`, k from 1.

    Step sizes are `a_k = a / (k + o)^alpha`, perturbations `c_k = c / k^gamma`.
    """

    numerator: float
    exponent: float
    offset: float = 0.0

    def __call__(self, k: int) -> float:
        return self.numerator / (k + self.offset) ** self.exponent


@dataclass(frozen=True)
class PolynomialDecay:
    """BAR's step sizes, `(first - last) (1 - k / steps)^power + last`, k from 1.

    From step `steps` on they stay at `last`.

    Raises:
        BlackBoxError: `steps` is not positive.
    """

    first: float
    last: float
    steps: float
    power: float = 0.9

    def __post_init__(self) -> None:
        if not self.steps > 0:
            raise BlackBoxError(
                f"A polynomial decay over {self.steps} steps was asked for; a positive number is "
                f"expected. Raise the budget or the number of epochs that it is made from."
            )

    def __call__(self, k: int) -> float:
        left = 1 - min(k, self.steps) / self.steps
        return (self.first - self.last) * left**self.power + self.last


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
