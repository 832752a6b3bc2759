"""Zero-shot: the reference point that costs no training query."""

import torch

from .blackbox.config import ACCESS, register_trainer, template_keys
from .blackbox.probe import ProbeTrainer


@register_trainer
class ZeroshotOracle(ProbeTrainer):
    """The data set's hand-written template, no training. Words may stand after the class name."""

    node = "ZEROSHOT"
    keys = template_keys()
    reads = tuple(f"ORACLE.{key}" for key in ACCESS)  # what evaluation reads
    trains = reads_features = False

    def build_head(self, generator: torch.Generator) -> None:
        """The scores are the logits."""
