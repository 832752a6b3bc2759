"""Zero-shot: the reference point that costs no training query."""

import time

import torch

from .blackbox.config import ACCESS, TEMPLATE_KEYS, register_trainer
from .blackbox.probe import ProbeTrainer


@register_trainer
class ZeroshotOracle(ProbeTrainer):
    """The data set's hand-written template, no training. Words may stand after the class name."""

    node = "ZEROSHOT"
    keys = TEMPLATE_KEYS
    reads = tuple(f"ORACLE.{key}" for key in ACCESS)  # what evaluation reads
    reads_features = False

    def build_head(self, generator: torch.Generator) -> None:
        """The scores are the logits."""
        self.max_epoch = 0

    def before_train(self) -> None:
        print("Nothing to train")
        self.time_start = time.time()
