"""BAR: black-box adversarial reprogramming (ICML 2020), as BlackVIP and ZIP compare with it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import blackbox as bb


class FrameSpace(bb.prompts.PaddingSpace):
    """The picture, made smaller, in a frame of `sigmoid(W)`."""

    share = 15 / 224

    def forward(self, theta: Tensor, pixels: Tensor) -> bb.Prompt:
        frames = (self.spread(theta).sigmoid() - self.mean) / self.std
        pictures = frames.repeat(1, len(pixels), 1, 1, 1)
        inside = pictures[..., self.rows, self.columns]
        inside[:] = F.interpolate(pixels, inside.shape[-2:], mode=self.mode, antialias=True)
        return bb.Prompt(pictures=self.clipped(pictures))  # bicubic overshoots


class DecayingDirections(bb.optimizers.OneSided):
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


@bb.register_trainer
class BAR(bb.SearchTrainer):
    """One frame around all pictures, which are made smaller; random directions, focal loss.

    Told the loss of every mini-batch. Access: words and pictures in, logits out. A step costs
    `Q + 1` queries (6), all on the same mini-batch. All pictures are new, so that nothing is
    encoded once for all; a test picture is asked about in its frame, one query a batch. The class
    texts take the place of the paper's map of labels, as in those comparisons.
    """

    keys = {
        **bb.config.TEMPLATE_KEYS,
        "Q": bb.Key(5, bb.whole(1, bb.SIZE), "random directions of a step of Q + 1 queries"),
        "EPS": bb.Key(0.01, bb.number(above=0), "length of the shift along a direction"),
        "A_FIRST": bb.Key(10.0, bb.number(above=0), "step size that the decay begins with"),
        "A_LAST": bb.Key(0.1, bb.number(above=0), "step size after 0.9 of the run's steps"),
    }

    def build_recipe(self, generator: torch.Generator) -> bb.Recipe:
        node, space = self.cfg.TRAINER.BAR, FrameSpace(self.description, generator)
        origin, seed = space.origin.to(self.device), bb.child_seed(generator)
        sizes = node.A_FIRST, node.A_LAST
        optimizer = DecayingDirections(origin, node.Q, node.EPS, *sizes, 1.0, seed)
        return bb.Recipe(space, optimizer, fitness=bb.losses.mean_focal_losses)

    def build_model(self) -> None:
        super().build_model()
        self.optim.steps = 0.9 * max(1, self.plan.steps)  # fewer than one is an error of the run
