"""CLAP: a linear probe held near the class texts (CVPR 2024); with WEIGHT 0, ZS-LP."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import blackbox as bb


def logits(scale: float, image: Tensor, text: Tensor, shift: Tensor) -> Tensor:
    """`scale x norm(T + D)^T`, D `[C, E]`."""
    return scale * image @ F.normalize(text + shift, dim=-1).mT


@bb.register_trainer
class CLAP(bb.ProbeTrainer):
    """https://arxiv.org/abs/2312.12730: gradient descent on one prototype a class.

    `logits = s x norm(P)^T`, P starts at the class texts; the loss is the cross-entropy plus
    `WEIGHT mean_c lambda_c |P_c - T_c|^2`, lambda_c the mean zero-shot probability of class c on
    its training images, 1 where it has none.
    Access: features. Cost: a query for 128 images of a view, and one for the texts.
    """

    keys = {
        **bb.probe_keys(),
        "WEIGHT": bb.Key(1.0, bb.number(0), "of the penalty; 0: ZS-LP"),
        "LR": bb.Key(0.1, bb.number(above=0), "learning rate (SGD with momentum 0.9)"),
        "EPOCHS": bb.Key(300, bb.whole(1, 10_000), "of as many rows as there are training images"),
        # LR and the penalty are in units of it: the published start is not normalised
        "LENGTH": bb.Key(10.0, bb.number(above=0), "of the prototypes at the start"),
    }
    head: bb.FeatureHead

    def build_head(self, generator: torch.Generator) -> bb.FeatureHead:
        self.seed, model = bb.child_seed(generator), self.description
        shift = torch.zeros(self.num_classes, model.embed_dim)
        return bb.FeatureHead(logits, model.logit_scale, shift=shift)

    def fit(self, gathered: bb.Gathered) -> str:
        node, scale = self.cfg.TRAINER.CLAP, self.head.scale
        x, labels, text = gathered.rows, gathered.labels, gathered.texts
        member = F.one_hot(labels, len(text)).to(x)
        sums = (member * (scale * x @ text.mT).softmax(-1)).sum(0)
        count = member.sum(0)
        weights = torch.where(count > 0, sums / count.clamp_min(1), 1.0)  # lambda
        start = node.LENGTH * text
        prototypes = start.clone().requires_grad_()
        an_epoch = max(1, len(gathered.index.unique()) // bb.selection.BATCH)
        drawn = bb.selection.minibatches([torch.arange(len(x))], an_epoch, self.seed)

        def loss(_: int) -> Tensor:
            rows = next(drawn)
            told = scale * x[rows] @ F.normalize(prototypes, dim=-1).mT
            penalty = (weights * (prototypes - start).square().sum(-1)).mean()
            return F.cross_entropy(told, labels[rows]) + node.WEIGHT * penalty

        sgd = torch.optim.SGD([prototypes], lr=node.LR, momentum=0.9)
        bb.descend(sgd, node.EPOCHS * an_epoch, loss)
        self.head.load_state_dict({"shift": prototypes.detach() / node.LENGTH - text})
        return f"lambda {weights.min():.3f} to {weights.max():.3f}"
