"""What an oracle tells of an open_clip model, and which models it cannot ask."""

from __future__ import annotations

import math
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import LayerScale, TextTransformer, VisionTransformer
from torch import nn

from ..oracle.interface import Description
from ..run.errors import BlackBoxError, first_line

POOLS = ("first", "last", "argmax", "eos")
RESIZES = {"squash": "squashes images to a square", "longest": "pads images to a square"}


def text_tower(model: Any) -> Any:
    """A CLIP is its own text tower, a CustomTextCLIP has one."""
    return getattr(model, "text", model)


def image_size(visual: Any) -> tuple[int, int]:
    """(height, width) in pixels."""
    size = visual.image_size
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def eos_id(text: Any) -> int | None:
    return getattr(text, "eos_id", getattr(text, "text_eos_id", None))


def text_pool(text: Any) -> str | None:
    return getattr(text, "pool_type", getattr(text, "text_pool_type", None))


def normalisation(visual: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the input per channel; where open_clip was told none, OpenAI's."""
    told = getattr(visual, "preprocess_cfg", None) or {}
    mean = told.get("mean") or getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN
    std = told.get("std") or getattr(visual, "image_std", None) or OPENAI_DATASET_STD
    return per_channel(mean), per_channel(std)


def per_channel(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * 3


def interpolation(visual: Any) -> str:
    """bicubic or bilinear; what open_clip draws in training ("random") is bicubic in evaluation."""
    told = (getattr(visual, "preprocess_cfg", None) or {}).get("interpolation") or "bicubic"
    return "bicubic" if told == "random" else told


def check_tokenizer(name: str, config: dict[str, Any]) -> None:
    """Raise a BlackBoxError unless CLIP's tokens go into a text tower of open_clip's own."""
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        raise BlackBoxError(
            f"{name} has a text tower of Hugging Face's, in which no context can be put in front "
            f"of the class names. Choose a CLIP model without one."
        )
    if text.get("hf_tokenizer_name") or "siglip" in name.lower():
        raise BlackBoxError(
            f"{name} has a tokenizer of Hugging Face's, and contexts need CLIP's own. Choose a "
            f"CLIP model without one."
        )


def check_model(name: str, model: Any, tokenizer: Any, pixel_type: torch.dtype) -> None:
    """Raise a BlackBoxError unless contexts and images can be put into the model."""
    text = text_tower(model)
    if not hasattr(text, "token_embedding"):
        raise BlackBoxError(
            f"The text tower of {name} is not one of open_clip's own, so no context can be put in "
            f"front of the class names. Choose a CLIP model without a Hugging Face text tower."
        )
    if type(tokenizer) is not open_clip.SimpleTokenizer:
        raise BlackBoxError(f"{name} does not have CLIP's tokenizer, which contexts need.")
    words, pool = text.token_embedding.num_embeddings, text_pool(text)
    if words < tokenizer.vocab_size:
        raise BlackBoxError(
            f"{name} has {words:,} token embeddings, and CLIP's tokenizer has "
            f"{tokenizer.vocab_size:,} tokens: it was trained with another one."
        )
    if pool not in POOLS or (pool == "eos" and eos_id(text) != tokenizer.eot_token_id):
        raise BlackBoxError(
            f"The text tower of {name} is read at '{pool}' (token {eos_id(text)}), which CLIP's "
            f"tokenizer does not write. Choose another model."
        )
    if not is_plain(model, pixel_type):
        probe(name, model, pixel_type)


def is_plain(model: Any, pixel_type: torch.dtype) -> bool:
    """Whether both towers are open_clip's own, of the kinds that run in all precisions."""
    towers = (model.visual, text_tower(model))
    kinds = (VisionTransformer, ModifiedResNet), (open_clip.CLIP, TextTransformer)
    own = all(type(tower) in kind for tower, kind in zip(towers, kinds, strict=True))
    half = pixel_type != torch.float32 and any(isinstance(m, LayerScale) for m in model.modules())
    more = any(getattr(tower, "output_tokens", False) for tower in towers)
    return own and not half and not more and getattr(model.visual, "pool_type", "") != "none"


@torch.no_grad()
def probe(name: str, model: Any, pixel_type: torch.dtype) -> None:
    """Encode one black image and one empty text: of towers that are not open_clip's plain ones.

    Raises:
        BlackBoxError: one of them fails, or they do not end in the same space.
    """
    text, device = text_tower(model), model.logit_scale.device
    try:
        pixels = torch.zeros(1, 3, *image_size(model.visual), device=device, dtype=pixel_type)
        ids = torch.zeros(1, text.context_length, dtype=torch.long, device=device)
        shapes = [tuple(model.encode_image(pixels).shape), tuple(model.encode_text(ids).shape)]
    except Exception as e:
        raise BlackBoxError(
            f"{name} cannot encode an image of {image_size(model.visual)} pixels or a text "
            f"({type(e).__name__}: {first_line(e)}). Choose another model or ORACLE.PREC."
        ) from e
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise BlackBoxError(
            f"{name} gives image features of the shape {shapes[0]} and text features of "
            f"{shapes[1]}; one vector each, equally long, was expected. Choose another model."
        )


def embed_dim(text: Any) -> int:
    """E, the width of the joint space."""
    projection = text.text_projection
    if projection is None:
        return text.token_embedding.embedding_dim
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def describe(name: str, model: Any, fingerprint: str = "") -> Description:
    """Sizes, normalisation and the three moments (BPT-VLM's projections are scaled by them).

    Raises:
        BlackBoxError: numbers that no image or logit can be made with.
    """
    visual, text = model.visual, text_tower(model)
    (mean, std), scale = normalisation(visual), model.logit_scale.float().exp().item()
    sound = all(len(v) == 3 and all(map(math.isfinite, v)) for v in (mean, std)) and min(std) > 0
    if not sound or interpolation(visual) not in ("bicubic", "bilinear"):
        raise BlackBoxError(
            f"{name} asks for images with mean {mean} and deviation {std}, by "
            f"'{interpolation(visual)}'; three numbers each, positive deviations, and bicubic or "
            f"bilinear interpolation were expected."
        )
    if not 0 < scale < math.inf:
        raise BlackBoxError(
            f"The temperature of {name} is {scale} (the exponential of logit_scale), and a finite "
            f"number above 0 was expected: damaged weights. Copy the file again."
        )
    embedding = text.token_embedding.weight
    patches = visual.conv1.weight.float() if isinstance(visual, VisionTransformer) else None
    return Description(
        name=name,
        width=embedding.shape[1],
        image_width=None if patches is None else patches.shape[0],
        embed_dim=embed_dim(text),
        context_length=text.context_length,
        image_size=image_size(visual),
        mean=mean,
        std=std,
        interpolation=interpolation(visual),
        logit_scale=scale,
        token_std=embedding.float().std().item(),
        patch_mean=None if patches is None else patches.mean().item(),
        patch_std=None if patches is None else patches.std().item(),
        fingerprint=fingerprint,
    )


def resized_otherwise(name: str, visual: Any) -> list[str]:
    """A line where open_clip prepares images otherwise than Dassl's transforms do."""
    mode = (getattr(visual, "preprocess_cfg", None) or {}).get("resize_mode") or "shortest"
    if mode not in RESIZES:
        return []
    note = (
        f"for {name} open_clip {RESIZES[mode]}; here, as for every model, the short side is "
        f"resized and the centre cropped, so that accuracies may differ from open_clip's"
    )
    return [note]
