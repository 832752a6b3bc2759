"""What may cross the wall, and in which shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ..run.errors import BlackBoxError, one_of
from .prompt import Prompt

# let in: contexts, image_tokens; let out: logits, features. Words and pictures always go in.
GRANTS = ("contexts", "image_tokens", "logits", "features")
# a query is one candidate scored on at most so many images (the batch of ZIP's published runs)
QUERY_IMAGES = 128


class AccessDenied(BlackBoxError):
    """A method asked for what the oracle does not grant."""


class NoClasses(BlackBoxError):
    """An oracle was asked about class texts that it was never given."""

    def __init__(self) -> None:
        super().__init__(
            "The oracle was asked before it was told any class names: call set_classes first."
        )


@dataclass(frozen=True)
class Description:
    """What an oracle tells of its model: sizes, the input's normalisation, three moments.

    Never weights. `patch_mean`, `patch_std` (moments of the patch embedding's weights) and
    `token_std` (of all token embeddings) scale BPT-VLM's projections; the first two are None for a
    model whose image tower takes no tokens.
    """

    name: str  # as the user named it
    width: int  # D, width of a context token
    image_width: int | None  # W, width of an image token; None where the tower takes none
    embed_dim: int  # E, of the joint space
    context_length: int  # positions of the text tower, SOS and EOT included
    image_size: tuple  # (height, width) in pixels
    mean: tuple  # of the input's normalisation, per channel
    std: tuple
    interpolation: str  # bicubic or bilinear
    logit_scale: float  # temperature that logits are scaled by
    token_std: float
    patch_mean: float | None
    patch_std: float | None
    # SHA-256 of weights and architecture, so that a checkpoint is not used with another model
    fingerprint: str = ""

    def check_images(self, images: torch.Tensor) -> None:
        """Raise BlackBoxError unless pixels are `[B, 3, H, W]`, of the model's size."""
        height, width = self.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise BlackBoxError(
                f"Images of shape {tuple(images.shape)} were uploaded; {self.name} takes "
                f"[B, 3, {height}, {width}]."
            )


class Images:
    """Name of a batch that was uploaded.

    What was computed for it is kept by the oracle until the name is dropped.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class Oracle(ABC):
    """A frozen vision-language model that answers queries. No answer carries a graph."""

    description: Description
    grants: Collection[str]
    client: str = "a method"
    # what to do where something is not granted
    remedy: str = "Where the model's owner allows it, add it to ORACLE.GRANTS."

    def require(self, *grants: str) -> None:
        """Raise AccessDenied unless all of the named grants are given."""
        for grant in grants:
            one_of("grant", grant, GRANTS)
            if grant not in self.grants:
                raise AccessDenied(
                    f"{self.client} asked for '{grant}', which this oracle does not grant (it "
                    f"grants: {', '.join(sorted(self.grants)) or 'nothing'}). {self.remedy}"
                )

    @abstractmethod
    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        """Name the C classes.

        The text of a class is the template with its name in the slot; contexts go in front of it.
        """

    def check(self, n: int) -> None:  # noqa: B027  # not every model has a limit
        """Raise BlackBoxError unless n context tokens fit in front of every class's text."""

    @abstractmethod
    def embed(self, words: str) -> torch.Tensor:
        """Token embeddings of the given words: `[n, D]`."""

    def usage(self) -> dict[str, int | float]:
        """What a service was really sent, beside the queries; nothing where no service is."""
        return {}

    def allowance(self) -> dict[str, int]:
        """Queries and image queries that the owner's budget still pays for.

        A unit that the owner does not limit has no entry.
        """
        return {}

    def quote(self, pictures: int, texts: int) -> str:
        """What scoring so many pictures and texts, each once, would take of a service, in words."""
        return ""

    @abstractmethod
    def upload(self, images: torch.Tensor) -> Images:
        """Hand over normalised pixels `[B, 3, H, W]`; returns their name, an `Images`."""

    @abstractmethod
    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        """Score P candidates on B images (grant `logits`, and those of the prompt).

        Returns:
            Logits `[P, B, C]`, float32, scaled by the model's own temperature; `[P, B, C + M]`
            for a prompt with M further texts.
        """

    @abstractmethod
    def image_features(self, images: Images) -> torch.Tensor:
        """Normalised image features `[B, E]` (grant `features`)."""

    @abstractmethod
    def text_features(self, prompt: Prompt) -> torch.Tensor:
        """Normalised text features `[P, C, E]` of every candidate and class (grant `features`).

        Those of M further texts follow: `[P, C + M, E]`.
        """


class Wrapper(Oracle):
    """Passes everything on to another oracle, `inner`; what differs is overridden."""

    def __init__(self, inner: Oracle) -> None:
        self.inner = inner

    @property
    def description(self) -> Description:  # type: ignore[override]  # read only
        return self.inner.description

    @property
    def grants(self) -> Collection[str]:  # type: ignore[override]  # read only
        return self.inner.grants

    @property
    def client(self) -> str:  # type: ignore[override]  # read only
        return self.inner.client

    @property
    def remedy(self) -> str:  # type: ignore[override]  # read only
        return self.inner.remedy

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.inner.set_classes(names, template)

    def check(self, n: int) -> None:
        self.inner.check(n)

    def embed(self, words: str) -> torch.Tensor:
        return self.inner.embed(words)

    def usage(self) -> dict[str, int | float]:
        return self.inner.usage()

    def allowance(self) -> dict[str, int]:
        return self.inner.allowance()

    def quote(self, pictures: int, texts: int) -> str:
        return self.inner.quote(pictures, texts)

    def upload(self, images: torch.Tensor) -> Images:
        return self.inner.upload(images)

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        return self.inner.query(images, prompt)

    def image_features(self, images: Images) -> torch.Tensor:
        return self.inner.image_features(images)

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        return self.inner.text_features(prompt)
