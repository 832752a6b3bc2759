"""What an open_clip model is: its sizes, as an oracle tells them, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from ..errors import BlackBoxError
from ..oracle.interface import Description
from .weights import reason

SOS, EOT = 49406, 49407  # of CLIP's tokenizer
RESIZES = {"squash": "squashes images to a square", "longest": "pads images to a square"}
# of the fingerprint: what computes nothing, and numbers of modules that are in no tensor
IDLE = (nn.Identity, _DropoutNd, nn.Sequential, nn.ModuleList, nn.ModuleDict)
IDLE_NAMES = ("DropPath", "PatchDropout", "PatchDropoutWithIndices")
NUMBERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LayerNorm: ("eps",),
    nn.GroupNorm: ("num_groups", "eps"),
    _BatchNorm: ("eps",),
    _ConvNd: ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.GELU: ("approximate",),
    nn.AvgPool2d: ("kernel_size", "stride", "padding"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding"),
    nn.MultiheadAttention: ("num_heads",),
    nn.Linear: (),
    nn.Embedding: (),
}


def text_tower(model: Any) -> Any:
    """A CLIP is its own text tower, a CustomTextCLIP has one."""
    return getattr(model, "text", model)


def text_pool(text: Any) -> str | None:
    return getattr(text, "pool_type", getattr(text, "text_pool_type", None))


def eos_id(text: Any) -> int | None:
    return getattr(text, "eos_id", getattr(text, "text_eos_id", None))


def image_size(visual: Any) -> tuple[int, int]:
    """(height, width) in pixels."""
    size = visual.image_size
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def normalisation(visual: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the input per channel; where open_clip was told none, OpenAI's."""
    mean = getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or OPENAI_DATASET_STD
    return tuple(mean), tuple(std)


def describe(
    name: str, model: Any, fingerprint: str = "", dtype: torch.dtype = torch.float32
) -> Description:
    """Sizes, normalisation and the three moments (BPT-VLM's projections are scaled by them).

    A black image and an empty text are encoded, so that a model that cannot do it is refused here.

    Args:
        dtype: of the pixels that the image tower takes.

    Raises:
        BlackBoxError: it cannot be asked.
    """
    visual, text = model.visual, text_tower(model)
    words = text.token_embedding.weight
    if len(words) <= EOT or (text_pool(text) == "eos" and eos_id(text) != EOT):
        raise BlackBoxError(
            f"The text tower of {name} has {len(words):,} token embeddings and ends texts with "
            f"{eos_id(text)}, CLIP's tokenizer {EOT + 1:,} and {EOT}. Choose another model."
        )
    scale = model.logit_scale.float().exp().item()
    if not 0 < scale < math.inf:
        raise BlackBoxError(
            f"The temperature of {name} is {scale} (the exponential of logit_scale), and a finite "
            f"number above 0 was expected: damaged weights. Copy the file again."
        )
    mean, std = normalisation(visual)
    told = (getattr(visual, "preprocess_cfg", None) or {}).get("interpolation")
    patches = visual.conv1.weight.float() if isinstance(visual, VisionTransformer) else None
    return Description(
        name=name,
        width=words.shape[1],
        image_width=None if patches is None else patches.shape[0],
        embed_dim=joint_width(name, model, dtype),
        context_length=text.context_length,
        image_size=image_size(visual),
        mean=mean,
        std=std,
        interpolation="bilinear" if told == "bilinear" else "bicubic",
        logit_scale=scale,
        token_std=words.float().std().item(),
        patch_mean=None if patches is None else patches.mean().item(),
        patch_std=None if patches is None else patches.std().item(),
        fingerprint=fingerprint,
    )


@torch.no_grad()
def joint_width(name: str, model: Any, dtype: torch.dtype) -> int:
    """E, the width of the features of a black image and an empty text."""
    device, size = model.logit_scale.device, image_size(model.visual)
    ids = torch.zeros(1, text_tower(model).context_length, dtype=torch.long, device=device)
    ids[0, 0], ids[0, 1] = SOS, EOT
    try:
        image = model.encode_image(torch.zeros(1, 3, *size, device=device, dtype=dtype))
        text = model.encode_text(ids)
        if image.shape != text.shape or image.ndim != 2 or not (image + text).isfinite().all():
            shapes = f"{tuple(image.shape)} and {tuple(text.shape)}"
            raise ValueError(f"its features have the shapes {shapes}, or are no finite numbers")
    except Exception as e:
        raise BlackBoxError(
            f"{name} cannot encode an image of {size} pixels and a text of CLIP's tokenizer as one "
            f"vector each, equally long ({type(e).__name__}: {reason(e)}). Choose another model or "
            f"ORACLE.PREC."
        ) from e
    return image.shape[1]


