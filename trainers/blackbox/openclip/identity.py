"""What a model is: a SHA-256 of its weights and of what its architecture makes of them.

The weights count as float32, from before any conversion, so that a model is the same at every
ORACLE.PREC. Of the architecture a fixed list of facts counts: a new release of torch, timm or
open_clip that adds an attribute, an Identity or a Dropout leaves the identity as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from ..run.files import read_text, write_atomically
from .describe import eos_id, image_size, normalisation, text_pool, text_tower

VERSION = 1  # of this file's arithmetic
KEPT = 200  # models in the cache
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


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of a model whose weights are as they were read: not converted."""
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
        kind = next((base for base in NUMBERS if isinstance(module, base)), None)
        if kind is not None:
            numbers = [getattr(module, attribute) for attribute in NUMBERS[kind]]
            found.append([name, kind.__name__, numbers])
        elif is_attention(module):
            found.append([name, "Attention", [module.num_heads]])
        elif not is_idle(module) and all(map(is_idle, module.children())):
            found.append([name, type(module).__name__, []])
    return found


def is_attention(module: nn.Module) -> bool:
    kind = type(module).__name__
    return "Attention" in kind and "Block" not in kind and hasattr(module, "num_heads")


def is_idle(module: nn.Module) -> bool:
    """Whether a module changes nothing in evaluation."""
    idle = isinstance(module, IDLE) or type(module).__name__ in IDLE_NAMES
    return idle and all(map(is_idle, module.children()))


def settings(model: Any) -> dict[str, Any]:
    """What the towers are told beside their modules."""
    visual, text = model.visual, text_tower(model)
    mask, pool = getattr(text, "attn_mask", None), text_pool(text)
    padded = getattr(text, "use_pad_mask", False) or getattr(text, "cls_emb", None) is not None
    return {
        "image size": list(image_size(visual)),
        "normalisation": [[round(float(x), 4) for x in part] for part in normalisation(visual)],
        "image pool": [
            getattr(visual, "pool_type", None),
            getattr(visual, "attn_pool_type", None) or None,
            bool(getattr(visual, "final_ln_after_pool", False)),
        ],
        "timm": timm_facts(getattr(visual, "trunk", None)),
        "context length": text.context_length,
        "text pool": pool,
        "end of text": eos_id(text) if pool == "eos" else None,
        "padding": text.pad_id if padded else None,
        "class token sees padding": bool(getattr(text, "correct_cls_mask", False)),
        "text mask": None
        if mask is None
        else hashlib.sha256(mask.detach().cpu().float().numpy().tobytes()).hexdigest(),
    }


def timm_facts(trunk: nn.Module | None) -> list[str | None]:
    """Name and pooling of an image tower of timm's; nothing of another."""
    if trunk is None:
        return []
    pool = getattr(trunk, "global_pool", None)
    return [
        (getattr(trunk, "pretrained_cfg", None) or {}).get("architecture"),
        pool if isinstance(pool, str) else None,
    ]


def identify(path: Path, way: list[Any], compute: Callable[[], str]) -> str:
    """The fingerprint of the model that is made of a file, from the cache where that knows it.

    Args:
        path: the file of weights.
        way: whatever else makes the model what it is (architecture, versions), as JSON.
        compute: builds the model and returns its fingerprint.
    """
    before = state(path)
    key = json.dumps([os.path.realpath(path), VERSION, way], sort_keys=True)
    known = remembered().get(key)
    if before is not None and isinstance(known, dict) and known.get("state") == before:
        return known["fingerprint"]
    found = compute()
    if before is not None and state(path) == before:
        remember(key, {"state": before, "fingerprint": found})
    return found


def state(path: Path) -> list[int] | None:
    """By what a changed file is told: size, times and number; None where they cannot be had."""
    try:
        s = os.stat(path)
    except OSError:
        return None
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev]


def cache_file() -> Path:
    """Raises RuntimeError: there is no home folder."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return folder / "dassl-blackbox" / "fingerprints.json"


def digest(models: Any) -> str:
    return hashlib.sha256(json.dumps(models, sort_keys=True).encode()).hexdigest()


def remembered() -> dict[str, Any]:
    """What the cache holds; nothing where it is missing or damaged."""
    try:
        content = json.loads(read_text(cache_file(), ""))
        if content["digest"] == digest(content["models"]):
            return dict(content["models"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        pass
    return {}


def remember(key: str, entry: dict[str, Any]) -> None:
    """Put one model into the cache, the oldest out; where it cannot be written, nothing happens."""
    models = {name: value for name, value in remembered().items() if name != key}
    models = dict([*models.items(), (key, entry)][-KEPT:])
    content = json.dumps({"digest": digest(models), "models": models})
    with suppress(OSError, ValueError, RuntimeError):
        write_atomically(cache_file(), content.encode())
