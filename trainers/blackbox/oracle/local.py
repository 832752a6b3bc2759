"""The oracle over a model on this machine."""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from ..run.errors import BlackBoxError, one_of
from . import patches
from .blocks import positions_at_once
from .interface import GRANTS, QUERY_IMAGES, Images, Oracle
from .store import FeatureStore
from .text import TextPath


class LocalOracle(Oracle):
    """A frozen open_clip model (CLIP or CustomTextCLIP; ViT or ModifiedResNet image tower) that answers queries.

    Images are encoded once, when they are first asked about: their features are kept while their name lives, and within a bound beyond that, for
    the next upload of the same content. The text features of the last contexts are kept too, so that a test pass encodes its prompt once.

    Args:
        loaded: a `LoadedModel`.
        grants: what is let out (logits, features) and in (image_tokens).
        client: name of the method that asks, for error messages.
    """

    def __init__(self, loaded, grants=("logits",), client="a method"):
        for grant in grants:
            one_of("grant (ORACLE.GRANTS)", grant, GRANTS)
        self.model, self.device, self.precision = loaded.model, loaded.device, loaded.precision
        self.description, self.grants, self.client = loaded.description, frozenset(grants), client
        self.text = TextPath(loaded)
        self.short = patches.fits(self.model.visual)
        self.store = FeatureStore()
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(
            loaded.precision, torch.float32
        )
        self.scale = self.model.logit_scale.detach().float().exp()
        self.bias = (
            None if self.model.logit_bias is None else self.model.logit_bias.detach().float()
        )
        self.pixels, self.encoded = WeakKeyDictionary(), WeakKeyDictionary()
        self.last_contexts = self.last_features = None

    def autocast(self):
        kind = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=kind, enabled=self.precision == "amp")

    def set_classes(self, names, template="{}."):
        self.text.set_classes(names, template)
        self.last_contexts = self.last_features = None

    def check(self, n):
        self.text.check(n)

    @torch.no_grad()
    def embed(self, words):
        return self.text.embed(words)

    def upload(self, images):
        size = self.description.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *size):
            raise BlackBoxError(
                f"Images of shape {tuple(images.shape)} were uploaded; {self.description.name} takes [B, 3, {size[0]}, {size[1]}]."
            )
        name = Images(len(images))
        self.pixels[name] = (
            images  # they go to the device in parts, when they are first asked about
        )
        return name

    def pixel_parts(self, images):
        return (part.to(self.device) for part in self.pixels[images].split(QUERY_IMAGES))

    def features_of(self, images):
        """Normalised features `[B, E]`, float32, in the tower's own precision; what one content gave is not computed again while it is remembered."""
        if images not in self.encoded:
            self.encoded[images] = torch.cat(
                [self.store.fill(part, self.encode_pixels) for part in self.pixel_parts(images)]
            )
            if "image_tokens" not in self.grants:
                del self.pixels[images]  # without image tokens nothing can ask for the pixels again
        return self.encoded[images]

    def encode_pixels(self, pixels):
        if self.short:
            return self.encode_with_tokens(
                pixels, torch.zeros(1, 0, self.description.image_width, device=self.device)
            )[0]
        with self.autocast():
            return F.normalize(self.model.encode_image(pixels.to(self.dtype)).float(), dim=-1)

    def encode_with_tokens(self, pixels, tokens):
        visual = self.model.visual
        with self.autocast():
            embedded = patches.embed(visual, pixels.to(self.dtype))
            return F.normalize(
                patches.encode(
                    visual, embedded, tokens, positions_at_once(visual.transformer)
                ).float(),
                dim=-1,
            )

    def features_with_tokens(self, images, tokens):
        """`[P, B, E]`: tokens `[P, n_V, W]` follow class token and patches, after the position embedding and before `ln_pre`."""
        if self.description.image_width is None:
            raise BlackBoxError(
                f"{self.description.name} has a convolutional image tower, which admits no image tokens. Choose a ViT."
            )
        tokens = tokens.to(self.device)
        if self.short:
            return torch.cat(
                [self.encode_with_tokens(part, tokens) for part in self.pixel_parts(images)], dim=1
            )
        return F.normalize(
            torch.stack([self.hooked(images, candidate) for candidate in tokens]).float(), dim=-1
        )

    def hooked(self, images, tokens):
        """`[B, E]` by the model's own `encode_image`: a hook before `ln_pre` appends the tokens `[n_V, W]`."""

        def append(module, inputs):
            x = inputs[0]
            return (torch.cat([x, tokens.to(x.dtype).expand(len(x), -1, -1)], dim=1),)

        handle = self.model.visual.ln_pre.register_forward_pre_hook(append)
        try:
            with self.autocast():
                return torch.cat(
                    [
                        self.model.encode_image(part.to(self.dtype))
                        for part in self.pixel_parts(images)
                    ]
                )
        finally:
            handle.remove()

    def text_of(self, contexts):
        contexts = contexts.to(self.device)
        if self.last_contexts is None or not torch.equal(self.last_contexts, contexts):
            with self.autocast():
                self.last_features = self.text(contexts)
            self.last_contexts = contexts.clone()
        return self.last_features

    @torch.no_grad()
    def query(self, images, contexts, image_tokens=None):
        self.require("logits", *(["image_tokens"] if image_tokens is not None else []))
        text = self.text_of(contexts)
        if image_tokens is None:
            image = self.features_of(images)
        else:
            image = self.features_with_tokens(images, image_tokens)
        logits = (self.scale * image) @ text.transpose(1, 2)
        return logits if self.bias is None else logits + self.bias

    @torch.no_grad()
    def image_features(self, images):
        self.require("features")
        return self.features_of(images).clone()

    @torch.no_grad()
    def text_features(self, contexts):
        self.require("features")
        return self.text_of(contexts).clone()
