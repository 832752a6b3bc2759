"""Tip-Adapter-F: a cache of the training images (ECCV 2022); with FINETUNE False, Tip-Adapter."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from .blackbox.answers import Gathered
from .blackbox.config import Key, flag, number, register_trainer, where, whole
from .blackbox.heads.featured import FeatureHead
from .blackbox.heads.selection import away, blended
from .blackbox.probe import ProbeTrainer, descend, probe_keys
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


def cache_scores(
    image: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, beta: float | torch.Tensor
) -> torch.Tensor:
    """`exp(-beta (1 - x K^T)) V`: `[B, C]` of images `[B, E]`, keys `[N, E]`, values `[N, C]`."""
    return (beta * (image @ keys.mT - 1)).exp() @ values


class Cache(FeatureHead):
    """`scale x T^T + alpha exp(-beta (1 - x K^T)) V`: alpha is 0 at first.

    Args:
        images: N, of the training set: the checkpoint holds a key `[E]` and a value `[C]` for each.
    """

    class_bound = True
    keys: torch.Tensor
    values: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor

    def __init__(self, images: int, classes: int, dim: int, scale: float) -> None:
        super().__init__(scale)
        self.register_buffer("keys", torch.zeros(images, dim))
        self.register_buffer("values", torch.zeros(images, classes))
        self.register_buffer("alpha", torch.tensor(0.0))
        self.register_buffer("beta", torch.tensor(1.0))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        added = cache_scores(image, self.keys, self.values, self.beta)
        return super().forward(image, text) + self.alpha * added


def cache_of(gathered: Gathered, images: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys `[N, E]`, the normalised mean of an image's views, and values `[N, C]`, its label.

    Both are 0 for an image without rows, which then adds nothing.
    """
    keys = gathered.rows.new_zeros(images, gathered.rows.shape[1])
    for view in gathered.by_view():
        keys[gathered.index[view]] += gathered.rows[view]
    values = gathered.rows.new_zeros(images, classes)
    values[gathered.index, gathered.labels] = 1.0
    return F.normalize(keys, dim=-1), values


@register_trainer
class TipAdapterF(ProbeTrainer):
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
        **probe_keys(folds=True),
        "FINETUNE": Key(True, flag(), "tune the keys; False: Tip-Adapter"),
        "LR": Key(1e-3, number(above=0), "learning rate of the keys (AdamW)", TUNED),
        "EPOCHS": Key(20, whole(1, 1_000), "passes over the training images", TUNED),
    }
    head: Cache

    def build_head(self, generator: torch.Generator) -> Cache:
        self.seed, model = child_seed(generator), self.description
        images = len(self.dm.dataset.train_x)
        return Cache(images, self.num_classes, model.embed_dim, model.logit_scale)

    def cache(self, gathered: Gathered) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, the keys tuned with `FINETUNE`."""
        node, scale = self.cfg.TRAINER.TIPADAPTERF, self.head.scale
        keys, values = cache_of(gathered, *self.head.values.shape)
        if not node.FINETUNE:
            return keys, values
        x, labels, views = gathered.rows, gathered.labels, gathered.by_view()
        prior, source = scale * x @ gathered.texts.mT, torch.Generator().manual_seed(self.seed)
        tuning = TUNING_ALPHA.get(self.cfg.DATASET.NAME, 1.0)
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

    def fit(self, gathered: Gathered) -> str:
        def zero_shot(gathered: Gathered) -> torch.Tensor:
            return self.head.scale * gathered.rows @ gathered.texts.mT

        def fits(gathered: Gathered) -> list[partial[torch.Tensor]]:
            keys, values = self.cache(gathered)
            return [partial(cache_scores, keys=keys, values=values, beta=beta) for beta in BETAS]

        near_1 = [away(beta, 1.0, 0.5) for beta in BETAS]
        _, alpha, found = blended(gathered, self.folds, zero_shot, fits, near_1)
        self.head.keys.copy_(found.keywords["keys"])
        self.head.values.copy_(found.keywords["values"])
        self.head.alpha.fill_(alpha)
        self.head.beta.fill_(found.keywords["beta"])
        return f"alpha {alpha:.2g}, beta {self.head.beta:g}, chosen on held-out images"
