"""CBBT: collaborative black-box tuning (EMNLP Findings 2023)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import blackbox as bb

ADAPTED = bb.where("ADAPTER", True)


class RandomDirections(bb.optimizers.OneSided):
    """The step (section 3.2): g clipped to the norm `clip`, then Adam.

    The scale is `1 / eps` where a textbook has d; with `eps = max(1 / d, 0.001)` the two are equal
    for d up to 1,000. `adam` is torch's, for a schedule of its learning rate.
    """

    def __init__(
        self, start: Tensor, q: int, clip: float, lr: float, weight_decay: float, seed: int
    ) -> None:
        eps = max(1 / len(start), 0.001)
        super().__init__(start, q, eps, 1 / eps, seed)
        self.clip = clip
        self.adam = torch.optim.Adam([self.theta], lr=lr, weight_decay=weight_decay)

    def rate(self) -> float:
        return self.adam.param_groups[0]["lr"]

    def tell(self, losses: Tensor) -> None:
        g = self.estimate(losses)
        self.theta.grad = g * (self.clip / g.norm()).clamp(max=1)
        self.adam.step()  # in place

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.adam.load_state_dict(state["adam"])


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


class AdapterTeacher(torch.optim.Adam, bb.Teacher):
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

    def through(self, answer: bb.Answer) -> Tensor:
        with torch.no_grad():
            return self.adapter(answer.image, answer.text)

    def see(self, answer: bb.Answer, number: int) -> None:
        assert answer.text is not None  # the recipe reads features
        if self.adapter.active:
            self.zero_grad()
            logits = self.adapter(answer.image, answer.text[number])
            F.cross_entropy(logits, answer.labels).backward()
            self.step()


@bb.register_trainer
class CBBT(bb.SearchTrainer):
    """The tokens themselves; random directions, Adam, cosine schedule; an adapter if asked for.

    Told the loss of every mini-batch. Access: contexts and logits for the prompt alone, `Q + 1`
    queries a step (257). With `ADAPTER`, features: those of the candidates' texts and of the batch
    come back (`Q + 2` queries), and candidates are judged by the adapted ones.
    """

    keys = {
        **bb.prompts.space_keys("context", 1, "a"),
        "Q": bb.Key(256, bb.whole(1, bb.SIZE), "random directions of a step of Q + 1 queries"),
        "CUTOUT": bb.Key(0.4, bb.number(0, 1), "side of the cutout / the image's; 0: crops alone"),
        "CLIP": bb.Key(5.0, bb.number(above=0), "largest norm of the gradient estimate"),
        "ADAPTER": bb.Key(False, bb.flag(), "train an adapter of features too (grant features)"),
        "ADAPTER_RATIO": bb.Key(0.2, bb.number(0, 1), "share of its MLP's output", ADAPTED, True),
        "ADAPTER_WIDTH": bb.Key(
            0.25, bb.number(above=0, high=100), "hidden / feature width", ADAPTED
        ),
        "ADAPTER_EPOCH": bb.Key(10, bb.whole(0), "epochs of the prompt alone first", ADAPTED),
    }
    reads, host = ("OPTIM", "ORACLE"), {"OPTIM.NAME": bb.one("adam")}

    def train_transform(self) -> Any:
        share = self.cfg.TRAINER.CBBT.CUTOUT
        return bb.data.crop_or_cutout(self.cfg, share) if share else None

    def build_recipe(self, generator: torch.Generator) -> bb.Recipe:
        node, optim, model = self.cfg.TRAINER.CBBT, self.cfg.OPTIM, self.description
        space = bb.prompts.build_space(self.oracle, node, generator)
        origin, seed = space.origin.to(self.device), bb.child_seed(generator)
        optimizer = RandomDirections(origin, node.Q, node.CLIP, optim.LR, optim.WEIGHT_DECAY, seed)
        schedule = bb.config.build_schedule(optimizer.adam, optim)
        if not node.ADAPTER:
            return bb.Recipe(space, optimizer, schedule=schedule)
        width = int(model.embed_dim * node.ADAPTER_WIDTH)
        with bb.seeded(generator):
            adapter = FeatureAdapter(model.embed_dim, width, model.logit_scale, node.ADAPTER_RATIO)
        teacher = AdapterTeacher(adapter.to(self.device), node.ADAPTER_EPOCH, optim)
        return bb.Recipe(space, optimizer, adapter, teacher, schedule, features=True)
