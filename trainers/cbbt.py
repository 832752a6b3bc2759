"""CBBT: collaborative black-box tuning (EMNLP Findings 2023)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .blackbox.data import crop_or_cutout
from .blackbox.heads.featured import FeatureHead, mlp
from .blackbox.keys import SIZE, Key, flag, number, where, whole
from .blackbox.optimizers import RandomDirections
from .blackbox.prompts import build_space, context_keys, initial_context, space_keys
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed, seeded
from .blackbox.schedules import build_schedule
from .blackbox.search import Answer, Batch, Recipe, SearchTrainer, Teacher

ADAPTED = where("ADAPTER", True)


class FeatureAdapter(FeatureHead):
    """CBBT's adapter in CLIP-Adapter's form, on image features `[..., E]`.

    `f <- ratio MLP(f) + (1 - ratio) f`, normalised anew; then logits `scale f T^T`.

    Features pass unchanged until `active` is set; a checkpoint remembers it.

    Args:
        dim: E.
        width: of the hidden layer.
        scale: temperature of the logits.
        ratio: share of the MLP's output.
    """

    active: torch.Tensor

    def __init__(self, dim: int, width: int, scale: float, ratio: float = 0.2) -> None:
        super().__init__(scale)
        self.mlp, self.ratio = mlp(dim, width), ratio
        self.register_buffer("active", torch.tensor(False))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Logits `[..., B, C]` of image features `[B, E]` and text features `[..., C, E]`."""
        return super().forward(self.adapted(image), text)

    def adapted(self, image: torch.Tensor) -> torch.Tensor:
        if not self.active:
            return image
        return F.normalize(self.ratio * self.mlp(image) + (1 - self.ratio) * image, dim=-1)


class AdapterTeacher(Teacher):
    """A step of Adam on the adapter after every step of the prompt, from some epoch on.

    It learns from the texts' features of the prompt before the step: to read those of the new one
    would cost a query.

    Args:
        adapter: of image features, on its device.
        first: epoch that it joins in.
        lr, weight_decay: of Adam.
    """

    def __init__(self, adapter: FeatureAdapter, first: int, lr: float, weight_decay: float) -> None:
        self.adapter, self.first = adapter, first
        self.adam = torch.optim.Adam(adapter.parameters(), lr=lr, weight_decay=weight_decay)

    def begin(self, epoch: int, steps_done: int, steps_total: int) -> None:
        if epoch >= self.first:
            self.adapter.active.fill_(True)

    def adapted(self, answer: Answer, number: int | slice = slice(None)) -> torch.Tensor:
        """Logits of the adapted image features: of all candidates `[P, B, C]`, or one `[B, C]`."""
        assert answer.text is not None  # the recipe reads features
        return self.adapter(answer.image, answer.text[number])

    def through(self, answer: Answer, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return self.adapted(answer)

    def see(self, answer: Answer, number: int, batch: Batch) -> None:
        if self.adapter.active:
            self.adam.zero_grad()
            F.cross_entropy(self.adapted(answer, number), batch.labels).backward()
            self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state)


@register_trainer
class CBBT(SearchTrainer):
    """The tokens themselves; random directions, Adam, cosine schedule; an adapter if asked for.

    Told the loss of every mini-batch. Access: contexts and logits for the prompt alone, `Q + 1`
    queries a step (257). With `ADAPTER`, features: the texts' features of all candidates and the
    images' of the batch come back (`Q + 2` queries), the candidates' losses are those of the
    adapted features, and from `ADAPTER_EPOCH` on the adapter takes a step of ordinary
    back-propagation after the prompt's. No gradient crosses the model.
    """

    keys = {
        **context_keys(1, "a"),
        **space_keys("context"),
        "Q": Key(256, whole(1, SIZE), "random directions of a step, which costs Q + 1 queries"),
        "CUTOUT": Key(
            0.4,
            number(0, 1),
            "side of the rectangle / the image's, in the half of the images that is not cropped; "
            "0: all are cropped",
        ),
        "CLIP": Key(5.0, number(above=0), "largest norm of the gradient estimate"),
        "ADAPTER": Key(False, flag(), "train an adapter on image features too (grant features)"),
        "ADAPTER_RATIO": Key(
            0.2, number(0, 1), "share of its output in the feature", ADAPTED, True
        ),
        "ADAPTER_WIDTH": Key(
            0.25, number(above=0, high=100), "hidden width / feature's width", ADAPTED
        ),
        "ADAPTER_EPOCH": Key(10, whole(0), "epochs of the prompt alone before it joins", ADAPTED),
    }
    scheduled, optimizers = True, ("adam",)

    def train_transform(self) -> Any:
        share = self.cfg.TRAINER.CBBT.CUTOUT
        return crop_or_cutout(self.cfg, share) if share else None

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, optim = self.cfg.TRAINER.CBBT, self.cfg.OPTIM
        start = initial_context(self.oracle, node.CTX_INIT, node.N_CTX, generator)
        space = build_space(node, start, generator)
        optimizer = RandomDirections(
            space.origin.to(self.device),
            q=node.Q,
            clip=node.CLIP,
            lr=optim.LR,
            weight_decay=optim.WEIGHT_DECAY,
            seed=child_seed(generator),
        )
        schedule = build_schedule(optimizer.adam, optim)
        if not node.ADAPTER:
            return Recipe(space, optimizer, schedule=schedule)
        dim = self.description.embed_dim
        with seeded(generator):
            width, scale = int(dim * node.ADAPTER_WIDTH), self.description.logit_scale
            adapter = FeatureAdapter(dim, width, scale, node.ADAPTER_RATIO)
        teacher = AdapterTeacher(
            adapter.to(self.device),
            node.ADAPTER_EPOCH,
            optim.LR,
            optim.WEIGHT_DECAY,
        )
        return Recipe(space, optimizer, adapter, teacher, schedule, features=True)
