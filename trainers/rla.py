"""RLA: a linear map of image features held near the identity; ProLIP's black-box form (2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .blackbox.answers import Gathered
from .blackbox.config import Key, number, register_trainer, whole
from .blackbox.heads.featured import FeatureMap
from .blackbox.probe import ProbeTrainer, descend, probe_keys


def loss_of(
    matrix: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    text: torch.Tensor,
    scale: float,
    weight: float,
) -> torch.Tensor:
    """Cross-entropy of `scale norm(x W) T^T` plus `weight |W - I|^2` (the sum of squares).

    Args:
        matrix: W `[E, E]`.
        rows: x `[M, E]`.
        labels: `[M]`.
        text: T `[C, E]`.
    """
    logits = scale * F.normalize(rows @ matrix, dim=-1) @ text.mT
    distance = (matrix - torch.eye(len(matrix)).to(matrix)).square().sum()
    return F.cross_entropy(logits, labels) + weight * distance


@register_trainer
class RLA(ProbeTrainer):
    """https://arxiv.org/abs/2410.05270, "regularised linear adapter": `logits = s norm(x W) T^T`.

    Access: words and pictures in, features out. W starts at the identity; the loss is the
    cross-entropy plus `PENALTY / shots |W - I|^2`, shots the mean number of training images a
    class. It costs `ceil(N / 128) (1 + VIEWS) + 1` queries, and one a batch in evaluation. The map
    is tied to no class. The paper has 300 augmented views, one a step; here VIEWS of them, and the
    image itself, take turns.
    """

    keys = {
        **probe_keys(),
        "PENALTY": Key(1.0, number(0), "weight of |W - I|^2, times the training images a class"),
        "LR": Key(1e-3, number(above=0), "learning rate (Adam)"),
        "STEPS": Key(300, whole(1, 10_000), "on a view of all images each"),
    }
    head: FeatureMap

    def build_head(self, generator: torch.Generator) -> FeatureMap:
        return FeatureMap(self.description.embed_dim, self.description.logit_scale)

    def fit(self, gathered: Gathered) -> str:
        node, text, views = self.cfg.TRAINER.RLA, gathered.texts, gathered.by_view()
        weight = node.PENALTY * len(text) / len(gathered.index.unique())
        matrix = torch.eye(text.shape[1]).to(text).requires_grad_()

        def loss(step: int) -> torch.Tensor:
            rows = views[step % len(views)]
            x, labels = gathered.rows[rows], gathered.labels[rows]
            return loss_of(matrix, x, labels, text, self.head.scale, weight)

        descend(torch.optim.Adam([matrix], lr=node.LR, eps=1e-4), node.STEPS, loss)
        self.head.matrix.copy_(matrix.detach())
        return f"lambda {weight:.4f}"
