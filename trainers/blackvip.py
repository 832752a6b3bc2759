"""BlackVIP: black-box visual prompting (CVPR 2023)."""

from typing import Any

import torch

from . import blackbox as bb


def coordinated(node: Any) -> bool:
    return node.METHOD != "padding"


@bb.register_trainer
class BlackVIP(bb.SearchTrainer):
    """A frozen local encoder, and a small decoder tuned by SPSA-GC, whose output is added.

    Told the loss of every mini-batch. Access: words and pictures in, logits out. A step costs
    `2 SP_AVG` queries (10), all on the same mini-batch. All pictures are new, so that nothing is
    encoded once for all; a test picture is asked about with its prompt, one query a batch.

    `METHOD padding` is VP with SPSA-GC: one border for all pictures. The defaults are those of
    ZIP's comparison (ICLR 2025), one setting for all data sets.
    """

    keys = {
        "METHOD": bb.Key("scratch", bb.one("scratch", "pca", "padding"), "encoder; padding: none"),
        **bb.config.TEMPLATE_KEYS,
        "EPS": bb.Key(1.0, bb.number(above=0), "factor of the prompt", coordinated, True),
        # published: False
        "ZERO_INIT": bb.Key(False, bb.flag(), "start at zero-shot: a last layer of 0", coordinated),
        # of padding: A 10 to 40, ALPHA 0.5
        **bb.config.SPSA_KEYS,
        "BETA": bb.Key(0.8, bb.number(0, below=1), "momentum"),
    }

    def build_recipe(self, generator: torch.Generator) -> bb.Recipe:
        node, model = self.cfg.TRAINER.BLACKVIP, self.description
        space: bb.prompts.PictureSpace = (
            bb.prompts.CoordinatorSpace(model, node.METHOD, generator, node.EPS, node.ZERO_INIT)
            if coordinated(node)
            else bb.prompts.PaddingSpace(model, generator)
        )
        origin, seed = space.origin.to(self.device), bb.child_seed(generator)
        gains = {name: node[name.upper()] for name in bb.optimizers.GAINS}
        return bb.Recipe(space, bb.optimizers.SPSA(origin, "spsa-gc", node.SP_AVG, seed, **gains))

    def prepare(self) -> None:
        if isinstance(self.space, bb.prompts.CoordinatorSpace) and not self.steps_done:
            # else the checkpoint has what the encoder learnt
            batches = self.loader(self.dm.dataset.train_x)
            self.space.fit(batch["img"].to(self.device) for batch in batches)
        super().prepare()
