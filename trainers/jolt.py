"""JOLT: Jacobian-of-logits tuning. Ours."""

from __future__ import annotations

import torch

from .blackbox.config import SIZE, Key, Validator, flag, number, register_trainer, where, whole
from .blackbox.heads.crossfit import CrossFitted, HeadLearner
from .blackbox.heads.selection import folds_of
from .blackbox.optimizers import SubspaceGaussNewton
from .blackbox.prompts import build_space, context_keys, initial_context, space_keys
from .blackbox.run.rng import child_seed, seeded
from .blackbox.search import Recipe, SearchTrainer

HEADED = where("HEAD", True)
DAMPINGS = Validator(
    "a tuple of one or more numbers above 0",
    lambda items: items and all(type(item) in (int, float) and 0 < item < 1e9 for item in items),
)


@register_trainer
class JOLT(SearchTrainer):
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

    keys = {
        **context_keys(4, "a photo of a"),
        **space_keys("context"),
        "DIRECTIONS": Key(64, whole(8, SIZE), "directions m of a step's subspace"),
        # a proposal each: a step costs 1 + their number + m queries
        "DAMPINGS": Key((0.1, 1.0, 10.0), DAMPINGS, "factors of the damping"),
        "DAMPING": Key(
            1.0, number(above=0), "damping to begin with, in units of the mean curvature"
        ),
        # from which logits are made here: a candidate costs one query and no image query
        "FEATURES": Key(False, flag(), "ask for features (grant features)"),
        "DECAY": Key(0.01, number(0), "weight of half the squared distance from the start"),
        "HEAD": Key(True, flag(), "train a residual head on the logits that come back"),
        # each is checked on the training images that it does not learn from; 1 is not checked
        "HEAD_FOLDS": Key(4, whole(1, 100), "MLPs of the head", HEADED),
        "HEAD_WIDTH": Key(256, whole(1, SIZE), "their hidden width", HEADED),
        "HEAD_DROPOUT": Key(0.5, number(0, below=1), "share of the hidden layers left out", HEADED),
        "HEAD_LR": Key(1e-3, number(above=0), "their learning rate (AdamW)", HEADED),
        "HEAD_DECAY": Key(0.01, number(0), "their weight decay", HEADED),
        "HEAD_STEPS": Key(8, whole(1), "their steps after every step of the prompt", HEADED),
        "HEAD_MEMORY": Key(
            1024, whole(1), "logits of so many crops are remembered, the latest", HEADED
        ),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node = self.cfg.TRAINER.JOLT
        start = initial_context(self.oracle, node.CTX_INIT, node.N_CTX, generator)
        space = build_space(node, start, generator)
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
