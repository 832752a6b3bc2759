"""Zero-shot: the reference point that costs no training query."""

import torch

from .blackbox.config import WHERE
from .blackbox.probe import ProbeTrainer
from .blackbox.registry import register_trainer
from .blackbox.templates import template_keys


@register_trainer
class ZeroshotOracle(ProbeTrainer):
    """The data set's hand-written template, no training. Words may stand after the class name."""

    node = "ZEROSHOT"
    keys = template_keys()
    reads = WHERE  # what evaluation reads
    trains = reads_features = False

    def build_head(self, generator: torch.Generator) -> None:
        """The scores are the logits."""
