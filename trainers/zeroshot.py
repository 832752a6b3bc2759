"""Zero-shot: the reference point that costs no training query."""

import time
from datetime import timedelta

import torch
from torch import nn

from .blackbox.engine import BlackBoxTrainer
from .blackbox.prompts import Prompt
from .blackbox.registry import register_trainer
from .blackbox.templates import template_for


class NoContext(nn.Module):
    """A learner with nothing to learn: a context of no tokens, in front of full texts."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("context", torch.zeros(1, 0, width))

    def forward(self):
        return Prompt(self.context)


@register_trainer
class ZeroshotOracle(BlackBoxTrainer):
    """The data set's hand-written template, no training. Words may stand after the class name."""

    def name_classes(self):
        template = template_for(self.cfg)
        print(f'Template: "{template}"')
        self.oracle.set_classes(self.dm.dataset.classnames, template)

    def build_model(self):
        self.learner = NoContext(self.oracle.description.width).to(self.device)

    def check_training(self):
        pass

    def describe_cost(self):
        return "no training queries"

    def train(self):
        start = time.time()
        print("Nothing to train")
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            self.test()
        print(f"Elapsed: {timedelta(seconds=round(time.time() - start))}")
        print(self.oracle.summary())

    def load_model(self, directory, epoch=None):
        """Nothing to load."""
