"""CLAP: a linear probe held near the class texts (CVPR 2024); with WEIGHT 0, ZS-LP."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .blackbox.answers import Gathered
from .blackbox.config import Key, number, register_trainer, whole
from .blackbox.heads.featured import FeatureHead
from .blackbox.probe import ProbeTrainer, descend, probe_keys
from .blackbox.run.rng import child_seed

BATCH = 256


class Prototypes(FeatureHead):
    """`scale x norm(T + D)^T`: D `[C, E]` is 0 at first."""

    class_bound = True
    shift: torch.Tensor

    def __init__(self, classes: int, dim: int, scale: float) -> None:
        super().__init__(scale)
        self.register_buffer("shift", torch.zeros(classes, dim))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().forward(image, F.normalize(text + self.shift, dim=-1))


def multipliers(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """lambda `[C]`: mean zero-shot probability of the true class over the rows of a class.

    1 for a class without rows.

    Args:
        logits: zero-shot `[M, C]`.
        labels: `[M]`.
    """
    member = F.one_hot(labels, logits.shape[1]).to(logits)
    count = member.sum(0)
    sums = (member * logits.softmax(-1)).sum(0)
    return torch.where(count > 0, sums / count.clamp_min(1), 1.0)


def penalty(prototypes: torch.Tensor, start: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`mean_c lambda_c |P_c - T_c|^2` of prototypes `[C, E]`."""
    return (weights * (prototypes - start).square().sum(-1)).mean()


def batches(rows: int, images: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Numbers of rows, without end; all are shuffled after as many as there are images."""
    while True:
        order = torch.randperm(rows, generator=generator)
        yield from order.split(BATCH)[: max(1, images // BATCH)]


@register_trainer
class CLAP(ProbeTrainer):
    """https://arxiv.org/abs/2312.12730: gradient descent on one prototype a class.

    Access: words and pictures in, features out. `logits = s x norm(P)^T`, P starts at the class
    texts; the loss is the cross-entropy plus `WEIGHT mean_c lambda_c |P_c - T_c|^2`, lambda_c the
    mean zero-shot probability of class c on its training images. It costs
    `ceil(N / 128) (1 + VIEWS) + 1` queries, and one a batch in evaluation. The paper has 20 views.
    """

    keys = {
        **probe_keys(),
        "WEIGHT": Key(1.0, number(0), "of the penalty; 0: ZS-LP"),
        "LR": Key(0.1, number(above=0), "learning rate (SGD with momentum 0.9)"),
        "EPOCHS": Key(300, whole(1, 10_000), "of as many rows as there are training images"),
        # the published code starts from features as the model makes them, before they are
        # normalised; LR and the penalty are in units of their length, which is not let out
        "LENGTH": Key(10.0, number(above=0), "of the prototypes at the start"),
    }
    head: Prototypes

    def build_head(self, generator: torch.Generator) -> Prototypes:
        self.seed, model = child_seed(generator), self.description
        return Prototypes(self.num_classes, model.embed_dim, model.logit_scale)

    def fit(self, gathered: Gathered) -> str:
        node, scale = self.cfg.TRAINER.CLAP, self.head.scale
        x, labels, text = gathered.rows, gathered.labels, gathered.texts
        weights = multipliers(scale * x @ text.mT, labels)
        start = node.LENGTH * text
        prototypes = start.clone().requires_grad_()
        sgd = torch.optim.SGD([prototypes], lr=node.LR, momentum=0.9)
        images = len(gathered.index.unique())
        drawn = batches(len(x), images, torch.Generator().manual_seed(self.seed))

        def loss(_: int) -> torch.Tensor:
            rows = next(drawn).to(x.device)
            logits = scale * x[rows] @ F.normalize(prototypes, dim=-1).mT
            error = F.cross_entropy(logits, labels[rows])
            return error + node.WEIGHT * penalty(prototypes, start, weights)

        descend(sgd, node.EPOCHS * max(1, images // BATCH), loss)
        self.head.shift.copy_(prototypes.detach() / node.LENGTH - text)
        return f"lambda {weights.min():.3f} to {weights.max():.3f}"
