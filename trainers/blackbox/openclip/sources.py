"""From `MODEL.BACKBONE.NAME` to a file of weights, and to the model that is made of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip.model import (
    CLIPTextCfg,
    CLIPVisionCfg,
    build_model_from_openai_state_dict,
    convert_weights_to_lp,
    get_cast_dtype,
    set_model_preprocess_cfg,
)
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.transform import PreprocessCfg
from open_clip.utils import to_2tuple
from torch import nn

from ..run.errors import BlackBoxError, nearest, one_of
from .activation import check_bare, check_tag, check_weights, released
from .architecture import own_arch, split_name
from .describe import check_tokenizer
from .embedded import ASSETS, EMBEDDED, build_embedded, embedded_config
from .weights import (
    OPENAI_MARKS,
    Weights,
    is_script,
    is_there,
    numpy_values,
    read_weights,
    reason,
)

# CoOp's names mean OpenAI's weights, trained with QuickGELU; open_clip's plain names have GELU.
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


@dataclass(frozen=True)
class Source:
    """A file of weights and how a model is made of it.

    `build(precision)` gives the model, on the CPU, with weights of fp32, fp16 or bf16.
    """

    file: Path
    arch: str | None  # of open_clip
    build: Callable[[str], nn.Module]
    way: list[Any]  # what beside the file makes the model what it is, as JSON
    notes: list[str] = field(default_factory=list)  # on what was assumed


def find(name: str) -> Source:
    """The file that a name means."""
    if name in EMBEDDED:
        return embedded_source(name)
    if name in OPENAI:
        cached = openai_cache(name)
        return openai_source(cached) if cached else tagged_source(OPENAI[name], "openai")
    own = split_name(name)
    if own is not None:
        return own_source(*own)
    if is_there(name):
        return openai_source(Path(name))
    if ":" not in name:
        raise BlackBoxError(
            f"Unknown backbone '{name}' (MODEL.BACKBONE.NAME): "
            f"{nearest(name, [*EMBEDDED, *OPENAI])} Or give architecture:tag of open_clip, "
            f"config.json:weights of an architecture of your own, or the path of a checkpoint file."
        )
    arch, tag = name.split(":", 1)
    if arch in EMBEDDED:
        raise BlackBoxError(
            f"The embedded model {arch} has one set of weights, and takes no tag: give "
            f"MODEL.BACKBONE.NAME {arch}."
        )
    arch = arch.replace("/", "-")
    one_of("architecture of open_clip", arch, open_clip.list_models())
    check_tokenizer(arch, open_clip.get_model_config(arch))
    if is_there(tag) and not get_pretrained_cfg(arch, tag):
        return file_source(arch, Path(tag))
    return tagged_source(arch, tag)


def own_source(config: Path, weights: str) -> Source:
    """An architecture of the user's and a file of its weights."""
    arch = own_arch(config)
    check_tokenizer(arch, open_clip.get_model_config(arch))
    if not is_there(weights):
        raise BlackBoxError(
            f"There is no file of weights '{weights}' for {config}. Give its path: "
            f"MODEL.BACKBONE.NAME {config}:path/to/weights."
        )
    return file_source(arch, Path(weights), config)


def openai_cache(name: str) -> Path | None:
    """The file that OpenAI's `clip` left, if any."""
    try:
        folder = Path.home() / ".cache" / "clip"
    except RuntimeError:  # no home
        return None
    path = folder / f"{name.replace('/', '-').replace('@', '-')}.pt"
    return path if is_there(path) else None


def tagged_source(arch: str, tag: str) -> Source:
    """The weights that open_clip lists under a tag, downloaded if need be."""
    check_tag(arch, tag)
    listed = get_pretrained_cfg(arch, tag)
    try:
        path = Path(download_pretrained(listed))
    except Exception as e:  # whatever the download raised
        raise BlackBoxError(
            f"The weights '{tag}' of {arch} could not be loaded ({reason(e)}). Offline, copy the "
            f"file to this machine and give its path: MODEL.BACKBONE.NAME {arch}:/path/to/file, or "
            f"a file of OpenAI's, such as ViT-B-16.pt, into ~/.cache/clip."
        ) from e
    weights = read_weights(path) if is_script(path) else Weights({}, False, True)
    return arch_source(arch, path, listed, weights)


def file_source(arch: str, path: Path, own: Path | None = None) -> Source:
    """A checkpoint of an architecture of open_clip's, or of the user's, in the file `own`."""
    weights = read_weights(path)
    notes = check_weights(arch, path, weights, own) + interpolated(arch, path, weights.state)
    if OPENAI_MARKS & weights.state.keys() and not weights.script:
        raise BlackBoxError(
            f"{path} is in OpenAI's format, which tells its architecture: give the path alone, "
            f"MODEL.BACKBONE.NAME {path}."
        )
    listed = released(path) or common_preprocessing(arch)
    source = arch_source(arch, path, listed, weights)
    return replace(source, notes=notes)


