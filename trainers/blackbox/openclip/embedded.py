"""The models that are part of the package: their weights and their configurations.

`tiny` is a ViT of 7 MB that this project trained, `photo` a convolutional tower that was trained on
ImageNet's labels, with a text tower distilled for it: stand-ins for CLIP, in its layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, convert_weights_to_lp, get_cast_dtype, set_model_preprocess_cfg
from open_clip.transformer import LayerNormFp32
from torch import nn

ASSETS = Path(__file__).resolve().parent.parent / "assets"
EMBEDDED = ("tiny", "photo")
SCALE = ".scale"  # ends the name of the factors of a tensor that is stored in 8 bits


def embedded_state_dict(name: str, folder: Path | None = None) -> dict[str, torch.Tensor]:
    """A model's full state dict, float32.

    A tensor is stored in half precision or in 8 bits, with a factor for each of its first
    dimension. Only the token embeddings that training touched are stored. The others are a seeded
    normal with the touched rows' deviation, so that a word that the model never read is as long as
    one that it knows.

    Args:
        folder: where the two files lie, if not in the package.
    """
    from safetensors.torch import load_file

    stored = load_file((folder or ASSETS) / f"{name}.safetensors")
    state = {
        k: v.float() * stored[k + SCALE].float() if k + SCALE in stored else as_float(v)
        for k, v in stored.items()
        if not k.endswith(SCALE)
    }
    rows, touched = state.pop("token_embedding.rows").long(), state.pop("token_embedding.touched")
    vocabulary = embedded_config(name, folder)["model_cfg"]["text_cfg"]["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(vocabulary, touched.shape[1], generator=generator) * touched.std()
    table[rows] = touched
    state["token_embedding.weight"] = table
    return state


def as_float(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def embedded_config(name: str, folder: Path | None = None) -> dict[str, Any]:
    return json.loads(((folder or ASSETS) / f"{name}.json").read_text(encoding="utf-8"))


def build_embedded(name: str, precision: str) -> nn.Module:
    kind, config = get_cast_dtype(precision), embedded_config(name)
    model = CLIP(**config["model_cfg"], cast_dtype=kind)
    model.load_state_dict(embedded_state_dict(name))
    if kind is not None and "timm_model_name" in config["model_cfg"]["vision_cfg"]:
        model.to(kind).apply(keep_norms)
    elif kind is not None:
        convert_weights_to_lp(model, kind)
    set_model_preprocess_cfg(model, config["preprocess_cfg"])
    return model


def keep_norms(module: nn.Module) -> None:
    """Layer norms that compute in float32 keep their weights so, as in open_clip."""
    if isinstance(module, LayerNormFp32):
        module.float()
