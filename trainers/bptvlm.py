"""BPT-VLM: evolutionary prompt tuning of text and image (IJCAI 2023), shallow variant."""

import torch

from .blackbox.engine import BlackBoxTrainer
from .blackbox.run.errors import one_of
from .blackbox.losses import cross_entropies
from .blackbox.optimizers import CMAES
from .blackbox.prompts import TwoProjections, initial_context
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed

FOCAL_GAMMA = 2.0


@register_trainer
class BPTVLM(BlackBoxTrainer):
    """CMA-ES over two random projections, one to text tokens and one to image tokens; told the losses of the whole training set.

    Access: logits, and `image_tokens` unless `N_IMAGE` is 0. The candidate with the lowest training loss so far is the prompt in use, and is what is saved.
    """

    whole_set = True

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        one_of("loss (TRAINER.BPTVLM.LOSS)", cfg.TRAINER.BPTVLM.LOSS, ("ce", "focal"))
        if cfg.TRAINER.BPTVLM.N_IMAGE:
            self.needs = ("logits", "image_tokens")

    def build_recipe(self, generator):
        bpt, description = self.cfg.TRAINER.BPTVLM, self.oracle.description
        start = initial_context(self.oracle, bpt.CTX_INIT, bpt.N_CTX, generator)
        if not bpt.CTX_INIT:
            start = torch.zeros_like(start)
        space = TwoProjections(
            description, start, bpt.N_IMAGE, bpt.DIM_TEXT, bpt.DIM_IMAGE, bpt.SIGMA, generator
        )
        optimizer = CMAES(
            space.origin.to(self.device),
            bpt.SIGMA,
            bpt.POPULATION,
            covariance=bpt.COVARIANCE,
            result="best",
            options=bpt.CMA_OPTIONS,
            seed=child_seed(generator),
        )
        return space, optimizer

    def fitness(self, logits, labels):
        """Mean cross-entropy, or mean focal loss `(1 - p)^2 CE`, of every candidate: `[P]`."""
        if self.cfg.TRAINER.BPTVLM.LOSS == "ce":
            return super().fitness(logits, labels)
        ce = cross_entropies(logits, labels)
        return ((1 - (-ce).exp()) ** FOCAL_GAMMA * ce).mean(1)
