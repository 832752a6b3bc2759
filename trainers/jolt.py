"""JOLT: Jacobian-of-logits tuning. Ours."""

from __future__ import annotations

import torch

from .blackbox.crossfit import CrossFitted, HeadLearner, folds_of
from .blackbox.engine import BlackBoxTrainer
from .blackbox.optimizers import SubspaceGaussNewton
from .blackbox.prompts import build_space, initial_context
from .blackbox.recipe import Recipe
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed, seeded


@register_trainer
class JOLT(BlackBoxTrainer):
    """Any prompt space; Gauss-Newton steps from the Jacobian of all logits in random subspaces.

    Told the logits of every mini-batch. Access: contexts, logits. A step asks for
    `1 + number of DAMPINGS + DIRECTIONS` candidates on one mini-batch.

    - `HEAD`: a residual head on the logits learns from the answers about the prompt in use, which
      were asked for anyway, and counts for as much as it helps on training images that it did not
      learn from (with two `HEAD_FOLDS` or more). The prompt is tuned through it: the optimiser is
      told refined logits.
    - `FEATURES` (grant features): the texts' features come back for one query a candidate, whatever
      the number of images, and the images' once a step, for `ceil(B / 128)`.
    """

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node = self.cfg.TRAINER.JOLT
        start = initial_context(self.oracle, node.CTX_INIT, node.N_CTX, generator)
        space = build_space(node.SPACE, start, self.cfg, generator)
        optimizer = SubspaceGaussNewton(
            space.origin.to(self.device),
            directions=node.DIRECTIONS,
            dampings=node.DAMPINGS,
            damping=node.DAMPING,
            decay=node.DECAY,
            seed=child_seed(generator),
        )
        if not node.HEAD:
            return Recipe(space, optimizer, features=node.FEATURES)
        with seeded(generator):
            head = CrossFitted(self.num_classes, node.HEAD_WIDTH, node.HEAD_FOLDS).to(self.device)
            teacher = HeadLearner(
                head,
                folds_of(self.dm.dataset.train_x, node.HEAD_FOLDS).to(self.device),
                lr=node.HEAD_LR,
                decay=node.HEAD_DECAY,
                steps=node.HEAD_STEPS,
                capacity=node.HEAD_MEMORY,
                dropout=node.HEAD_DROPOUT,
            )
        return Recipe(space, optimizer, head, teacher, features=node.FEATURES)
