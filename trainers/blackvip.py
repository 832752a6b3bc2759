"""BlackVIP: black-box visual prompting (CVPR 2023)."""

from typing import Any

import torch

from .blackbox.config import (
    Key,
    flag,
    number,
    one,
    register_trainer,
    spsa_keys,
    spsa_settings,
    template_for,
    template_keys,
)
from .blackbox.optimizers import SPSA
from .blackbox.prompts import CoordinatorSpace, PaddingSpace, PictureSpace
from .blackbox.run.rng import child_seed
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
        **template_keys(),
        "EPS": Key(1.0, number(above=0), "factor of the prompt", coordinated, True),
        # published: False
        "ZERO_INIT": Key(False, flag(), "start at zero-shot, the last layer zero", coordinated),
        # of padding: A 10 to 40, ALPHA 0.5
        **spsa_keys(),
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
        optimizer = SPSA(origin, "spsa-gc", **spsa_settings(node), seed=seed)
        return Recipe(space, optimizer, template=template_for(self.cfg))
