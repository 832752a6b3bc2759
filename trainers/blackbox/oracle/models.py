"""From `MODEL.BACKBONE.NAME` to a frozen open_clip model."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, convert_weights_to_lp, get_cast_dtype, set_model_preprocess_cfg
from open_clip.openai import load_openai_model

from ..run.errors import BlackBoxError, nearest, one_of
from .interface import Description

ASSETS = Path(__file__).resolve().parent.parent / "assets"
PRECISIONS = ("fp32", "fp16", "bf16", "amp")
# CoOp's names mean OpenAI's weights, which expect QuickGELU: open_clip's plain configurations have GELU.
OPENAI = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}


@dataclass
class LoadedModel:
    """A frozen model in evaluation mode, with what is needed to feed it."""

    model: Any
    tokenizer: Any
    description: Description
    precision: str
    device: torch.device


def load_model(name, precision="fp32", device="cpu"):
    """Load the model that `MODEL.BACKBONE.NAME` names.

    Args:
        name: `tiny` (the embedded one); one of CoOp's names (OpenAI's weights: CLIP's own cache, then open_clip's download);
            `arch:tag` or `arch:path` of open_clip; or the path of a checkpoint in OpenAI's format.
        precision: fp32, fp16, bf16 (weights of the towers in that type) or amp (fp32 weights under autocast).

    Raises:
        BlackBoxError: unknown name or precision, or weights that cannot be had.
    """
    one_of("precision (ORACLE.PREC)", precision, PRECISIONS)
    device = torch.device(device)
    weights = "fp32" if precision == "amp" else precision
    if name == "tiny":
        model, tokenizer = load_tiny(weights)
    elif name in OPENAI:
        cached = Path.home() / ".cache" / "clip" / f"{name.replace('/', '-').replace('@', '-')}.pt"
        if cached.is_file():
            model, tokenizer = load_openai_file(cached, weights, device)
        else:
            model, tokenizer = load_open_clip(OPENAI[name], "openai", weights, device)
    elif Path(name).is_file():
        model, tokenizer = load_openai_file(name, weights, device)
    elif ":" in name:
        arch, tag = name.split(":", 1)
        arch = arch.replace("/", "-")
        one_of("architecture of open_clip", arch, open_clip.list_models())
        if not Path(tag).is_file():
            one_of(
                f"pretrained tag of {arch} (and no such file)",
                tag,
                open_clip.list_pretrained_tags_by_model(arch),
            )
        model, tokenizer = load_open_clip(arch, tag, weights, device)
    else:
        raise BlackBoxError(
            f"Unknown backbone '{name}' (MODEL.BACKBONE.NAME): {nearest(name, ['tiny', *OPENAI])} Or give "
            f"architecture:tag of open_clip, or the path of a checkpoint file."
        )
    model = model.to(device).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, describe(name, model), precision, device)


def load_open_clip(arch, pretrained, precision, device):
    if open_clip.get_model_config(arch)["text_cfg"].get("hf_tokenizer_name"):
        raise BlackBoxError(
            f"{arch} has a tokenizer of Hugging Face, and contexts need CLIP's own. Choose a CLIP model without one."
        )
    try:
        model = open_clip.create_model(
            arch, pretrained=pretrained, precision=precision, device=device, require_pretrained=True
        )
    except Exception as e:  # open_clip wraps whatever its download raised
        raise BlackBoxError(
            f"The weights '{pretrained}' of {arch} could not be loaded ({str(e).splitlines()[0][:200]}). Offline, copy the file to this machine "
            f"and give its path: MODEL.BACKBONE.NAME {arch}:/path/to/file, or a file of OpenAI's, such as ViT-B-16.pt, into ~/.cache/clip."
        ) from e
    return model, open_clip.get_tokenizer(arch)


def load_openai_file(path, precision, device):
    """A state dict or archive in OpenAI's layout (QuickGELU, head width 64)."""
    try:
        model = load_openai_model(str(path), precision=precision, device=device)
    except Exception as e:
        raise BlackBoxError(
            f"{path} is not a CLIP checkpoint in OpenAI's format ({type(e).__name__}: {str(e).splitlines()[0][:200]}). For a "
            f"checkpoint of open_clip name the architecture too: MODEL.BACKBONE.NAME arch:{path}."
        ) from e
    return model, open_clip.tokenizer.SimpleTokenizer(context_length=model.context_length)


def tiny_state_dict():
    """The embedded model's full state dict, float32, in the layout of OpenAI's CLIP.

    Only the token embeddings that training touched are stored. The others are a seeded normal with the touched rows' deviation, so
    that a word that the model never read is as long as one that it knows.
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


def tiny_config():
    return json.loads((ASSETS / "open_clip_config.json").read_text(encoding="utf-8"))


def load_tiny(precision):
    kind, config = get_cast_dtype(precision), tiny_config()
    model = CLIP(**config["model_cfg"], cast_dtype=kind)
    model.load_state_dict(tiny_state_dict())
    if kind is not None:
        convert_weights_to_lp(model, kind)
    set_model_preprocess_cfg(model, config["preprocess_cfg"])
    return model, open_clip.tokenizer.SimpleTokenizer(context_length=model.context_length)


def describe(name, model):
    """Sizes, normalisation and the three moments (BPT-VLM's projections are scaled by them).

    Raises:
        BlackBoxError: a text tower that is not open_clip's own.
    """
    visual, text = model.visual, getattr(model, "text", model)
    if not hasattr(text, "token_embedding"):
        raise BlackBoxError(
            f"The text tower of {name} is not one of open_clip's own, so no context can be put in front of the class names. Choose a "
            f"CLIP model without a Hugging Face text tower."
        )
    size = (
        visual.image_size
        if isinstance(visual.image_size, (tuple, list))
        else (visual.image_size,) * 2
    )
    embedding = text.token_embedding.weight
    patches = visual.conv1.weight.float() if hasattr(visual, "ln_pre") else None
    preprocess = getattr(visual, "preprocess_cfg", {})
    return Description(
        name=name,
        width=embedding.shape[1],
        image_width=None if patches is None else patches.shape[0],
        embed_dim=visual.output_dim,
        context_length=text.context_length,
        image_size=tuple(size),
        mean=tuple(preprocess.get("mean") or visual.image_mean),
        std=tuple(preprocess.get("std") or visual.image_std),
        interpolation=preprocess.get("interpolation", "bicubic"),
        logit_scale=model.logit_scale.exp().item(),
        token_std=embedding.float().std().item(),
        patch_mean=None if patches is None else patches.mean().item(),
        patch_std=None if patches is None else patches.std().item(),
        fingerprint=hashlib.sha256(
            text.positional_embedding.detach().float().cpu().numpy().tobytes()
        ).hexdigest()[:16],
    )