def interpolated(arch: str, path: Path, state: dict[str, torch.Tensor]) -> list[str]:
    """A line for each tower whose position embeddings open_clip will interpolate."""
    notes = []
    config = open_clip.get_model_config(arch)
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    words = text.context_length + text.embed_cls
    wanted = {"positional_embedding": words, "text.positional_embedding": words}
    if isinstance(vision.layers, int) and not vision.timm_model_name:
        (height, width), (tall, wide) = to_2tuple(vision.image_size), to_2tuple(vision.patch_size)
        wanted["visual.positional_embedding"] = (height // tall) * (width // wide) + 1
    for name, count in wanted.items():
        found = state[name].shape[0] if name in state and state[name].ndim else count
        if found != count:
            notes.append(
                f"{path} has {found} position embeddings ('{name}') and {arch} {count}, between "
                f"which open_clip interpolates: the weights are not {arch}'s own"
            )
    return notes


def common_preprocessing(arch: str) -> dict[str, Any]:
    """How images are prepared for all weights of an architecture that open_clip lists, if alike."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    found = [{key: get_pretrained_cfg(arch, tag).get(key) for key in keys} for tag in tags]
    return found[0] if found and all(one == found[0] for one in found) else {}


def arch_source(arch: str, path: Path, listed: dict[str, Any], weights: Weights) -> Source:
    """Weights that open_clip reads into one of its architectures.

    Args:
        listed: how images are prepared, as open_clip lists it.
        weights: what the file holds, as far as it was looked at.
    """
    config, known = open_clip.get_model_config(arch), vars(PreprocessCfg())
    preprocess = {key: value for key, value in listed.items() if key in known}

    def build(precision: str) -> nn.Module:
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals(numpy_values()),
                TemporaryDirectory() as folder,
            ):
                warnings.simplefilter("ignore")
                file = path.absolute()
                if not weights.direct:
                    file = Path(folder) / "weights.pt"
                    torch.save(without_marks(weights.state), file)
                model = open_clip.create_model(
                    arch,
                    pretrained=str(file),
                    precision=precision,
                    force_preprocess_cfg=preprocess,
                    require_pretrained=True,
                    weights_only=True,
                )
            check_types(model, weights.state)
            return model
        except Exception as e:
            raise BlackBoxError(
                f"{path} does not fit {arch} ({type(e).__name__}: {reason(e)}). Name the "
                f"architecture that it was trained with, or copy the file again."
            ) from e

    return Source(path, arch, build, [arch, config, preprocess, open_clip.__version__])


def without_marks(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name not in OPENAI_MARKS}


def check_types(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Raise a ValueError where whole or complex numbers were read into a model's weights."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not state.get(name, value).is_floating_point():
            raise ValueError(f"'{name}' is of type {state[name].dtype}")


def openai_source(path: Path) -> Source:
    """A state dict or archive in OpenAI's layout (QuickGELU, head width 64)."""
    weights = read_weights(path)
    notes = check_bare(path, weights)
    state = without_marks(weights.state)

    def build(precision: str) -> nn.Module:
        try:
            model = build_model_from_openai_state_dict(
                dict(state), cast_dtype=get_cast_dtype(precision)
            )
            if precision != "fp16":  # open_clip builds it in half precision
                model.float().load_state_dict(state)
            check_types(model, state)
        except Exception as e:
            raise BlackBoxError(
                f"{path} is not a CLIP checkpoint in OpenAI's format ({type(e).__name__}: "
                f"{reason(e)}). For a checkpoint of open_clip name the architecture too: "
                f"MODEL.BACKBONE.NAME arch:{path}."
            ) from e
        if precision == "bf16":
            convert_weights_to_lp(model, dtype=torch.bfloat16)
        set_model_preprocess_cfg(model, vars(PreprocessCfg(size=model.visual.image_size)))
        return model

    return Source(path, None, build, ["OpenAI", open_clip.__version__], notes)


def embedded_source(name: str) -> Source:
    """A model that is part of the package."""
    path = ASSETS / f"{name}.safetensors"

    def damaged(e: Exception) -> BlackBoxError:
        return BlackBoxError(
            f"The embedded model, {path} and {name}.json beside it, is damaged "
            f"({type(e).__name__}: {reason(e)}). Install it again."
        )

    def build(precision: str) -> nn.Module:
        try:
            return build_embedded(name, precision)
        except Exception as e:
            raise damaged(e) from e

    try:
        return Source(path, None, build, [name, embedded_config(name), open_clip.__version__])
    except Exception as e:
        raise damaged(e) from e
