"""CraFT: collaborative fine-tuning (ICML 2024)."""

import torch
import torch.nn.functional as F

from .blackbox.data.loaders import augmented_loader
from .blackbox.engine import BlackBoxTrainer
from .blackbox.heads import PredictionRefinement
from .blackbox.optimizers import CMAES
from .blackbox.oracle.meter import query_cost
from .blackbox.prompts import build_space, initial_context
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed


def divergence(p, q):
    """KL(softmax(p) ‖ softmax(q)) over the last dimension of logits."""
    return F.kl_div(
        F.log_softmax(q, -1), F.log_softmax(p, -1), reduction="none", log_target=True
    ).sum(-1)


@register_trainer
class CraFT(BlackBoxTrainer):
    """CMA-ES over a randomly projected context, and a residual MLP on the logits; told the losses of the whole training set.

    Access: logits. One generation, then one pass of the head over the augmented training set, by turns; the head's own reads are on the bill like
    everything else (the published count leaves them out). The prompt in use is the distribution's mean; the authors' code averages
    a freshly drawn population instead.
    """

    whole_set = True

    def build_recipe(self, generator):
        craft = self.cfg.TRAINER.CRAFT
        start = initial_context(self.oracle, craft.CTX_INIT, craft.N_CTX, generator)
        space = build_space(craft.SPACE, start, self.cfg, generator)
        optimizer = CMAES(
            space.origin.to(self.device),
            craft.SIGMA,
            craft.POPULATION,
            bound=craft.BOUND,
            covariance=craft.COVARIANCE,
            result="mean",
            options=craft.CMA_OPTIONS,
            seed=child_seed(generator),
        )
        return space, optimizer

    def build_head(self):
        craft = self.cfg.TRAINER.CRAFT
        if not craft.HEAD:
            return None, None
        head = PredictionRefinement(self.num_classes, craft.HEAD_WIDTH).to(self.device)
        self.head_loader = augmented_loader(self, craft.HEAD_BATCH)
        return head, torch.optim.Adam(head.parameters(), lr=craft.HEAD_LR)

    def step_cost(self):
        queries, images = super().step_cost()
        if self.head is not None:
            total, batch = len(self.dm.dataset.train_x), self.cfg.TRAINER.CRAFT.HEAD_BATCH
            reads = [query_cost(1, min(batch, total - i)) for i in range(0, total, batch)]
            queries, images = queries + sum(q for q, _ in reads), images + sum(b for _, b in reads)
        return queries, images

    def fitness(self, logits, labels):
        """Cross-entropy of the raw logits + LAMBDA · KL(refined ‖ raw), means over the set: `[P]` (section 3.4)."""
        losses = super().fitness(logits, labels)
        if self.head is None:
            return losses
        with torch.no_grad():
            return losses + self.cfg.TRAINER.CRAFT.LAMBDA * divergence(
                self.head(logits), logits
            ).mean(1)

    def head_loss(self, raw, labels):
        """Cross-entropy of the refined logits `[B, C]`, + LAMBDA · KL(raw ‖ refined) at first.

        The first `1 / KL_PART` of the steps that the budget pays for: queries that a killed run lost
        do not count, so that a resumed run has the terms of an undisturbed one.
        """
        craft = self.cfg.TRAINER.CRAFT
        refined = self.head(raw)
        loss = F.cross_entropy(refined, labels)
        if self.steps_done * craft.KL_PART < self.steps_total():
            loss = loss + craft.LAMBDA * divergence(raw, refined).mean()
        return loss

    def forward_backward(self, batch):
        summary = super().forward_backward(batch)
        if self.head is not None:
            for images, labels in map(self.parse_batch_train, self.head_loader):
                raw = self.oracle.query(self.oracle.upload(images), *self.learner())[0]
                loss = self.head_loss(raw, labels)
                self.head_optim.zero_grad()
                loss.backward()
                self.head_optim.step()
            summary["head"] = loss.item()
        return summary
