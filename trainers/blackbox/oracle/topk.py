"""A model that lets out less than logits, as real services do."""

import math

import torch

from .interface import Images, Oracle, Wrapper
from .prompt import Prompt

NOTHING = -36.0  # log of what double precision can tell from nothing, beside 1


class TopK(Wrapper):
    """Of every image's answer, lets out only the k >= 1 largest log-probabilities; no features.

    The temperature is the model's own. The probability that they leave is spread evenly over the
    classes that are not seen, so that answers keep their shape `[P, B, C]`; with k >= C they are
    all log-probabilities, which is logits less a number an image. Further texts of a prompt are
    answered by themselves, as in a request of their own: the k largest among them.
    """

    def __init__(self, inner: Oracle, k: int) -> None:
        super().__init__(inner)
        self.k, self.grants = k, frozenset(inner.grants) - {"features"}

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        answer = super().query(images, prompt)
        further = 0 if prompt.texts is None else len(prompt.texts)
        return let_out(answer, answer.shape[-1] - further, self.k)


def let_out(logits: torch.Tensor, classes: int, k: int) -> torch.Tensor:
    """What of logits `[P, B, C + M]` about C classes and M further texts is let out."""
    parts = logits.split([classes, logits.shape[-1] - classes], dim=-1)
    return torch.cat([largest(part, k) for part in parts if part.shape[-1]], dim=-1)


def largest(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Log-probabilities `[P, B, C]`, of which k an image are the model's."""
    answer = logits.double().log_softmax(-1)
    unseen = answer.shape[-1] - k
    if unseen <= 0:
        return answer.float()
    # in double precision, since what they leave may be a millionth
    seen, classes = answer.topk(k)
    rest = (-seen.exp().sum(-1, keepdim=True).clamp(max=1)).log1p().clamp_min(NOTHING)
    return (rest - math.log(unseen)).expand_as(answer).scatter(-1, classes, seen).float()
