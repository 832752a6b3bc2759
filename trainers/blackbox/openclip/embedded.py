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
from safetensors.torch import load_file
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
    stored = load_file((folder or ASSETS) / f"{name}.safetensors")
    state = {}
    for key in (key for key in stored if not key.endswith(SCALE)):
        value, scale = stored[key], stored.get(key + SCALE)
        state[key] = value.float() if value.is_floating_point() else value
        if scale is not None:
            state[key] = value.float() * scale.float()
    rows, touched = state.pop("token_embedding.rows").long(), state.pop("token_embedding.touched")
    vocabulary = embedded_config(name, folder)["model_cfg"]["text_cfg"]["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(vocabulary, touched.shape[1], generator=generator) * touched.std()
    table[rows] = touched
    state["token_embedding.weight"] = table
    return state


def embedded_config(name: str, folder: Path | None = None) -> dict[str, Any]:
    return json.loads(((folder or ASSETS) / f"{name}.json").read_text(encoding="utf-8"))


def build_embedded(name: str, precision: str) -> nn.Module:
    kind, config = get_cast_dtype(precision), embedded_config(name)
    model = CLIP(**config["model_cfg"], cast_dtype=kind)
    model.load_state_dict(embedded_state_dict(name))
    if kind is not None and "timm_model_name" in config["model_cfg"]["vision_cfg"]:
        model.to(kind)
        for module in model.modules():  # layer norms that compute in float32 keep their weights so
            if isinstance(module, LayerNormFp32):
                module.float()
    elif kind is not None:
        convert_weights_to_lp(model, kind)
    set_model_preprocess_cfg(model, config["preprocess_cfg"])
    return model
