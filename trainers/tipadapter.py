"""Tip-Adapter-F: a cache of the training images (ECCV 2022); with FINETUNE False, Tip-Adapter."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from .blackbox.collector import Gathered
from .blackbox.engine import BlackBoxTrainer
from .blackbox.features import descend, feature_keys, feature_recipe, rows_by_view, texts_of
from .blackbox.heads.featured import Cache, cache_scores
from .blackbox.heads.folds import folds_of
from .blackbox.heads.selection import away, blended
from .blackbox.keys import Key, flag, number, where, whole
from .blackbox.recipe import Recipe
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed

BATCH = 256
BETAS = tuple(2.0**exponent for exponent in range(-1, 7))
TUNED = where("FINETUNE", True)
# the authors' init_alpha, by which the keys are tuned; their init_beta is 1 for all
TUNING_ALPHA = {
    "Caltech101": 3.0,
    "DescribableTextures": 2.0,
    "EuroSAT": 2.0,
    "FGVCAircraft": 5.0,
    "Food101": 1.17,
    "ImageNet": 1.17,
    "OxfordFlowers": 10.0,
    "OxfordPets": 1.17,
    "StanfordCars": 3.0,
    "SUN397": 1.17,
    "UCF101": 3.0,
}


def cache_of(gathered: Gathered, images: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys `[N, E]`, the normalised mean of an image's views, and values `[N, C]`, its label.

    Both are 0 for an image without rows, which then adds nothing.
    """
    keys = gathered.rows.new_zeros(images, gathered.rows.shape[1])
    for view in rows_by_view(gathered):
        keys[gathered.index[view]] += gathered.rows[view]
    values = gathered.rows.new_zeros(images, classes)
    values[gathered.index, gathered.labels] = 1.0
    return F.normalize(keys, dim=-1), values


@register_trainer
class TipAdapterF(BlackBoxTrainer):
    """https://arxiv.org/abs/2207.09519: keys of the training images, tuned by gradients.

    Access: words and pictures in, features out.
    `logits = s x T^T + alpha exp(-beta (1 - x K^T)) Y`, Y the labels; with `FINETUNE` the keys K
    are tuned with beta 1 and the authors' alpha of the data set (1 where they have none). It costs
    `ceil(N / 128) (1 + VIEWS) + 1` queries, and one a batch in evaluation. The paper has 10 views
    for the keys, new ones in every epoch of the tuning (here the same take turns), chooses alpha
    and beta by the validation split (here by training images that are held out in turn, beside a
    prior), and its code keeps the epoch with the best test accuracy (here the last). The
    head holds a key for every training image, so that a checkpoint is evaluated with the
    DATASET.NUM_SHOTS of its training.
    """

    keys = {
        **feature_keys(folds=True),
        "FINETUNE": Key(True, flag(), "tune the keys; False: Tip-Adapter"),
        "LR": Key(1e-3, number(above=0), "learning rate of the keys (AdamW)", TUNED),
        "EPOCHS": Key(20, whole(1, 1_000), "passes over the training images", TUNED),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, seed = self.cfg.TRAINER.TIPADAPTERF, child_seed(generator)
        items, scale = self.dm.dataset.train_x, self.description.logit_scale
        images, classes = len(items), self.num_classes
        head = Cache(images, classes, self.description.embed_dim, scale)
        folds, tuning = folds_of(items, node.FOLDS), TUNING_ALPHA.get(self.cfg.DATASET.NAME, 1.0)

        def fitted_cache(gathered: Gathered) -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = cache_of(gathered, images, classes)
            if not node.FINETUNE:
                return keys, values
            x, labels, views = gathered.rows, gathered.labels, rows_by_view(gathered)
            prior, source = scale * x @ texts_of(gathered).mT, torch.Generator().manual_seed(seed)
            drawn = [
                rows
                for number in range(node.EPOCHS)
                for view in [views[number % len(views)]]
                for rows in view[torch.randperm(len(view), generator=source)].split(BATCH)
            ]
            keys.requires_grad_()

            def loss(number: int) -> torch.Tensor:
                rows = drawn[number]
                logits = prior[rows] + tuning * cache_scores(x[rows], keys, values, 1.0)
                return F.cross_entropy(logits, labels[rows])

            descend(torch.optim.AdamW([keys], lr=node.LR, eps=1e-4), len(drawn), loss)
            return keys.detach(), values

        def zero_shot(gathered: Gathered) -> torch.Tensor:
            return scale * gathered.rows @ texts_of(gathered).mT

        def fit(gathered: Gathered) -> list[partial[torch.Tensor]]:
            keys, values = fitted_cache(gathered)
            return [partial(cache_scores, keys=keys, values=values, beta=beta) for beta in BETAS]

        def solve(gathered: Gathered) -> str:
            near_1 = [away(beta, 1.0, 0.5) for beta in BETAS]
            _, alpha, fitted = blended(gathered, folds, zero_shot, fit, near_1)
            head.keys.copy_(fitted.keywords["keys"])
            head.values.copy_(fitted.keywords["values"])
            head.alpha.fill_(alpha)
            head.beta.fill_(fitted.keywords["beta"])
            return f"alpha {alpha:.2g}, beta {head.beta:g}, chosen on held-out images"

        return feature_recipe(self.cfg, node.VIEWS, head, solve)
