"""The models that are part of the package: their weights and their configurations.

`tiny` is a ViT of 7 MB that this project trained, `photo` a convolutional tower that was trained on
ImageNet's labels, with a text tower distilled for it: stand-ins for CLIP, in its layout.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ASSETS = Path(__file__).resolve().parent.parent / "assets"
EMBEDDED = ("tiny", "photo")
SCALE = ".scale"  # ends the name of the factors of a tensor that is stored in 8 bits


def embedded_state_dict(name: str, folder: Path | None = None) -> dict[str, torch.Tensor]:
    """A model's full state dict, float32, of the package's or another folder.

    A tensor is stored in half precision or in 8 bits, with a factor for each of its first
    dimension. Token embeddings that training did not touch are a seeded normal with the others'
    deviation, so that a word that the model never read is as long as one that it knows.
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
