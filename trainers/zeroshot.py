"""Zero-shot: the reference point that costs no training query."""

import time

import torch

from . import blackbox as bb


@bb.register_trainer
class ZeroshotOracle(bb.ProbeTrainer):
    """The data set's hand-written template, no training. Words may stand after the class name."""

    node = "ZEROSHOT"
    keys = bb.config.TEMPLATE_KEYS
    reads = tuple(f"ORACLE.{key}" for key in bb.config.ACCESS)  # what evaluation reads
    reads_features = False

    def build_head(self, generator: torch.Generator) -> None:
        """The scores are the logits."""
        self.max_epoch = 0

    def before_train(self) -> None:
        print("Nothing to train")
        self.time_start = time.time()
