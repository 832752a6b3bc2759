"""BlackVIP: black-box visual prompting (CVPR 2023)."""

from typing import Any

import torch

from .blackbox.config import (
    SPSA_KEYS,
    TEMPLATE_KEYS,
    Key,
    flag,
    number,
    one,
    register_trainer,
)
from .blackbox.optimizers import GAINS, SPSA
from .blackbox.prompts import CoordinatorSpace, PaddingSpace, PictureSpace
from .blackbox.rng import child_seed
from .blackbox.search import Recipe, SearchTrainer


def coordinated(node: Any) -> bool:
    return node.METHOD != "padding"


@register_trainer
class BlackVIP(SearchTrainer):
    """A frozen local encoder, and a small decoder tuned by SPSA-GC, whose output is added.

    Told the loss of every mini-batch. Access: words and pictures in, logits out. A step costs
    `2 SP_AVG` queries (10), all on the same mini-batch. All pictures are new, so that nothing is
    encoded once for all; a test picture is asked about with its prompt, one query a batch.

    `METHOD padding` is VP with SPSA-GC: one border for all pictures. The defaults are those of
    ZIP's comparison (ICLR 2025), one setting for all data sets.
    """

    keys = {
        "METHOD": Key("scratch", one("scratch", "pca", "padding"), "the encoder; padding: none"),
        **TEMPLATE_KEYS,
        "EPS": Key(1.0, number(above=0), "factor of the prompt", coordinated, True),
        # published: False
        "ZERO_INIT": Key(False, flag(), "start at zero-shot, the last layer zero", coordinated),
        # of padding: A 10 to 40, ALPHA 0.5
        **SPSA_KEYS,
        "BETA": Key(0.8, number(0, below=1), "momentum"),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, model = self.cfg.TRAINER.BLACKVIP, self.description
        space: PictureSpace = (
            CoordinatorSpace(model, node.METHOD, generator, node.EPS, node.ZERO_INIT)
            if coordinated(node)
            else PaddingSpace(model, generator)
        )
        origin, seed = space.origin.to(self.device), child_seed(generator)
        gains = {name: node[name.upper()] for name in GAINS}
        return Recipe(space, SPSA(origin, "spsa-gc", node.SP_AVG, seed, **gains))

    def prepare(self) -> None:
        if isinstance(self.space, CoordinatorSpace) and not self.steps_done:
            # else the checkpoint has what the encoder learnt
            batches = self.loader(self.dm.dataset.train_x)
            self.space.fit(batch["img"].to(self.device) for batch in batches)
        super().prepare()
