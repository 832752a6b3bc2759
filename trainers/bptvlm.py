"""BPT-VLM: evolutionary prompt tuning of text and image (IJCAI 2023), shallow variant."""

from __future__ import annotations

import torch

from .blackbox.config import SIZE, Key, cma_keys, one, register_trainer, text, where, whole
from .blackbox.losses import mean_cross_entropies, mean_focal_losses
from .blackbox.optimizers import CMAES
from .blackbox.prompts import TwoProjections, initial_context
from .blackbox.run.rng import child_seed
from .blackbox.search import Recipe, SearchTrainer

LOSSES = {"ce": mean_cross_entropies, "focal": mean_focal_losses}


@register_trainer
class BPTVLM(SearchTrainer):
    """CMA-ES over two random projections, one to text tokens and one to image tokens.

    Told the losses of the whole training set. Access: contexts, logits, and `image_tokens` unless
    `N_IMAGE` is 0. The candidate with the lowest training loss so far is the prompt in use, and is
    what is saved.
    """

    keys = {
        "N_CTX": Key(
            8,
            whole(1, 1000),
            "text tokens n_L (ignored where CTX_INIT gives words)",
            where("CTX_INIT", ""),
        ),
        "CTX_INIT": Key("", text(), "words that the projection is added to; empty: zeros"),
        "N_IMAGE": Key(5, whole(0, 1000), "image tokens n_V (grant image_tokens); 0: text alone"),
        "DIM_TEXT": Key(500, whole(1, SIZE), "d_L"),
        "DIM_IMAGE": Key(500, whole(1, SIZE), "d_V", lambda node: node.N_IMAGE > 0),
        **cma_keys(30),
        "LOSS": Key("ce", one(*LOSSES), "focal: with gamma 2"),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node = self.cfg.TRAINER.BPTVLM
        start = initial_context(self.oracle, node.CTX_INIT, node.N_CTX, generator)
        if not node.CTX_INIT:
            start = torch.zeros_like(start)
        space = TwoProjections(
            self.description,
            start,
            node.N_IMAGE,
            node.DIM_TEXT,
            node.DIM_IMAGE,
            node.SIGMA,
            generator,
        )
        optimizer = CMAES(
            space.origin.to(self.device),
            node.SIGMA,
            node.POPULATION,
            covariance=node.COVARIANCE,
            result="best",
            options=node.CMA_OPTIONS,
            seed=child_seed(generator),
        )
        return Recipe(space, optimizer, fitness=LOSSES[node.LOSS], whole_set=True)
