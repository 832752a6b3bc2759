"""LFA: a linear map of image features onto the class texts (ICCV 2023)."""

from collections.abc import Iterator
from itertools import count
from math import exp
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import blackbox as bb

BETAS = tuple(1 - step / 24 for step in range(25))  # from the identity on
TRANSFER_BETA, NOISE, DROPOUT = 0.9, 0.035, 0.05
TIE = 1e-8  # of the norm of X^T T: above the rounding of an SVD, below what its data decide


def procrustes(rows: Tensor, targets: Tensor) -> Tensor:
    """The orthogonal W `[E, E]` with the least `|X W - T|`, for rows and targets `[M, E]`; float64.

    With fewer classes than E many have it, and LAPACK's drivers differ in which they return: this
    is the one nearest to the identity, of which `X^T T` gets a little.
    """
    cross = rows.double().mT @ targets.double()
    cross.diagonal().add_(TIE * cross.norm())
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def reranking(image: Tensor, text: Tensor, labels: Tensor, k: int = 3) -> Tensor:
    """Adaptive re-ranking loss: mean of `max(0, d_y + (1 - t_j t_y) / 4 - d_j)`.

    Over mapped images `[M, E]` and their k nearest class texts j; d are distances, y the label.
    """
    distances = torch.cdist(image, text)
    near, which = distances.topk(min(k, len(text)), largest=False)
    margins = (1 - text @ text.mT)[labels].gather(1, which) / 4
    return (distances.gather(1, labels[:, None]) + margins - near).relu().mean()


@bb.register_trainer
class LFA(bb.ProbeTrainer):
    """https://arxiv.org/abs/2304.01752: orthogonal Procrustes, then refinement by gradients.

    `logits = s norm(x W) T^T`, W refined from `(1 - beta) W + beta I`, beta by held-out images. The
    map is tied to no class; `TRANSFER` uses the average of its course from the identity on, for
    other classes than those of the training.
    Access: features. Cost: a query for 128 images of a view, and one for the texts.
    """

    keys = {
        **bb.probe_keys(folds=True),
        "TRANSFER": bb.Key(False, bb.flag(), "for other classes: the averaged map, beta 0.9"),
        "LR": bb.Key(5e-4, bb.number(above=0), "learning rate (AdamW)"),
        "STEPS": bb.Key(200, bb.whole(0, 10_000), "of the refinement, a view of all images each"),
    }
    head: bb.FeatureHead

    def build_head(self, generator: torch.Generator) -> bb.FeatureHead:
        self.seed, model = bb.child_seed(generator), self.description
        matrix = torch.eye(model.embed_dim)
        return bb.FeatureHead(bb.selection.mapped, model.logit_scale, matrix=matrix)

    def fit(self, gathered: bb.Gathered) -> str:
        node, beta, text = self.cfg.TRAINER.LFA, TRANSFER_BETA, gathered.texts
        average = torch.eye(text.shape[1]).to(text)
        identity = average.double()

        def between(closed: Tensor, beta: float) -> Tensor:
            return (1 - beta) * closed + beta * identity

        def logits_of(fitted: bb.Gathered, judged: bb.Gathered) -> Iterator[Tensor]:
            x, text = judged.rows.double(), fitted.texts.double()
            matrix = procrustes(fitted.rows, text[fitted.labels])
            return (x @ between(matrix, beta) @ text.mT for beta in BETAS)

        if not node.TRANSFER:
            even = [0.0] * len(BETAS)
            beta = BETAS[bb.selection.choose(gathered, self.folds, even, logits_of, False)]
        closed = procrustes(gathered.rows, text[gathered.labels])
        matrix = between(closed, beta).to(text).requires_grad_()
        views, source = gathered.by_view(), torch.Generator().manual_seed(self.seed)

        def loss(step: int) -> Tensor:
            rows = views[step % len(views)]
            x = gathered.rows[rows]
            noisy, thinned = torch.rand(2, generator=source).lt(0.5).tolist()
            if noisy:
                x = x + NOISE * torch.randn(x.shape, generator=source).to(x)
            if thinned:
                x = x * torch.rand(x.shape, generator=source).ge(DROPOUT).to(x)
            return reranking(F.normalize(x @ matrix, dim=-1), text, gathered.labels[rows])

        steps = count()

        def follow(*_: Any) -> None:
            # what stays of the average grows from 0.9 to almost 1 in the first half
            stays = 0.9 + 0.1 * (1 - exp(-5 * min(1.0, 2 * next(steps) / node.STEPS)))
            average.lerp_(matrix.detach(), 1 - stays)

        adam = torch.optim.AdamW([matrix], lr=node.LR, weight_decay=5e-4)
        adam.register_step_post_hook(follow)
        bb.descend(adam, node.STEPS, loss, lowest=1e-7)
        self.head.load_state_dict({"matrix": average if node.TRANSFER else matrix.detach()})
        return f"beta {beta:.3f}"
