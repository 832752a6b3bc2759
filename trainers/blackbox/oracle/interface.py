"""What may cross the wall, and in which shape."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..run.errors import BlackBoxError, one_of

GRANTS = ("logits", "features", "image_tokens")
# a query is one candidate scored on at most so many images (the batch of ZIP's published runs)
QUERY_IMAGES = 128


class AccessDenied(BlackBoxError):
    """A method asked for what the oracle does not grant."""


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


class Images:
    """Name of a batch that was uploaded.

    What was computed for it is kept by the oracle until the name is dropped.
    """

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


class Oracle(ABC):
    """A frozen vision-language model that answers queries. No answer carries a graph."""

    description: Description
    grants: frozenset
    client: str = "a method"

    def require(self, *grants):
        """Raise AccessDenied unless all of the named grants are given."""
        for grant in grants:
            one_of("grant", grant, GRANTS)
            if grant not in self.grants:
                raise AccessDenied(
                    f"{self.client} asked for '{grant}', which this oracle does not grant (it "
                    f"grants: {', '.join(sorted(self.grants)) or 'nothing'}). Where the model's "
                    f"owner allows it, add it to ORACLE.GRANTS."
                )

    @abstractmethod
    def set_classes(self, names, template="{}."):
        """Name the C classes.

        The text of a class is the template with its name in the slot; contexts go in front of it.
        """

    def check(self, n):
        """Raise BlackBoxError unless n context tokens fit in front of every class's text."""

    @abstractmethod
    def embed(self, words):
        """Token embeddings of the given words: `[n, D]`."""

    @abstractmethod
    def upload(self, images):
        """Hand over normalised pixels `[B, 3, H, W]`; returns their name, an `Images`."""

    @abstractmethod
    def query(self, images, contexts, image_tokens=None):
        """Score P candidates on a batch.

        Args:
            images: an `Images` of B images.
            contexts: `[P, n, D]`, n may be 0.
            image_tokens: `[P, n_V, W]` appended to the image tower's tokens (grant `image_tokens`),
                or None.

        Returns:
            Logits `[P, B, C]`, float32, scaled by the model's own temperature.
        """

    @abstractmethod
    def image_features(self, images):
        """Normalised image features `[B, E]` (grant `features`)."""

    @abstractmethod
    def text_features(self, contexts):
        """Normalised text features `[P, C, E]` of every candidate and class (grant `features`)."""


class Wrapper(Oracle):
    """Passes everything on to another oracle, `inner`; what differs is overridden."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def description(self):
        return self.inner.description

    @property
    def grants(self):
        return self.inner.grants

    @property
    def client(self):
        return self.inner.client

    def set_classes(self, names, template="{}."):
        self.inner.set_classes(names, template)

    def check(self, n):
        self.inner.check(n)

    def embed(self, words):
        return self.inner.embed(words)

    def upload(self, images):
        return self.inner.upload(images)

    def query(self, images, contexts, image_tokens=None):
        return self.inner.query(images, contexts, image_tokens)

    def image_features(self, images):
        return self.inner.image_features(images)

    def text_features(self, contexts):
        return self.inner.text_features(contexts)
