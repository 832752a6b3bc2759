"""ZIP: zeroth-order intrinsic-dimensional prompt tuning (ICLR 2025)."""

import torch

from .blackbox.config import SPSA_KEYS, Key, number, one, register_trainer, where
from .blackbox.optimizers import GAINS, RULES, SPSA
from .blackbox.prompts import build_space, context_keys, space_keys
from .blackbox.rng import child_seed
from .blackbox.search import Recipe, SearchTrainer


@register_trainer
class ZIP(SearchTrainer):
    """Low rank + Fastfood prompt space; SPSA with intrinsic-dimensional clipping.

    Told the loss of every mini-batch. Access: contexts, logits. A step costs `2 SP_AVG` queries
    (10), all on the same mini-batch. The defaults are those of the paper's few-shot scripts.
    """

    keys = {
        **context_keys(8, ""),
        **space_keys("lowrank"),
        "RULE": Key("spsa-clip", one(*RULES), "update rule"),
        **SPSA_KEYS,
        "BETA": Key(0.8, number(0, below=1), "momentum of spsa-gc", where("RULE", "spsa-gc")),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node = self.cfg.TRAINER.ZIP
        space = build_space(self.oracle, node, generator)
        origin, seed = space.origin.to(self.device), child_seed(generator)
        gains = {name: node[name.upper()] for name in GAINS}
        return Recipe(space, SPSA(origin, node.RULE, node.SP_AVG, seed, **gains))
