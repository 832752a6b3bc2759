"""What may cross the wall, and in which shape."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BlackBoxError
from .prompt import Prompt, Texts

# let in: contexts, image_tokens; let out: logits, features. Words and pictures always go in.
GRANTS = ("contexts", "image_tokens", "logits", "features")
# a query is one candidate scored on at most so many images (the batch of ZIP's published runs)
QUERY_IMAGES = 128
IN_CACHE = 2**17  # numbers; an image of 224 x 224 pixels has 150,528
# batches, as normalised pixels `[B, 3, H, W]` or as sizes alone, and their texts
Questions = Sequence[tuple[Iterable[torch.Tensor | int], Sequence[Texts]]]
NOTHING = -36.0  # log of what double precision can tell from nothing, beside 1


class AccessDenied(BlackBoxError):
    """A method asked for what the oracle does not grant."""


class Refused(BlackBoxError):
    """A service did not do what it was asked for, nor bill it; its answer's status and JSON."""

    def __init__(self, words: str, status: int | None = None, body: Any = None) -> None:
        super().__init__(words)
        self.status, self.body = status, body


@dataclass(frozen=True)
class Description:
    """What an oracle tells of its model, never weights; defaults are for what is not granted.

    Moments of the patch embedding's weights, and of all token embeddings, scale BPT-VLM's
    projections.
    """

    name: str  # as the user named it
    image_size: tuple  # (height, width) in pixels
    mean: tuple  # of the input's normalisation, per channel
    std: tuple
    interpolation: str  # bicubic or bilinear
    logit_scale: float  # temperature that logits are scaled by
    embed_dim: int = 0  # E, of the joint space
    context_length: int = 0  # positions of the text tower, SOS and EOT included
    width: int = 0  # D, width of a context token
    token_std: float = 0.0
    image_width: int | None = None  # W, width of an image token; None: the tower takes none
    patch_mean: float | None = None
    patch_std: float | None = None
    # SHA-256 of weights and architecture, so that a checkpoint is not used with another model
    fingerprint: str = ""

    def check_images(self, images: torch.Tensor) -> None:
        """Raise BlackBoxError unless pixels are `[B, 3, H, W]`, of the model's size."""
        height, width = self.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
            given, wanted = tuple(images.shape), f"[B, 3, {height}, {width}]"
            raise BlackBoxError(f"{self.name} takes {wanted}; images of {given} were uploaded.")


class Images:
    """Name of a batch that was uploaded; what was computed for it is kept while the name lives."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class Oracle(ABC):
    """A frozen vision-language model that answers queries, without a graph.

    A backend sets `description` and `grants`, and overrides what is abstract and what it grants.
    """

    description: Description
    grants: Collection[str]
    client: str = "a method"
    # what to do where something is not granted
    remedy: str = "Where the model's owner allows it, add it to ORACLE.GRANTS."

    def require(self, *grants: str) -> None:
        """Raise AccessDenied unless all of the named grants are given."""
        for grant in (grant for grant in grants if grant not in self.grants):
            granted = ", ".join(sorted(self.grants)) or "nothing"
            words = f"{self.client} asked for '{grant}', which this oracle does not grant"
            raise AccessDenied(f"{words} (it grants: {granted}). {self.remedy}")

    @abstractmethod
    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        """Name the C classes: the text of one is the template with its name in the slot."""

    @abstractmethod
    def upload(self, images: torch.Tensor) -> Images:
        """Hand over normalised pixels `[B, 3, H, W]`; returns their name."""

    @abstractmethod
    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        """Logits `[P, B, C + M]` of P candidates on B images, float32, at the model's temperature.

        For C classes and M further texts (grant `logits`, and those of the prompt).
        """

    def check(self, n: int) -> None:
        """Raise BlackBoxError unless n context tokens fit in front of every class's text."""
        if n:
            self.require("contexts")

    def embed(self, words: str) -> torch.Tensor:
        """Token embeddings of the given words: `[n, D]` (grant `contexts`)."""
        self.require("contexts")
        raise NotImplementedError

    def image_features(self, images: Images) -> torch.Tensor:
        """Normalised image features `[B, E]` (grant `features`)."""
        raise NotImplementedError

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        """Normalised features of every candidate's texts `[P, C + M, E]` (grant `features`)."""
        raise NotImplementedError

    def usage(self) -> dict[str, int | float]:
        """What a service was really sent, beside the queries; nothing where no service is."""
        return {}

    def allowance(self) -> dict[str, int]:
        """What the owner's budget still pays for, by unit; a unit without a limit has no entry."""
        return {}

    def quote(self, asked: Questions) -> dict[str, int | float]:
        """What `usage` grows by where batches are scored on lists of texts; nothing is sent."""
        return {}


def passed_on(name: str) -> Any:
    """A method that is the inner oracle's."""
    return lambda self, *given: getattr(self.inner, name)(*given)


class Wrapper(Oracle):
    """Passes everything on to another oracle, `inner`; what differs is overridden."""

    set_classes, upload, query = map(passed_on, ("set_classes", "upload", "query"))
    check, embed, usage = map(passed_on, ("check", "embed", "usage"))
    image_features, text_features = map(passed_on, ("image_features", "text_features"))
    allowance, quote = map(passed_on, ("allowance", "quote"))

    def __init__(self, inner: Oracle) -> None:
        self.inner, self.grants = inner, inner.grants
        self.client, self.remedy = inner.client, inner.remedy

    @property
    def description(self) -> Description:  # type: ignore[override]  # it may ask the service
        return self.inner.description


class TopK(Wrapper):
    """Lets out only the k >= 1 largest log-probabilities of an image, and no features.

    The probability that they leave is spread evenly over the classes that are not seen; with k >= C
    they are logits less a number an image. Further texts are answered by themselves.
    """

    def __init__(self, inner: Oracle, k: int) -> None:
        super().__init__(inner)
        self.k, self.grants = k, frozenset(inner.grants) - {"features"}

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        answer = self.inner.query(images, prompt)
        further = 0 if prompt.texts is None else len(prompt.texts)
        return let_out(answer, answer.shape[-1] - further, self.k)


def let_out(logits: torch.Tensor, classes: int, k: int) -> torch.Tensor:
    """Log-probabilities of logits `[P, B, C + M]`, of which k an image are the model's.

    Those about C classes and those about M further texts are each let out by themselves.
    """
    parts = []
    for part in logits.split([classes, logits.shape[-1] - classes], dim=-1):
        # in double precision, since what the k leave may be a millionth
        answer, unseen = part.double().log_softmax(-1), part.shape[-1] - k
        if unseen > 0:
            seen, which = answer.topk(k)
            rest = (-seen.exp().sum(-1, keepdim=True).clamp(max=1)).log1p().clamp_min(NOTHING)
            answer = (rest - math.log(unseen)).expand_as(answer).scatter(-1, which, seen)
        parts.append(answer.float())
    return torch.cat(parts, dim=-1)


def few_at_a_time(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A batch `[B, ...]` in parts that stay in a CPU's cache: a tenth of the time."""
    if images.device.type != "cpu":
        return (images,)
    return images.split(max(1, IN_CACHE // max(1, images[:1].numel())))
