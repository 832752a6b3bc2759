"""CBBT: collaborative black-box tuning (EMNLP Findings 2023)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blackbox.config import (
    SIZE,
    Key,
    build_schedule,
    flag,
    number,
    one,
    register_trainer,
    where,
    whole,
)
from .blackbox.data import crop_or_cutout
from .blackbox.optimizers import RandomDirections
from .blackbox.prompts import build_space, context_keys, space_keys
from .blackbox.rng import child_seed, seeded
from .blackbox.search import Answer, Recipe, SearchTrainer, Teacher

ADAPTED = where("ADAPTER", True)


class FeatureAdapter(nn.Module):
    """CLIP-Adapter: `f <- ratio MLP(f) + (1 - ratio) f`, normalised anew; logits `scale f T^T`.

    Features pass unchanged until `active` is set; a checkpoint remembers it.
    """

    reads = "features"
    active: Tensor

    def __init__(self, dim: int, width: int, scale: float, ratio: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))
        self.scale, self.ratio = scale, ratio
        self.register_buffer("active", torch.tensor(False))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits `[..., B, C]` of image features `[B, E]` and text features `[..., C, E]`."""
        if self.active:
            image = self.ratio * self.mlp(image) + (1 - self.ratio) * image
            image = F.normalize(image, dim=-1)
        return self.scale * image @ text.mT


class AdapterTeacher(torch.optim.Adam, Teacher):
    """A step of Adam on the adapter after every step of the prompt, from the epoch `first` on.

    It learns from the texts' features of the prompt before the step: to read those of the new one
    would cost a query. `optim` is OPTIM of the configuration.
    """

    def __init__(self, adapter: FeatureAdapter, first: int, optim: Any) -> None:
        super().__init__(adapter.parameters(), lr=optim.LR, weight_decay=optim.WEIGHT_DECAY)
        self.adapter, self.first = adapter, first

    def begin(self, epoch: int, steps_done: int, steps_total: int) -> None:
        if epoch >= self.first:
            self.adapter.active.fill_(True)

    def through(self, answer: Answer) -> Tensor:
        with torch.no_grad():
            return self.adapter(answer.image, answer.text)

    def see(self, answer: Answer, number: int) -> None:
        assert answer.text is not None  # the recipe reads features
        if self.adapter.active:
            self.zero_grad()
            logits = self.adapter(answer.image, answer.text[number])
            F.cross_entropy(logits, answer.labels).backward()
            self.step()


@register_trainer
class CBBT(SearchTrainer):
    """The tokens themselves; random directions, Adam, cosine schedule; an adapter if asked for.

    Told the loss of every mini-batch. Access: contexts and logits for the prompt alone, `Q + 1`
    queries a step (257). With `ADAPTER`, features: those of the candidates' texts and of the batch
    come back (`Q + 2` queries), and candidates are judged by the adapted ones.
    """

    keys = {
        **context_keys(1, "a"),
        **space_keys("context"),
        "Q": Key(256, whole(1, SIZE), "random directions of a step, which costs Q + 1 queries"),
        "CUTOUT": Key(0.4, number(0, 1), "side of the cutout / the image's; 0: all are cropped"),
        "CLIP": Key(5.0, number(above=0), "largest norm of the gradient estimate"),
        "ADAPTER": Key(False, flag(), "train an adapter on image features too (grant features)"),
        "ADAPTER_RATIO": Key(0.2, number(0, 1), "share of its MLP's output", ADAPTED, True),
        "ADAPTER_WIDTH": Key(0.25, number(above=0, high=100), "hidden / feature width", ADAPTED),
        "ADAPTER_EPOCH": Key(10, whole(0), "epochs of the prompt alone before it joins", ADAPTED),
    }
    reads, host = ("OPTIM", "ORACLE"), {"OPTIM.NAME": one("adam")}

    def train_transform(self) -> Any:
        share = self.cfg.TRAINER.CBBT.CUTOUT
        return crop_or_cutout(self.cfg, share) if share else None

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, optim, model = self.cfg.TRAINER.CBBT, self.cfg.OPTIM, self.description
        space = build_space(self.oracle, node, generator)
        origin, seed = space.origin.to(self.device), child_seed(generator)
        optimizer = RandomDirections(origin, node.Q, node.CLIP, optim.LR, optim.WEIGHT_DECAY, seed)
        schedule = build_schedule(optimizer.adam, optim)
        if not node.ADAPTER:
            return Recipe(space, optimizer, schedule=schedule)
        width = int(model.embed_dim * node.ADAPTER_WIDTH)
        with seeded(generator):
            adapter = FeatureAdapter(model.embed_dim, width, model.logit_scale, node.ADAPTER_RATIO)
        teacher = AdapterTeacher(adapter.to(self.device), node.ADAPTER_EPOCH, optim)
        return Recipe(space, optimizer, adapter, teacher, schedule, features=True)
