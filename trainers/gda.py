"""GDA: Gaussian discriminant analysis beside zero-shot (ICLR 2024)."""

from __future__ import annotations

from functools import partial

import torch

from .blackbox.answers import Gathered
from .blackbox.config import register_trainer
from .blackbox.heads.featured import FeatureHead, discriminant
from .blackbox.heads.selection import blended
from .blackbox.probe import ProbeTrainer, probe_keys


class AddedLinear(FeatureHead):
    """`scale x T^T + x W^T + b`: W `[C, E]` and b `[C]` are 0 at first."""

    class_bound = True
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, classes: int, dim: int, scale: float) -> None:
        super().__init__(scale)
        self.register_buffer("weight", torch.zeros(classes, dim))
        self.register_buffer("bias", torch.zeros(classes))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return super().forward(image, text) + image @ self.weight.mT + self.bias


def added(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return rows.double() @ weight.mT + bias


@register_trainer
class GDA(ProbeTrainer):
    """https://arxiv.org/abs/2402.04087: class means and a pooled covariance, in closed form.

    Access: words and pictures in, features out. `logits = s x T^T + alpha (x W^T + b)`. It costs
    `ceil(N / 128) (1 + VIEWS) + 1` queries, and one a batch in evaluation. The paper has 10
    augmented views, and chooses alpha by the validation split; here training images that are held
    out in turn choose it, beside a prior (`selection.blended`).
    """

    keys = probe_keys(folds=True)
    head: AddedLinear

    def build_head(self, generator: torch.Generator) -> AddedLinear:
        model = self.description
        return AddedLinear(self.num_classes, model.embed_dim, model.logit_scale)

    def fit(self, gathered: Gathered) -> str:
        def zero_shot(gathered: Gathered) -> torch.Tensor:
            return self.head.scale * gathered.rows.double() @ gathered.texts.double().mT

        def fits(gathered: Gathered) -> list[partial[torch.Tensor]]:
            weight, bias = discriminant(gathered.rows, gathered.labels, self.num_classes)
            return [partial(added, weight=weight, bias=bias)]

        _, alpha, found = blended(gathered, self.folds, zero_shot, fits)
        self.head.weight.copy_(alpha * found.keywords["weight"])
        self.head.bias.copy_(alpha * found.keywords["bias"])
        return f"alpha {alpha:.2g}, chosen on held-out images"
