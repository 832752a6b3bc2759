"""BAR: black-box adversarial reprogramming (ICML 2020), as BlackVIP and ZIP compare with it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .blackbox.config import SIZE, TEMPLATE_KEYS, Key, number, register_trainer, whole
from .blackbox.losses import mean_focal_losses
from .blackbox.optimizers import OneSided
from .blackbox.oracle import Prompt
from .blackbox.prompts import PaddingSpace
from .blackbox.rng import child_seed
from .blackbox.search import Recipe, SearchTrainer


class FrameSpace(PaddingSpace):
    """The picture, made smaller, in a frame of `sigmoid(W)`."""

    share = 15 / 224

    def forward(self, theta: Tensor, pixels: Tensor) -> Prompt:
        frames = (self.spread(theta).sigmoid() - self.mean) / self.std
        pictures = frames.repeat(1, len(pixels), 1, 1, 1)
        inside = pictures[..., self.rows, self.columns]
        inside[:] = F.interpolate(pixels, inside.shape[-2:], mode=self.mode, antialias=True)
        return Prompt(pictures=self.clipped(pictures))  # bicubic overshoots


class DecayingDirections(OneSided):
    """`theta -= a_k g`, with d as the scale of the estimate.

    `a_k = (first - last) (1 - k / steps)^0.9 + last`, k from 1; from step `steps` on, `last`.
    """

    saved = ("theta", "k")

    def __init__(
        self, start: Tensor, q: int, eps: float, first: float, last: float, steps: float, seed: int
    ) -> None:
        super().__init__(start, q, eps, len(start), seed)
        self.first, self.last, self.steps, self.k = first, last, steps, 1

    def rate(self) -> float:
        left = 1 - min(self.k, self.steps) / self.steps
        return (self.first - self.last) * left**0.9 + self.last

    def tell(self, losses: Tensor) -> None:
        self.theta = self.theta - self.rate() * self.estimate(losses)
        self.k += 1


@register_trainer
class BAR(SearchTrainer):
    """One frame around all pictures, which are made smaller; random directions, focal loss.

    Told the loss of every mini-batch. Access: words and pictures in, logits out. A step costs
    `Q + 1` queries (6), all on the same mini-batch. All pictures are new, so that nothing is
    encoded once for all; a test picture is asked about in its frame, one query a batch. The class
    texts take the place of the paper's map of labels, as in those comparisons.
    """

    keys = {
        **TEMPLATE_KEYS,
        "Q": Key(5, whole(1, SIZE), "random directions of a step, which costs Q + 1 queries"),
        "EPS": Key(0.01, number(above=0), "length of the shift along a direction"),
        "A_FIRST": Key(10.0, number(above=0), "step size that the decay begins with"),
        "A_LAST": Key(0.1, number(above=0), "step size after 0.9 of the run's steps"),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, space = self.cfg.TRAINER.BAR, FrameSpace(self.description, generator)
        origin, seed = space.origin.to(self.device), child_seed(generator)
        sizes = node.A_FIRST, node.A_LAST
        optimizer = DecayingDirections(origin, node.Q, node.EPS, *sizes, 1.0, seed)
        return Recipe(space, optimizer, fitness=mean_focal_losses)

    def build_model(self) -> None:
        super().build_model()
        self.optim.steps = 0.9 * max(1, self.plan.steps)  # fewer than one is an error of the run
