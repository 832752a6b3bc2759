"""The oracle over a model on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from open_clip.model import get_cast_dtype
from torch import nn

from ..errors import BlackBoxError, one_of
from ..oracle.interface import GRANTS, QUERY_IMAGES, Images, Oracle
from ..oracle.prompt import Prompt, Texts
from . import patches
from .convolutions import tower_batch
from .models import LoadedModel
from .store import FeatureStore
from .text import TextPath


class LocalOracle(Oracle):
    """A frozen open_clip model that answers queries: CLIP, CustomTextCLIP or CoCa, any image tower.

    Images are encoded once, when they are first asked about: their features are kept while their
    name lives, and within a bound beyond that, for the next upload of the same content. The text
    features of the last contexts, and of the last further texts, are kept too, so that a test pass
    encodes its prompt once.

    Args:
        loaded: a `LoadedModel`.
        grants: what is let in (contexts, image_tokens) and out (logits, features).
        client: name of the method that asks, for error messages.

    Example:
        oracle = LocalOracle(load_model("tiny"))
        oracle.set_classes(["cat", "dog"], "a photo of a {}.")
        logits = oracle.query(oracle.upload(images), Prompt())  # [1, B, 2]
    """

    def __init__(
        self,
        loaded: LoadedModel,
        grants: Sequence[str] = ("contexts", "logits"),
        client: str = "a method",
    ) -> None:
        for grant in grants:
            one_of("grant (ORACLE.GRANTS)", grant, GRANTS)
        self.model, self.device, self.precision = loaded.model, loaded.device, loaded.precision
        self.description, self.grants, self.client = loaded.description, frozenset(grants), client
        self.text, self.further_text = TextPath(loaded), TextPath(loaded)
        self.short = patches.fits(self.model.visual)
        self.tower_batch = tower_batch(self.model.visual, self.device)
        self.store = FeatureStore()
        self.dtype = get_cast_dtype(loaded.precision) or torch.float32
        self.scale = self.model.logit_scale.detach().float().exp()
        bias = self.model.logit_bias
        self.bias = None if bias is None else bias.detach().float()
        self.pixels: WeakKeyDictionary[Images, torch.Tensor] = WeakKeyDictionary()
        self.encoded: WeakKeyDictionary[Images, torch.Tensor] = WeakKeyDictionary()
        # the last contexts, and their text features; the last further texts, and theirs
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None
        self.further: tuple[Texts, torch.Tensor] | None = None

    def autocast(self) -> AbstractContextManager:
        kind = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=kind, enabled=self.precision == "amp")

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.text.set_classes(names, template)
        self.last = None

    def check(self, n: int) -> None:
        self.text.check(n)

    @torch.no_grad()
    def embed(self, words: str) -> torch.Tensor:
        return self.text.embed(words)

    def upload(self, images: torch.Tensor) -> Images:
        self.description.check_images(images)
        name = Images(len(images))
        # they go to the device in parts, when they are first asked about
        self.pixels[name] = images
        return name

    def pixel_parts(self, images: Images) -> Iterator[torch.Tensor]:
        return (part.to(self.device) for part in self.pixels[images].split(QUERY_IMAGES))

    def features_of(self, images: Images) -> torch.Tensor:
        """Normalised features `[B, E]`, float32, in the tower's own precision.

        What one content gave is not computed again while it is remembered.
        """
        if images not in self.encoded:
            self.encoded[images] = torch.cat(
                [self.store.fill(part, self.encode_pixels) for part in self.pixel_parts(images)]
            )
            if "image_tokens" not in self.grants:
                del self.pixels[images]  # nothing can ask for the pixels again
        return self.encoded[images]

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised features `[B, E]` of `[B, 3, H, W]` on the device."""
        if self.short:
            none = torch.zeros(1, 0, self.description.image_width or 0, device=self.device)
            return self.encode_with_tokens(pixels, none)[0]
        return self.encode_few(pixels, self.tower_batch)

    def encode_few(self, pixels: torch.Tensor, at_once: int) -> torch.Tensor:
        with self.autocast():
            parts = pixels.to(self.dtype).split(at_once)
            found = torch.cat([self.model.encode_image(part) for part in parts])
            return F.normalize(found.float(), dim=-1)

    def encode_with_tokens(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`[P, B, E]` of image tokens `[P, n_V, W]`, before `ln_pre` behind all patches."""
        if self.short:
            with self.autocast():
                found = patches.encode(self.model.visual, pixels.to(self.dtype), tokens)
                return F.normalize(found.float(), dim=-1)
        return torch.stack([self.hooked(pixels, candidate) for candidate in tokens])

    def hooked(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, E]` by the model's own `encode_image`; a hook before `ln_pre` appends `[n_V, W]`."""

        def append(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            x = inputs[0]
            return (torch.cat([x, tokens.to(x.dtype).expand(len(x), -1, -1)], dim=1),)

        handle = self.model.visual.ln_pre.register_forward_pre_hook(append)
        try:
            return self.encode_few(pixels, QUERY_IMAGES)
        finally:
            handle.remove()

    def features_with_tokens(self, images: Images, tokens: torch.Tensor) -> torch.Tensor:
        if self.description.image_width is None:
            raise BlackBoxError(
                f"{self.description.name} has an image tower that is convolutional or timm's, "
                f"which admits no image tokens. Choose a ViT of open_clip's own."
            )
        parts, tokens = self.pixel_parts(images), tokens.to(self.device)
        return torch.cat([self.encode_with_tokens(part, tokens) for part in parts], dim=1)

    def features_of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """`[P, B, E]` of pixels `[P, B, 3, H, W]`, which are new each time: nothing is kept."""
        parts = pictures.flatten(0, 1).split(QUERY_IMAGES)
        encoded = [self.encode_pixels(part.to(self.device)) for part in parts]
        return torch.cat(encoded).unflatten(0, pictures.shape[:2])

    def text_of(self, prompt: Prompt) -> torch.Tensor:
        """Normalised features `[P, C + M, E]` of the class texts and the M further ones."""
        none, texts = torch.zeros(1, 0, self.description.width), prompt.texts
        contexts = (none if prompt.contexts is None else prompt.contexts).to(self.device)
        if self.last is None or not torch.equal(self.last[0], contexts):
            with self.autocast():
                self.last = contexts.clone(), self.text(contexts)
        if texts is None:
            return self.last[1]
        if self.further is None or self.further[0] != texts:
            self.further_text.set_classes(texts.names, texts.template)
            with self.autocast():
                self.further = texts, self.further_text(none)
        return torch.cat([self.last[1], self.further[1].expand(len(contexts), -1, -1)], dim=1)

    def score(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Logits `[P, B, C]` of image features `[B, E]` or `[P, B, E]` and texts `[P, C, E]`."""
        logits = (self.scale * image) @ text.transpose(1, 2)
        return logits if self.bias is None else logits + self.bias

    @torch.no_grad()
    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        self.require("logits", *prompt.grants)
        text = self.text_of(prompt)
        if prompt.pictures is not None:
            image = self.features_of_pictures(prompt.pictures)
        elif prompt.image_tokens is not None:
            image = self.features_with_tokens(images, prompt.image_tokens)
        else:
            image = self.features_of(images)
        return self.score(image, text)

    @torch.no_grad()
    def image_features(self, images: Images) -> torch.Tensor:
        self.require("features")
        return self.features_of(images).clone()

    @torch.no_grad()
    def text_features(self, prompt: Prompt) -> torch.Tensor:
        self.require("features", *prompt.grants)
        return self.text_of(prompt).clone()
