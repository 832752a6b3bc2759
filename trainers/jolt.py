"""JOLT: Jacobian-of-logits tuning. Ours."""

import torch

from .blackbox.engine import BlackBoxTrainer
from .blackbox.errors import BlackBoxError
from .blackbox.heads import CentredRefinement
from .blackbox.optimizers import RememberedJacobian, SubspaceGaussNewton
from .blackbox.oracle.meter import query_cost
from .blackbox.prompts import build_space, initial_context
from .blackbox.registry import register_trainer
from .blackbox.rng import child_seed


@register_trainer
class JOLT(BlackBoxTrainer):
    """Any prompt space; Gauss-Newton steps from the Jacobian of all logits in random subspaces; told the logits of every mini-batch.

    Access: logits. A step costs `1 + DAMPINGS + DIRECTIONS` queries on one mini-batch.

    - `HEAD`: CraFT's residual head, on centred logits, learns from the answers about the prompt in use, which were asked for anyway; and the prompt is tuned through it: the
      optimiser is told refined logits.
    - `MEMORY`: the Jacobian is remembered, and told of the whole un-augmented training set at every step.
    - `FEATURES` (grant features): the images' features come back once a step, and the texts' of every candidate, whatever the number of images.
    """

    def check_cfg(self, cfg):
        jolt = cfg.TRAINER.JOLT
        if jolt.MEMORY and jolt.HEAD:
            raise BlackBoxError("TRAINER.JOLT.MEMORY remembers how the model's logits change, and a head that learns would change that behind its back: set TRAINER.JOLT.HEAD False.")
        if jolt.HEAD and jolt.HEAD_STEPS < 1:
            raise BlackBoxError(f"TRAINER.JOLT.HEAD_STEPS is {jolt.HEAD_STEPS}; a head learns in 1 step or more. HEAD False trains none.")
        if jolt.FEATURES:
            self.needs = ("logits", "features")
        self.whole_set = jolt.MEMORY

    def build_recipe(self, generator):
        jolt = self.cfg.TRAINER.JOLT
        start = initial_context(self.oracle, jolt.CTX_INIT, jolt.N_CTX, generator)
        space = build_space(jolt.SPACE, start, self.cfg, generator)
        kind = RememberedJacobian if jolt.MEMORY else SubspaceGaussNewton
        optimizer = kind(space.origin.to(self.device), directions=jolt.DIRECTIONS, dampings=jolt.DAMPINGS, damping=jolt.DAMPING, decay=jolt.DECAY,
                         seed=child_seed(generator))
        return space, optimizer

    def build_head(self):
        jolt = self.cfg.TRAINER.JOLT
        if not jolt.HEAD:
            return None, None
        head = CentredRefinement(self.num_classes, jolt.HEAD_WIDTH, jolt.HEAD_MEMORY, jolt.HEAD_DROPOUT).to(self.device)
        return head, torch.optim.AdamW(head.parameters(), lr=jolt.HEAD_LR, weight_decay=jolt.HEAD_DECAY)

    def step_cost(self):
        queries, images = super().step_cost()
        if not self.cfg.TRAINER.JOLT.FEATURES:
            return queries, images
        images //= self.optim.population
        return self.optim.population + query_cost(1, images)[0], images

    def answer(self, images, prompt):
        if not self.cfg.TRAINER.JOLT.FEATURES:
            return super().answer(images, prompt)
        if self.optim.here is None:     # the first round of a step
            self.image_features = self.oracle.image_features(images)
        return self.oracle.description.logit_scale * self.image_features @ self.oracle.text_features(prompt.contexts).transpose(1, 2)

    def tell(self, logits, labels):
        if self.head is None:
            return super().tell(logits, labels)
        first = self.optim.here is None
        with torch.no_grad():
            refined = self.head(logits)
        summary = super().tell(refined, labels)
        if first:
            self.head.remember(logits[self.optim.best], labels)
        else:   # both rounds of a step saw the same head
            summary["head"] = self.train_head()
        return summary

    def train_head(self):
        """Some steps on all that the head remembers; returns the last loss."""
        for _ in range(self.cfg.TRAINER.JOLT.HEAD_STEPS):
            loss = self.head.loss()
            self.head_optim.zero_grad()
            loss.backward()
            self.head_optim.step()
        return loss.item()
