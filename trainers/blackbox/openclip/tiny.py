"""The embedded model: 7 MB of weights in the layout of OpenAI's CLIP, and its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, convert_weights_to_lp, get_cast_dtype, set_model_preprocess_cfg
from torch import nn

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def tiny_state_dict() -> dict[str, torch.Tensor]:
    """The embedded model's full state dict, float32, in the layout of OpenAI's CLIP.

    Only the token embeddings that training touched are stored. The others are a seeded normal with
    the touched rows' deviation, so that a word that the model never read is as long as one that it
    knows.
    """
    from safetensors.torch import load_file

    state = {
        k: v.float() if v.is_floating_point() else v
        for k, v in load_file(ASSETS / "tiny.safetensors").items()
    }
    rows, touched = state.pop("token_embedding.rows").long(), state.pop("token_embedding.touched")
    vocabulary = tiny_config()["model_cfg"]["text_cfg"]["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(vocabulary, touched.shape[1], generator=generator) * touched.std()
    table[rows] = touched
    state["token_embedding.weight"] = table
    return state


def tiny_config() -> dict[str, Any]:
    return json.loads((ASSETS / "open_clip_config.json").read_text(encoding="utf-8"))


def build_tiny(precision: str) -> nn.Module:
    kind, config = get_cast_dtype(precision), tiny_config()
    model = CLIP(**config["model_cfg"], cast_dtype=kind)
    model.load_state_dict(tiny_state_dict())
    if kind is not None:
        convert_weights_to_lp(model, kind)
    set_model_preprocess_cfg(model, config["preprocess_cfg"])
    return model
