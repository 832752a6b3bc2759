"""LFA: a linear map of image features onto the class texts (ICCV 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp

import torch
import torch.nn.functional as F

from .blackbox.answers import Gathered
from .blackbox.config import Key, flag, number, register_trainer, whole
from .blackbox.heads.featured import FeatureMap
from .blackbox.heads.selection import choose
from .blackbox.probe import ProbeTrainer, descend, probe_keys
from .blackbox.run.rng import child_seed

BETAS = tuple(1 - step / 24 for step in range(25))  # from the identity on
TRANSFER_BETA = 0.9
NOISE, DROPOUT = 0.035, 0.05
TIE = 1e-8  # of the norm of X^T T: above the rounding of an SVD, below what its data decide


def procrustes(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The orthogonal W `[E, E]` with the least `|X W - T|`, for rows and targets `[M, E]`; float64.

    With fewer classes than E many have it, and which of them an SVD returns differs between
    LAPACK's drivers and devices. This is the one nearest to the identity, of which `X^T T` gets a
    little.
    """
    cross = rows.double().mT @ targets.double()
    cross.diagonal().add_(TIE * cross.norm())
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def between(matrix: torch.Tensor, beta: float) -> torch.Tensor:
    """`(1 - beta) W + beta I`."""
    return (1 - beta) * matrix + beta * torch.eye(len(matrix)).to(matrix)


def reranking(
    mapped: torch.Tensor, text: torch.Tensor, labels: torch.Tensor, k: int = 3, scale: float = 4.0
) -> torch.Tensor:
    """Adaptive re-ranking loss: mean of `max(0, d_y + (1 - t_j t_y) / scale - d_j)`.

    It is taken over images and over their k nearest class texts j; d are distances, y the label.

    Args:
        mapped: normalised `[M, E]`.
        text: `[C, E]`.
        labels: `[M]`.
    """
    distances = torch.cdist(mapped, text)
    near, which = distances.topk(min(k, len(text)), largest=False)
    margins = (1 - text @ text.mT)[labels].gather(1, which) / scale
    return (distances.gather(1, labels[:, None]) + margins - near).relu().mean()


def disturbed(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise on every number, in half of the calls, and a twentieth left out, in half of them."""
    noisy, thinned = torch.rand(2, generator=generator).lt(0.5).tolist()
    if noisy:
        rows = rows + NOISE * torch.randn(rows.shape, generator=generator).to(rows)
    if thinned:
        rows = rows * torch.rand(rows.shape, generator=generator).ge(DROPOUT).to(rows)
    return rows


def inertia(step: int, steps: int) -> float:
    """Share of the average that stays in a step: from 0.9 to almost 1 in the first half."""
    return 0.9 + 0.1 * (1 - exp(-5 * min(1.0, 2 * step / steps)))


@register_trainer
class LFA(ProbeTrainer):
    """https://arxiv.org/abs/2304.01752: orthogonal Procrustes, then refinement by gradients.

    Access: words and pictures in, features out. `logits = s norm(x W) T^T`. It costs
    `ceil(N / 128) (1 + VIEWS) + 1` queries, and one a batch in evaluation. The map is tied to no
    class; `TRANSFER` uses the average of its course from the identity on, for other classes than
    those of the training.

    The paper has five crops of an image (here views from the train transforms) and chooses beta by
    random fifths of the training images (here by folds), and its code has a number of steps for
    every data set (here one for all).
    """

    keys = {
        **probe_keys(folds=True),
        "TRANSFER": Key(False, flag(), "for other classes: the averaged map, beta 0.9"),
        "LR": Key(5e-4, number(above=0), "learning rate (AdamW)"),
        "STEPS": Key(200, whole(0, 10_000), "of the refinement, on a view of all images each"),
    }
    head: FeatureMap

    def build_head(self, generator: torch.Generator) -> FeatureMap:
        self.seed = child_seed(generator)
        return FeatureMap(self.description.embed_dim, self.description.logit_scale)

    def fit(self, gathered: Gathered) -> str:
        node, beta, text = self.cfg.TRAINER.LFA, TRANSFER_BETA, gathered.texts

        def logits_of(fitted: Gathered, judged: Gathered) -> Iterator[torch.Tensor]:
            x, text = judged.rows.double(), fitted.texts.double()
            matrix = procrustes(fitted.rows, text[fitted.labels])
            return (x @ between(matrix, beta) @ text.mT for beta in BETAS)

        if not node.TRANSFER:
            beta = choose(gathered, self.folds, BETAS, logits_of, class_bound=False)
        closed = procrustes(gathered.rows, text[gathered.labels])
        matrix = between(closed, beta).to(text).requires_grad_()
        average = torch.eye(len(matrix)).to(text)
        views, source = gathered.by_view(), torch.Generator().manual_seed(self.seed)

        def loss(step: int) -> torch.Tensor:
            rows = views[step % len(views)]
            mapped = F.normalize(disturbed(gathered.rows[rows], source) @ matrix, dim=-1)
            return reranking(mapped, text, gathered.labels[rows])

        def follow(step: int) -> None:
            average.lerp_(matrix.detach(), 1 - inertia(step, node.STEPS))

        adam = torch.optim.AdamW([matrix], lr=node.LR, weight_decay=5e-4)
        descend(adam, node.STEPS, loss, lowest=1e-7, after=follow)
        self.head.matrix.copy_(average if node.TRANSFER else matrix.detach())
        return f"beta {beta:.3f}"
