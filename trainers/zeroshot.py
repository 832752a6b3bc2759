"""Zero-shot: the reference point that costs no training query."""

from __future__ import annotations

import torch

from .blackbox.engine import BlackBoxTrainer
from .blackbox.optimizers import Fixed
from .blackbox.oraclekeys import WHERE
from .blackbox.prompts import ClassTexts
from .blackbox.recipe import Recipe
from .blackbox.registry import register_trainer
from .blackbox.templates import template_for, template_keys


@register_trainer
class ZeroshotOracle(BlackBoxTrainer):
    """The data set's hand-written template, no training. Words may stand after the class name."""

    node = "ZEROSHOT"
    keys = template_keys()
    reads = WHERE  # what evaluation reads

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        return Recipe(ClassTexts(), Fixed(), template=template_for(self.cfg))
