"""GDA: Gaussian discriminant analysis beside zero-shot (ICLR 2024)."""

from dataclasses import replace

import torch
from torch import Tensor

from . import blackbox as bb


def logits(scale: float, image: Tensor, text: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`scale x T^T + x W^T + b`."""
    return scale * image @ text.mT + image @ weight.mT + bias


@bb.register_trainer
class GDA(bb.ProbeTrainer):
    """https://arxiv.org/abs/2402.04087: class means and a pooled covariance, in closed form.

    `logits = s x T^T + alpha (x W^T + b)`; held-out training images choose alpha (`blended`).
    Access: features. Cost: a query for 128 images of a view, and one for the texts.
    """

    keys = bb.probe_keys(folds=True)
    head: bb.FeatureHead

    def build_head(self, generator: torch.Generator) -> bb.FeatureHead:
        C, model = self.num_classes, self.description
        weight = torch.zeros(C, model.embed_dim)
        return bb.FeatureHead(logits, model.logit_scale, weight=weight, bias=torch.zeros(C))

    def fit(self, gathered: bb.Gathered) -> str:
        def fits(part: bb.Gathered) -> list[dict[str, Tensor]]:
            weight, bias = bb.selection.discriminant(part.rows, part.labels, self.num_classes)
            return [{"weight": weight, "bias": bias}]

        gathered = replace(gathered, rows=gathered.rows.double(), texts=gathered.texts.double())
        alpha, found = bb.selection.blended(gathered, self.folds, self.head, fits, [0.0])
        self.head.load_state_dict({name: alpha * number for name, number in found.items()})
        return f"alpha {alpha:.2g}, chosen on held-out images"
