"""RLA: a linear map of image features held near the identity; ProLIP's black-box form (2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import blackbox as bb


@bb.register_trainer
class RLA(bb.ProbeTrainer):
    """https://arxiv.org/abs/2410.05270, "regularised linear adapter": `logits = s norm(x W) T^T`.

    W starts at the identity; the loss is the cross-entropy plus `PENALTY / shots |W - I|^2`, shots
    the mean number of training images a class. VIEWS and the image itself take turns. The map is
    tied to no class.
    Access: features. Cost: a query for 128 images of a view, and one for the texts.
    """

    keys = {
        **bb.probe_keys(),
        "PENALTY": bb.Key(
            1.0, bb.number(0), "weight of |W - I|^2, times the training images a class"
        ),
        "LR": bb.Key(1e-3, bb.number(above=0), "learning rate (Adam)"),
        "STEPS": bb.Key(300, bb.whole(1, 10_000), "on a view of all images each"),
    }
    head: bb.FeatureHead

    def build_head(self, generator: torch.Generator) -> bb.FeatureHead:
        model = self.description
        matrix = torch.eye(model.embed_dim)
        return bb.FeatureHead(bb.selection.mapped, model.logit_scale, matrix=matrix)

    def fit(self, gathered: bb.Gathered) -> str:
        node, text, views = self.cfg.TRAINER.RLA, gathered.texts, gathered.by_view()
        weight = node.PENALTY * len(text) / len(gathered.index.unique())
        identity = torch.eye(text.shape[1]).to(text)
        matrix = identity.clone().requires_grad_()

        def loss(step: int) -> Tensor:
            rows = views[step % len(views)]
            logits = bb.selection.mapped(self.head.scale, gathered.rows[rows], text, matrix)
            distance = (matrix - identity).square().sum()
            return F.cross_entropy(logits, gathered.labels[rows]) + weight * distance

        bb.descend(torch.optim.Adam([matrix], lr=node.LR, eps=1e-4), node.STEPS, loss)
        self.head.load_state_dict({"matrix": matrix.detach()})
        return f"lambda {weight:.4f}"
