"""ZIP: zeroth-order intrinsic-dimensional prompt tuning (ICLR 2025)."""

from __future__ import annotations

import torch

from .blackbox.engine import BlackBoxTrainer
from .blackbox.optimizers import SPSA
from .blackbox.prompts import build_space, initial_context
from .blackbox.recipe import Recipe
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed


@register_trainer
class ZIP(BlackBoxTrainer):
    """Low rank + Fastfood prompt space; SPSA with intrinsic-dimensional clipping.

    Told the loss of every mini-batch. Access: contexts, logits. A step costs `2 SP_AVG` queries
    (10), all on the same mini-batch.
    """

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node = self.cfg.TRAINER.ZIP
        start = initial_context(self.oracle, node.CTX_INIT, node.N_CTX, generator)
        space = build_space(node.SPACE, start, self.cfg, generator)
        optimizer = SPSA(
            space.origin.to(self.device),
            rule=node.RULE,
            average=node.SP_AVG,
            o=node.O,
            c=node.C,
            a=node.A,
            alpha=node.ALPHA,
            gamma=node.GAMMA,
            beta=node.BETA,
            seed=child_seed(generator),
        )
        return Recipe(space, optimizer)
