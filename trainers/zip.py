"""ZIP: zeroth-order intrinsic-dimensional prompt tuning (ICLR 2025)."""

import torch

from . import blackbox as bb


@bb.register_trainer
class ZIP(bb.SearchTrainer):
    """Low rank + Fastfood prompt space; SPSA with intrinsic-dimensional clipping.

    Told the loss of every mini-batch. Access: contexts, logits. A step costs `2 SP_AVG` queries
    (10), all on the same mini-batch. The defaults are those of the paper's few-shot scripts.
    """

    keys = {
        **bb.prompts.space_keys("lowrank", 8, ""),
        "RULE": bb.Key("spsa-clip", bb.one(*bb.optimizers.RULES), "update rule"),
        **bb.config.SPSA_KEYS,
        "BETA": bb.Key(
            0.8, bb.number(0, below=1), "momentum of spsa-gc", bb.where("RULE", "spsa-gc")
        ),
    }

    def build_recipe(self, generator: torch.Generator) -> bb.Recipe:
        node = self.cfg.TRAINER.ZIP
        space = bb.prompts.build_space(self.oracle, node, generator)
        origin, seed = space.origin.to(self.device), bb.child_seed(generator)
        gains = {name: node[name.upper()] for name in bb.optimizers.GAINS}
        return bb.Recipe(space, bb.optimizers.SPSA(origin, node.RULE, node.SP_AVG, seed, **gains))
