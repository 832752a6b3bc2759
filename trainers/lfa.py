"""LFA: a linear map of image features onto the class texts (ICCV 2023)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .blackbox.collector import Gathered
from .blackbox.engine import BlackBoxTrainer
from .blackbox.features import descend, feature_keys, feature_recipe, rows_by_view, texts_of
from .blackbox.heads.alignment import between, disturbed, inertia, procrustes, reranking
from .blackbox.heads.featured import FeatureMap
from .blackbox.heads.folds import folds_of
from .blackbox.heads.selection import choose
from .blackbox.keys import Key, flag, number, whole
from .blackbox.recipe import Recipe
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed

BETAS = tuple(1 - step / 24 for step in range(25))  # from the identity on
TRANSFER_BETA = 0.9


@register_trainer
class LFA(BlackBoxTrainer):
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
        **feature_keys(folds=True),
        "TRANSFER": Key(False, flag(), "for other classes: the averaged map, beta 0.9"),
        "LR": Key(5e-4, number(above=0), "learning rate (AdamW)"),
        "STEPS": Key(200, whole(0, 10_000), "of the refinement, on a view of all images each"),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, seed = self.cfg.TRAINER.LFA, child_seed(generator)
        head = FeatureMap(self.description.embed_dim, self.description.logit_scale)
        folds = folds_of(self.dm.dataset.train_x, node.FOLDS)

        def logits_of(fitted: Gathered, judged: Gathered) -> Iterator[torch.Tensor]:
            x, text = judged.rows.double(), texts_of(fitted).double()
            matrix = procrustes(fitted.rows, text[fitted.labels])
            return (x @ between(matrix, beta) @ text.mT for beta in BETAS)

        def solve(gathered: Gathered) -> str:
            beta, text = TRANSFER_BETA, texts_of(gathered)
            if not node.TRANSFER:
                beta = choose(gathered, folds, BETAS, logits_of, class_bound=False)
            closed = procrustes(gathered.rows, text[gathered.labels])
            matrix = between(closed, beta).to(text).requires_grad_()
            average = torch.eye(len(matrix)).to(text)
            views, source = rows_by_view(gathered), torch.Generator().manual_seed(seed)

            def loss(step: int) -> torch.Tensor:
                rows = views[step % len(views)]
                mapped = F.normalize(disturbed(gathered.rows[rows], source) @ matrix, dim=-1)
                return reranking(mapped, text, gathered.labels[rows])

            def follow(step: int) -> None:
                average.lerp_(matrix.detach(), 1 - inertia(step, node.STEPS))

            adam = torch.optim.AdamW([matrix], lr=node.LR, weight_decay=5e-4)
            descend(adam, node.STEPS, loss, lowest=1e-7, after=follow)
            head.matrix.copy_(average if node.TRANSFER else matrix.detach())
            return f"beta {beta:.3f}"

        return feature_recipe(self.cfg, node.VIEWS, head, solve)
