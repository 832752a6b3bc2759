"""Tip-Adapter-F: a cache of the training images (ECCV 2022); with FINETUNE False, Tip-Adapter."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import blackbox as bb

BETAS = tuple(2.0**exponent for exponent in range(-1, 7))
TUNED = bb.where("FINETUNE", True)
TUNING_ALPHA = {  # the authors' init_alpha, by which the keys are tuned; their init_beta is 1
    **dict.fromkeys(("Food101", "ImageNet", "OxfordPets", "SUN397"), 1.17),
    **dict.fromkeys(("DescribableTextures", "EuroSAT"), 2.0),
    **dict.fromkeys(("Caltech101", "StanfordCars", "UCF101"), 3.0),
    "FGVCAircraft": 5.0,
    "OxfordFlowers": 10.0,
}


def logits(
    scale: float,
    image: Tensor,
    text: Tensor,
    alpha: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Tensor | float,
) -> Tensor:
    """`scale x T^T + alpha exp(-beta (1 - x K^T)) V` of keys K `[N, E]` and values V `[N, C]`."""
    added = bb.selection.affinity(image, keys, beta) @ values
    return scale * image @ text.mT + alpha * added


@bb.register_trainer
class TipAdapterF(bb.ProbeTrainer):
    """https://arxiv.org/abs/2207.09519: keys of the training images, tuned by gradients.

    `logits = s x T^T + alpha exp(-beta (1 - x K^T)) V`; with `FINETUNE` the keys are tuned with
    beta 1 and the authors' alpha of the data set (1 where they have none). Held-out training images
    choose alpha and beta (`blended`). A checkpoint has a key for every training image: it is
    evaluated with the DATASET.NUM_SHOTS of its training.
    Access: features. Cost: a query for 128 images of a view, and one for the texts.
    """

    keys = {
        **bb.probe_keys(folds=True),
        "FINETUNE": bb.Key(True, bb.flag(), "tune the keys; False: Tip-Adapter"),
        "LR": bb.Key(1e-3, bb.number(above=0), "learning rate of the keys (AdamW)", TUNED),
        "EPOCHS": bb.Key(20, bb.whole(1, 1_000), "passes over the training images", TUNED),
    }
    head: bb.FeatureHead

    def build_head(self, generator: torch.Generator) -> bb.FeatureHead:
        self.seed, model = bb.child_seed(generator), self.description
        N, alpha, beta = len(self.dm.dataset.train_x), torch.tensor(0.0), torch.tensor(1.0)
        keys, values = torch.zeros(N, model.embed_dim), torch.zeros(N, self.num_classes)
        cache = {"keys": keys, "values": values, "alpha": alpha, "beta": beta}
        return bb.FeatureHead(logits, model.logit_scale, **cache)

    def caches(self, gathered: bb.Gathered) -> list[dict[str, Tensor]]:
        """The cache with each of the `BETAS`; an image without rows is 0, and adds nothing."""
        node, x, labels = self.cfg.TRAINER.TIPADAPTERF, gathered.rows, gathered.labels
        values = x.new_zeros(len(self.dm.dataset.train_x), self.num_classes)
        values[gathered.index, labels] = 1.0
        keys, views = x.new_zeros(len(values), x.shape[1]), gathered.by_view()
        for view in views:
            keys[gathered.index[view]] += x[view]
        keys = F.normalize(keys, dim=-1).requires_grad_()
        zero_shot = self.head.scale * x @ gathered.texts.mT
        alpha = TUNING_ALPHA.get(self.cfg.DATASET.NAME, 1.0)
        an_epoch = -(-len(views[0]) // bb.selection.BATCH)
        drawn = bb.selection.minibatches(views, an_epoch, self.seed)

        def loss(_: int) -> Tensor:
            rows = next(drawn)
            added = bb.selection.affinity(x[rows], keys, 1.0) @ values
            return F.cross_entropy(zero_shot[rows] + alpha * added, labels[rows])

        epochs = node.EPOCHS if node.FINETUNE else 0
        bb.descend(torch.optim.AdamW([keys], lr=node.LR, eps=1e-4), epochs * an_epoch, loss)
        cache = {"keys": keys.detach(), "values": values, "alpha": torch.tensor(1.0)}
        return [{**cache, "beta": torch.tensor(beta)} for beta in BETAS]

    def fit(self, gathered: bb.Gathered) -> str:
        priors = [bb.selection.away(beta, 1.0, 0.5) for beta in BETAS]
        alpha, cache = bb.selection.blended(gathered, self.folds, self.head, self.caches, priors)
        self.head.load_state_dict({**cache, "alpha": torch.tensor(alpha)})
        return f"alpha {alpha:.2g}, beta {cache['beta']:g}, chosen on held-out images"
