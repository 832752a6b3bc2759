"""GDA: Gaussian discriminant analysis beside zero-shot (ICLR 2024)."""

from __future__ import annotations

from functools import partial
from math import log

import torch
import torch.nn.functional as F

from .blackbox.collector import Gathered
from .blackbox.engine import BlackBoxTrainer
from .blackbox.features import feature_keys, feature_recipe, texts_of
from .blackbox.heads.featured import AddedLinear
from .blackbox.heads.folds import folds_of
from .blackbox.heads.selection import blended
from .blackbox.recipe import Recipe
from .blackbox.registry import register_trainer


def discriminant(
    rows: torch.Tensor, labels: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`W = mu P` `[C, E]` and `b = -mu P mu^T / 2 - log C` `[C]` of rows `[M, E]`, in float64.

    `P = E pinv((M - 1) S + tr(S) I)` is a ridge inverse of the covariance S of the rows about the
    mean mu of their class. A class without rows has the mean of all.
    """
    x, member = rows.double(), F.one_hot(labels, classes).double()
    count = member.sum(0)[:, None]
    means = torch.where(count > 0, member.mT @ x / count.clamp_min(1), x.mean(0))
    residuals = x - means[labels]
    scatter = residuals.mT @ residuals  # (M - 1) S
    ridge = scatter.trace() / max(1, len(x) - 1) * torch.eye(x.shape[1]).to(x)
    weight = means @ (x.shape[1] * torch.linalg.pinv(scatter + ridge, hermitian=True))
    return weight, -(weight * means).sum(-1) / 2 - log(classes)


@register_trainer
class GDA(BlackBoxTrainer):
    """https://arxiv.org/abs/2402.04087: class means and a pooled covariance, in closed form.

    Access: words and pictures in, features out. `logits = s x T^T + alpha (x W^T + b)`. It costs
    `ceil(N / 128) (1 + VIEWS) + 1` queries, and one a batch in evaluation. The paper has 10
    augmented views, and chooses alpha by the validation split; here training images that are held
    out in turn choose it, beside a prior (`selection.blended`).
    """

    keys = feature_keys(folds=True)

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, classes = self.cfg.TRAINER.GDA, self.num_classes
        head = AddedLinear(classes, self.description.embed_dim, self.description.logit_scale)
        folds = folds_of(self.dm.dataset.train_x, node.FOLDS)

        def zero_shot(gathered: Gathered) -> torch.Tensor:
            return head.scale * gathered.rows.double() @ texts_of(gathered).double().mT

        def added(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return rows.double() @ weight.mT + bias

        def fit(gathered: Gathered) -> list[partial[torch.Tensor]]:
            weight, bias = discriminant(gathered.rows, gathered.labels, classes)
            return [partial(added, weight=weight, bias=bias)]

        def solve(gathered: Gathered) -> str:
            _, alpha, fitted = blended(gathered, folds, zero_shot, fit)
            head.weight.copy_(alpha * fitted.keywords["weight"])
            head.bias.copy_(alpha * fitted.keywords["bias"])
            return f"alpha {alpha:.2g}, chosen on held-out images"

        return feature_recipe(self.cfg, node.VIEWS, head, solve)
