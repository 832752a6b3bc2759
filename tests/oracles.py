"""Oracles over embedded and random models, what they are asked, and open_clip's own answers."""

import open_clip
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip.embedded import EMBEDDED
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import LoadedModel, describe, load_model
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from support import seeded

NAMES = ["zero", "a rather long_name", "two", "Three", "four"]
EVERYTHING = ("contexts", "logits", "features", "image_tokens")
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2}
SMALL = {
    "vit": (CLIP, VIT, TEXT),
    "quickgelu": (CLIP, VIT, TEXT, {"quick_gelu": True}),
    "resnet": (CLIP, {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}, TEXT),
    "custom": (CustomTextCLIP, VIT, TEXT),
    "bias": (CustomTextCLIP, VIT, {**TEXT, "proj_bias": True}, {"init_logit_bias": -3.0}),
    "not causal": (CLIP, VIT, {**TEXT, "no_causal_mask": True}),
    "last": (CustomTextCLIP, VIT, {**TEXT, "no_causal_mask": True, "pool_type": "last"}),
}


def make(kind):
    """An embedded model, or a model or an architecture of open_clip with random weights."""
    if kind in EMBEDDED:
        return load_model(kind)
    torch.manual_seed(0)
    if kind in SMALL:
        cls, vision, text, *more = SMALL[kind]
        model = cls(32, vision, text, **(more[0] if more else {}))
        prepared = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
        set_model_preprocess_cfg(model, prepared)
    else:
        model = open_clip.create_model(kind)
    tower = getattr(model, "text", model)
    with torch.no_grad():  # at their initial size the words hardly count
        tower.token_embedding.weight *= 30
        tower.positional_embedding *= 10
    model = model.eval().requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=tower.context_length)
    return LoadedModel(model, tokenizer, describe(kind, model), "fp32", torch.device("cpu"))


def oracle_over(model, grants=EVERYTHING, names=NAMES, template="{}.", client="SomeMethod"):
    oracle = LocalOracle(model, grants, client)
    oracle.set_classes(names, template)
    return oracle


def pixels(oracle, B=3, seed=0):
    return torch.randn(B, 3, *oracle.description.image_size, generator=seeded(seed))


def contexts_of(oracle, P=2, n=4, seed=1):
    """Random contexts `[P, n, D]`, as long as words are."""
    drawn = torch.randn(P, n, oracle.description.width, generator=seeded(seed))
    return drawn * oracle.description.token_std


def reference(loaded, images, texts):
    """open_clip's own logits `[B, C]` of whole texts."""
    model = loaded.model
    with torch.no_grad():
        image = F.normalize(model.encode_image(images), dim=-1)
        text = F.normalize(model.encode_text(loaded.tokenizer(texts)), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T
    return logits if model.logit_bias is None else logits + model.logit_bias
