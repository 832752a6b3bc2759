"""BPT-VLM: evolutionary prompt tuning of text and image (IJCAI 2023), shallow variant."""

import torch

from .blackbox.config import CMA_KEYS, SIZE, Key, one, register_trainer, whole
from .blackbox.losses import mean_cross_entropies, mean_focal_losses
from .blackbox.optimizers import CMAES
from .blackbox.prompts import TwoProjections, context_keys, initial_context
from .blackbox.rng import child_seed
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
        **context_keys(8, "", "zeros"),
        "N_IMAGE": Key(5, whole(0, 1000), "image tokens n_V (grant image_tokens); 0: text alone"),
        "DIM_TEXT": Key(500, whole(1, SIZE), "d_L"),
        "DIM_IMAGE": Key(500, whole(1, SIZE), "d_V", lambda node: node.N_IMAGE > 0),
        **CMA_KEYS,
        "POPULATION": Key(30, whole(2, SIZE), "candidates of a generation"),
        "LOSS": Key("ce", one(*LOSSES), "focal: with gamma 2"),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, model = self.cfg.TRAINER.BPTVLM, self.description
        start = initial_context(self.oracle, node.CTX_INIT, node.N_CTX, generator)
        if not node.CTX_INIT:
            start = torch.zeros_like(start)
        space = TwoProjections(
            model, start, node.N_IMAGE, node.DIM_TEXT, node.DIM_IMAGE, node.SIGMA, generator
        )
        origin, seed = space.origin.to(self.device), child_seed(generator)
        optimizer = CMAES(
            origin, node.SIGMA, node.POPULATION, 0, node.COVARIANCE, "best", node.CMA_OPTIONS, seed
        )
        return Recipe(space, optimizer, fitness=LOSSES[node.LOSS], whole_set=True)