def doubts(name: str, model: Any, state: dict[str, torch.Tensor]) -> Iterator[str]:
    """Lines on what of a model, and of the `state` that was read into it, may not be meant."""
    own = model.state_dict()
    for key in (key for key in state if key.endswith("positional_embedding")):
        there, here = len(state[key]), len(own.get(key, own.get(f"text.{key}", state[key])))
        if there != here:
            yield (
                f"{name} has {there} position embeddings ('{key}') and its architecture {here}, "
                f"between which open_clip interpolates: the weights are not the architecture's own"
            )
    mode = (getattr(model.visual, "preprocess_cfg", None) or {}).get("resize_mode")
    if mode in RESIZES:
        yield (
            f"for {name} open_clip {RESIZES[mode]}; here, as for every model, the short side is "
            f"resized and the centre cropped, so that accuracies may differ from open_clip's"
        )
    # a copy that stopped midway can leave zeros; the first row of other matrices has a number
    matrices = [(k, p) for k, p in model.named_parameters() if p.ndim > 1]
    zeros = [k for k, p in matrices if not p[:1].any() and not p.any()]
    if zeros:
        yield (
            f"in {name} every number of '{zeros[0]}' is 0, as in {len(zeros) - 1} more matrices; "
            f"is the file a whole copy?"
        )


def fingerprint(model: nn.Module) -> str:
    """What a model is: SHA-256 of its weights and of what its architecture makes of them.

    Of a model in float32, so that it is the same at every ORACLE.PREC. Of the architecture a fixed
    list of facts counts: a new release of torch, timm or open_clip that adds an attribute, an
    Identity or a Dropout leaves it as it was. Checkpoints hold it, so its arithmetic stays.
    """
    sha = hashlib.sha256(json.dumps([modules(model), settings(model)], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue  # counts training steps
        kind = torch.float32 if tensor.is_floating_point() else torch.int64
        values = tensor.detach().to("cpu", kind).contiguous()
        sha.update(f"{name} {list(values.shape)} ".encode())
        sha.update(values.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def modules(model: nn.Module) -> list[list[Any]]:
    """[name, kind, numbers that are in no tensor] of all modules that compute something."""
    found = []
    for name, module in model.named_modules():
        own = type(module).__name__
        kind = next((base for base in NUMBERS if isinstance(module, base)), None)
        if kind is not None:
            numbers = [getattr(module, attribute) for attribute in NUMBERS[kind]]
            found.append([name, kind.__name__, numbers])
        elif "Attention" in own and "Block" not in own and hasattr(module, "num_heads"):
            found.append([name, "Attention", [module.num_heads]])
        elif not is_idle(module) and all(map(is_idle, module.children())):
            found.append([name, own, []])
    return found


def is_idle(module: nn.Module) -> bool:
    """Whether a module changes nothing in evaluation."""
    idle = isinstance(module, IDLE) or type(module).__name__ in IDLE_NAMES
    return idle and all(map(is_idle, module.children()))


def settings(model: Any) -> dict[str, Any]:
    """What the towers are told beside their modules."""
    visual, text = model.visual, text_tower(model)
    mask, pool = getattr(text, "attn_mask", None), text_pool(text)
    padded = getattr(text, "use_pad_mask", False) or getattr(text, "cls_emb", None) is not None
    trunk = getattr(visual, "trunk", None)
    timm_name = (getattr(trunk, "pretrained_cfg", None) or {}).get("architecture")
    timm_pool = getattr(trunk, "global_pool", None)
    return {
        "image size": list(image_size(visual)),
        "normalisation": [[round(float(x), 4) for x in part] for part in normalisation(visual)],
        "image pool": [
            getattr(visual, "pool_type", None),
            getattr(visual, "attn_pool_type", None) or None,
            bool(getattr(visual, "final_ln_after_pool", False)),
        ],
        "timm": [timm_name, timm_pool if isinstance(timm_pool, str) else None]
        * (trunk is not None),
        "context length": text.context_length,
        "text pool": pool,
        "end of text": eos_id(text) if pool == "eos" else None,
        "padding": text.pad_id if padded else None,
        "class token sees padding": bool(getattr(text, "correct_cls_mask", False)),
        "text mask": None
        if mask is None
        else hashlib.sha256(mask.detach().cpu().float().numpy().tobytes()).hexdigest(),
    }
