"""CraFT: collaborative fine-tuning (ICML 2024)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from .blackbox.data import ordered_loader
from .blackbox.heads.featured import mlp
from .blackbox.keys import SIZE, Key, flag, number, one, where, whole
from .blackbox.losses import divergence, mean_cross_entropies
from .blackbox.optimizers import CMAES
from .blackbox.optimizers.cmaes import RESULTS
from .blackbox.optimizers.cmakeys import cma_keys
from .blackbox.prompts import build_space, context_keys, initial_context, space_keys
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed, seeded
from .blackbox.search import Recipe, SearchTrainer, Teacher

HEADED = where("HEAD", True)


class PredictionRefinement(nn.Module):
    """CraFT's head (ICML 2024, section 3.3), on logits `[..., C]`.

    `refined = raw + MLP(raw)`, `C -> width -> C`.
    """

    class_bound = True  # a class is a number of its own to it

    def __init__(self, classes: int, width: int = 256) -> None:
        super().__init__()
        self.mlp = mlp(classes, width)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.mlp(logits)


def fitness(
    logits: torch.Tensor, labels: torch.Tensor, head: PredictionRefinement, weight: float
) -> torch.Tensor:
    """Cross-entropy of the raw logits + weight · KL(refined ‖ raw), means: `[P]` (section 3.4)."""
    losses = mean_cross_entropies(logits, labels)
    with torch.no_grad():
        return losses + weight * divergence(head(logits), logits).mean(1)


class RefinementTeacher(Teacher):
    """A pass of Adam over the augmented training set after every generation.

    Args:
        head: on its device.
        loader: of the augmented training set, the last batch kept.
        lr: of Adam.
        weight: of the KL term.
        part: the term is on for the first 1 / part of the steps that the budget pays for. Queries
            that a killed run lost do not count, so a resumed run has the terms of an undisturbed
            one.
    """

    def __init__(
        self, head: PredictionRefinement, loader: DataLoader, lr: float, weight: float, part: int
    ) -> None:
        self.head, self.loader, self.weight, self.part = head, loader, weight, part
        self.adam = torch.optim.Adam(head.parameters(), lr=lr)
        self.with_kl, self.last = True, float("nan")

    def begin(self, epoch: int, steps_done: int, steps_total: int) -> None:
        self.with_kl = steps_done * self.part < steps_total

    def loss(self, raw: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the refined logits `[B, C]`, + weight · KL(raw ‖ refined) at first."""
        refined = self.head(raw)
        loss = F.cross_entropy(refined, labels)
        if self.with_kl:
            loss = loss + self.weight * divergence(raw, refined).mean()
        return loss

    def read(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        loss = self.loss(logits, labels)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.last = loss.item()

    def learn(self) -> dict[str, float]:
        return {"head": self.last}

    def state_dict(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state)


@register_trainer
class CraFT(SearchTrainer):
    """CMA-ES over a randomly projected context, and a residual MLP on the logits.

    Told the losses of the whole training set. Access: contexts, logits. One generation, then one
    pass of the head over the augmented training set, by turns; the head's own reads are on the bill
    like everything else (the published count leaves them out). The prompt in use is the
    distribution's mean; the authors' code averages a freshly drawn population instead.
    """

    keys = {
        **context_keys(4, "a photo of a"),
        **space_keys("projection"),
        **cma_keys(40),
        "BOUND": Key(5.0, number(0), "bounds of z, plus and minus; 0: none"),
        "RESULT": Key("mean", one(*RESULTS), "prompt in use: the distribution's mean, or the best"),
        "LAMBDA": Key(0.1, number(0), "weight of the KL terms", HEADED),
        "KL_PART": Key(
            4, whole(1), "the head's KL term is on for the first 1 / KL_PART of the run", HEADED
        ),
        "HEAD": Key(True, flag(), "train the prediction refinement"),
        "HEAD_WIDTH": Key(256, whole(1, SIZE), "its hidden width", HEADED),
        "HEAD_LR": Key(1e-3, number(above=0), "its learning rate (Adam)", HEADED),
        "HEAD_BATCH": Key(256, whole(1, SIZE), "its batch", HEADED),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node = self.cfg.TRAINER.CRAFT
        start = initial_context(self.oracle, node.CTX_INIT, node.N_CTX, generator)
        space = build_space(node, start, generator)
        optimizer = CMAES(
            space.origin.to(self.device),
            node.SIGMA,
            node.POPULATION,
            bound=node.BOUND,
            covariance=node.COVARIANCE,
            result=node.RESULT,
            options=node.CMA_OPTIONS,
            seed=child_seed(generator),
        )
        if not node.HEAD:
            return Recipe(space, optimizer, whole_set=True)
        with seeded(generator):
            head = PredictionRefinement(self.num_classes, node.HEAD_WIDTH).to(self.device)
        items = self.dm.dataset.train_x
        loader = ordered_loader(
            self.cfg, items, self.pictures, self.augmentation, node.HEAD_BATCH, shuffled=True
        )
        teacher = RefinementTeacher(head, loader, node.HEAD_LR, node.LAMBDA, node.KL_PART)
        worth = partial(fitness, head=head, weight=node.LAMBDA)
        return Recipe(space, optimizer, head, teacher, fitness=worth, whole_set=True)
