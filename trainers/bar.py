"""BAR: black-box adversarial reprogramming (ICML 2020), as BlackVIP and ZIP compare with it."""

import torch

from .blackbox.config import SIZE, TEMPLATE_KEYS, Key, number, register_trainer, whole
from .blackbox.losses import mean_focal_losses
from .blackbox.optimizers import DecayingDirections
from .blackbox.prompts.pictures import FrameSpace
from .blackbox.rng import child_seed
from .blackbox.search import Recipe, SearchTrainer


@register_trainer
class BAR(SearchTrainer):
    """One frame around all pictures, which are made smaller; random directions, focal loss.

    Told the loss of every mini-batch. Access: words and pictures in, logits out. A step costs
    `Q + 1` queries (6), all on the same mini-batch. All pictures are new, so that nothing is
    encoded once for all; a test picture is asked about in its frame, one query a batch. The class
    texts take the place of the paper's map of labels, as in those comparisons.
    """

    keys = {
        **TEMPLATE_KEYS,
        "Q": Key(5, whole(1, SIZE), "random directions of a step, which costs Q + 1 queries"),
        "EPS": Key(0.01, number(above=0), "length of the shift along a direction"),
        "A_FIRST": Key(10.0, number(above=0), "step size that the decay begins with"),
        "A_LAST": Key(0.1, number(above=0), "step size after 0.9 of the run's steps"),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, space = self.cfg.TRAINER.BAR, FrameSpace(self.description, generator)
        origin, seed = space.origin.to(self.device), child_seed(generator)
        sizes = node.A_FIRST, node.A_LAST
        optimizer = DecayingDirections(origin, node.Q, node.EPS, *sizes, 1.0, seed)
        return Recipe(space, optimizer, fitness=mean_focal_losses)

    def build_model(self) -> None:
        super().build_model()
        self.optim.steps = 0.9 * max(1, self.steps_total())  # fewer than one is an error of the run
