"""JOLT: Jacobian-of-logits tuning. Ours."""

import torch

from .blackbox.crossfit import CrossFitted, HeadLearner, folds_of
from .blackbox.engine import BlackBoxTrainer
from .blackbox.run.errors import BlackBoxError
from .blackbox.optimizers import RememberedJacobian, SubspaceGaussNewton
from .blackbox.prompts import build_space, initial_context
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed

MEMORY_LIMIT = (
    2**31
)  # bytes of a remembered Jacobian; a step holds several of its size, every checkpoint one


@register_trainer
class JOLT(BlackBoxTrainer):
    """Any prompt space; Gauss-Newton steps from the Jacobian of all logits in random subspaces; told the logits of every mini-batch.

    Access: logits. A step asks for `1 + number of DAMPINGS + DIRECTIONS` candidates on one mini-batch.

    - `HEAD`: a residual head on the logits learns from the answers about the prompt in use, which were asked for anyway, and counts for as much as it helps on training
      images that it did not learn from (with two `HEAD_FOLDS` or more). The prompt is tuned through it: the optimiser is told refined logits.
    - `MEMORY`: the Jacobian is remembered, and every step asks about the whole un-augmented training set: a candidate costs `ceil(N / 128)` queries.
    - `FEATURES` (grant features): the texts' features come back for one query a candidate, whatever the number of images, and the images' once a step, for `ceil(B / 128)`.
      With `MEMORY`, the features' Jacobian is remembered, which belongs to no image: mini-batches serve.
    """

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        jolt = cfg.TRAINER.JOLT
        if jolt.MEMORY and jolt.HEAD:
            raise BlackBoxError(
                "TRAINER.JOLT.MEMORY remembers how the model's logits change, and a head that learns would change that behind its back: set TRAINER.JOLT.HEAD False."
            )
        if jolt.FEATURES:
            self.needs = ("logits", "features")
        self.whole_set = jolt.MEMORY and not jolt.FEATURES

    @property
    def remembers_features(self):
        return self.cfg.TRAINER.JOLT.MEMORY and self.cfg.TRAINER.JOLT.FEATURES

    def build_recipe(self, generator):
        jolt = self.cfg.TRAINER.JOLT
        start = initial_context(self.oracle, jolt.CTX_INIT, jolt.N_CTX, generator)
        space = build_space(jolt.SPACE, start, self.cfg, generator)
        kind = RememberedJacobian if jolt.MEMORY else SubspaceGaussNewton
        each, count = "images", len(self.dm.dataset.train_x)
        if jolt.FEATURES:  # and a step makes slopes of a batch's logits from them
            each, count = (
                "dimensions of a feature or images of a batch",
                max(self.oracle.description.embed_dim, self.step_images()),
            )
        needed = 4 * space.origin.numel() * count * self.num_classes
        if jolt.MEMORY and needed > MEMORY_LIMIT:
            raise BlackBoxError(
                f"TRAINER.JOLT.MEMORY would remember {needed / 2**30:,.0f} GB of slopes ({space.origin.numel():,} numbers, "
                f"{count:,} {each}, {self.num_classes:,} classes); {MEMORY_LIMIT >> 30} GB are the most. Set it to False."
            )
        optimizer = kind(
            space.origin.to(self.device),
            directions=jolt.DIRECTIONS,
            dampings=jolt.DAMPINGS,
            damping=jolt.DAMPING,
            decay=jolt.DECAY,
            seed=child_seed(generator),
        )
        if self.remembers_features:
            optimizer.to_logits = self.to_logits
        return space, optimizer

    def build_head(self):
        jolt = self.cfg.TRAINER.JOLT
        if not jolt.HEAD:
            return None, None
        head = CrossFitted(self.num_classes, jolt.HEAD_WIDTH, jolt.HEAD_FOLDS).to(self.device)
        self.folds = folds_of(self.dm.dataset.train_x, jolt.HEAD_FOLDS).to(self.device)
        return head, HeadLearner(
            head,
            lr=jolt.HEAD_LR,
            decay=jolt.HEAD_DECAY,
            steps=jolt.HEAD_STEPS,
            capacity=jolt.HEAD_MEMORY,
            dropout=jolt.HEAD_DROPOUT,
        )

    def forward_backward(self, batch):
        if self.head is not None:
            self.batch_folds = self.folds[batch["index"].to(self.device)]
        return super().forward_backward(batch)

    def step_cost(self):
        return self.feature_cost() if self.cfg.TRAINER.JOLT.FEATURES else super().step_cost()

    def answer(self, images, prompt):
        if not self.cfg.TRAINER.JOLT.FEATURES:
            return super().answer(images, prompt)
        if self.optim.first_round:
            self.image_features = self.oracle.image_features(
                images
            )  # until the next step: the second round's logits are of the same images
        self.text_features = self.oracle.text_features(prompt.contexts)
        return self.to_logits(self.text_features)

    def to_logits(self, text):
        """Logits `[..., B, C]` of features `[..., C, D]` on the step's images; linear, as memory needs it."""
        return self.oracle.description.logit_scale * self.image_features @ text.mT

    def inform(self, logits, losses, labels):
        super().inform(self.text_features if self.remembers_features else logits, losses, labels)

    def tell(self, logits, labels):
        if self.head is None:
            return super().tell(logits, labels)
        first = self.optim.first_round
        with torch.no_grad():
            refined = self.head(logits, self.batch_folds)
        summary = super().tell(refined, labels)
        if first:
            self.head_optim.remember(logits[self.optim.best], labels, self.batch_folds)
        else:  # both rounds of a step saw the same head
            summary["head"], summary["trust"] = self.head_optim.learn(), self.head.trust.item()
        return summary
