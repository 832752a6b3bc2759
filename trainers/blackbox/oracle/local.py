"""The oracle over a model on this machine."""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from ..errors import BlackBoxError, one_of
from .interface import GRANTS, QUERY_IMAGES, Images, Oracle
from .text import TextPath


class LocalOracle(Oracle):
    """A frozen open_clip model (CLIP or CustomTextCLIP; ViT or ModifiedResNet image tower) that answers queries.

    Uploaded images are encoded once, when they are first asked about, and their features are kept while their name lives. The text
    features of the last contexts are kept too, so that a test pass encodes its prompt once.

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
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(loaded.precision, torch.float32)
        self.scale = self.model.logit_scale.detach().float().exp()
        self.bias = 0.0 if self.model.logit_bias is None else self.model.logit_bias.detach().float()
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
            raise BlackBoxError(f"Images of shape {tuple(images.shape)} were uploaded; {self.description.name} takes [B, 3, {size[0]}, {size[1]}].")
        name = Images(len(images))
        # with image tokens every candidate asks for the pixels again; without, each image goes to the device once, in parts
        self.pixels[name] = images.to(self.device) if "image_tokens" in self.grants else images
        return name

    def visual(self, pixels):
        """Normalised features `[B, E]`, float32, in the tower's own precision."""
        with self.autocast():
            parts = [self.model.encode_image(part.to(self.device, self.dtype)) for part in pixels.split(QUERY_IMAGES)]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    def features_of(self, images):
        if images not in self.encoded:
            self.encoded[images] = self.visual(self.pixels[images])
            if "image_tokens" not in self.grants:
                del self.pixels[images]   # without image tokens nothing can ask for the pixels again
        return self.encoded[images]

    def features_with_tokens(self, images, tokens):
        """`[P, B, E]`: tokens `[P, n_V, W]` follow class token and patches, after the position embedding and before `ln_pre`."""
        if self.description.image_width is None:
            raise BlackBoxError(f"{self.description.name} has a convolutional image tower, which admits no image tokens. Choose a ViT.")
        features = []
        for candidate in tokens.to(self.device):

            def append(module, inputs, extra=candidate):
                x = inputs[0]
                return (torch.cat([x, extra.to(x.dtype).expand(len(x), -1, -1)], dim=1),)

            handle = self.model.visual.ln_pre.register_forward_pre_hook(append)
            try:
                features.append(self.visual(self.pixels[images]))
            finally:
                handle.remove()
        return torch.stack(features)

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
            image = self.features_of(images).expand(len(contexts), -1, -1)
        else:
            image = self.features_with_tokens(images, image_tokens)
        return self.scale * image @ text.transpose(1, 2) + self.bias

    @torch.no_grad()
    def image_features(self, images):
        self.require("features")
        return self.features_of(images).clone()

    @torch.no_grad()
    def text_features(self, contexts):
        self.require("features")
        return self.text_of(contexts).clone()
