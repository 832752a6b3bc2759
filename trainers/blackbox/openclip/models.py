"""From `MODEL.BACKBONE.NAME` to a frozen model that has been checked and described.

GELU or QuickGELU: no tensor tells them apart, and with the wrong one all logits are off. What is
known: the activation of open_clip's architectures, and that of the weights that it lists
(`arch:tag`), which a file is when its name, or its folder in the Hugging Face cache, says so. Files
in OpenAI's format have QuickGELU. A contradiction is an error; where nothing is known, a line says
what was assumed.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip.model import (
    build_model_from_openai_state_dict,
    convert_weights_to_lp,
    get_cast_dtype,
    set_model_preprocess_cfg,
)
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.transform import PreprocessCfg
from torch import nn

from ..errors import BlackBoxError, nearest, one_of
from ..oracle.interface import Description
from .convolutions import fold_batch_norms
from .describe import describe, doubts, fingerprint, image_size
from .embedded import EMBEDDED, build_embedded
from .weights import Weights, check_read, is_script, numpy_values, read_weights, reason

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
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
OPEN_CLIPS = frozenset(open_clip.list_models())
QUICK = "-quickgelu"
NAMES = {False: "GELU", True: "QuickGELU"}
FORMAT = "a file without an architecture is taken for OpenAI's, which"
HASHED = re.compile(r".*-[0-9a-f]{8}\.pth?")  # the end of a name that open_clip gave a release


@dataclass
class LoadedModel:
    """A frozen model in evaluation mode, with what is needed to feed it."""

    model: Any
    tokenizer: Any
    description: Description
    precision: str
    device: torch.device


def load_model(
    name: str, precision: str = "fp32", device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load the model that `MODEL.BACKBONE.NAME` names.

    Args:
        name: `tiny` or `photo` (embedded); one of CoOp's names (OpenAI's weights: CLIP's own cache,
            then open_clip's download); `arch:tag` or `arch:path` of open_clip, `config.json:path`
            of an architecture of one's own; or the path of a checkpoint in OpenAI's format.
        precision: fp32, fp16, bf16 (weights of the towers in that type) or amp (fp32 weights under
            autocast).

    Raises:
        BlackBoxError: unknown name or precision, weights that cannot be had, are damaged or do not
            fit, or a model that contexts cannot be put into.
    """
    one_of("precision (ORACLE.PREC)", precision, PRECISIONS)
    source, weights = find(name), "fp32" if precision == "amp" else precision
    model = source.made(weights)
    check_read(name, model, source.state)
    identity = fingerprint(model if weights == "fp32" else source.made("fp32"))
    device = torch.device(device)
    model = model.to(device).eval().requires_grad_(False)
    if hasattr(model.visual, "trunk"):  # timm's: its convolutions are faster so
        model.visual.to(memory_format=torch.channels_last)
    description = describe(name, model, identity, get_cast_dtype(weights) or torch.float32)
    for note in filter(None, [source.note, *doubts(name, model, source.state)]):
        print(f"Note: {note}")
    if precision == "fp16" and device.type == "cpu":
        print("Note: fp16 takes a CPU longer than fp32, up to ten times as long")
    if precision == "fp32":
        model.visual = fold_batch_norms(model.visual, *image_size(model.visual))
    if source.arch is None:
        tokenizer = open_clip.SimpleTokenizer(context_length=description.context_length)
    else:
        tokenizer = open_clip.get_tokenizer(source.arch)
    return LoadedModel(model, tokenizer, description, precision, device)


@dataclass(frozen=True)
class Source:
    """How a model is made: `build(precision)` gives it, on the CPU, in fp32, fp16 or bf16."""

    build: Callable[[str], nn.Module]
    unfit: str  # said where that fails
    arch: str | None = None  # of open_clip
    state: dict[str, torch.Tensor] = field(default_factory=dict)  # that was read, if it was
    note: str = ""  # on what was assumed

    def made(self, precision: str) -> Any:
        """Raises BlackBoxError: there is no such model in the file."""
        try:
            return self.build(precision)
        except Exception as e:  # whatever open_clip raised
            raise BlackBoxError(f"{self.unfit} ({type(e).__name__}: {reason(e)}).") from e


def find(name: str) -> Source:
    """What `MODEL.BACKBONE.NAME` means."""
    if name in EMBEDDED:
        unfit = f"The embedded model {name} is damaged: install the package again"
        return Source(partial(build_embedded, name), unfit)
    if name in OPENAI:  # OpenAI's `clip` may have left the file
        file = name.replace("/", "-").replace("@", "-") + ".pt"
        cached = Path(os.path.expanduser("~/.cache/clip"), file)
        return openai_source(cached) if cached.exists() else tagged_source(OPENAI[name], "openai")
    own = re.fullmatch(r"(.+?\.json)(?::(.+))?", name, re.DOTALL)
    if own:
        return own_source(Path(own[1]), own[2])
    if os.path.lexists(name):
        return openai_source(Path(name))
    arch, _, tag = name.partition(":")
    if not tag:
        raise BlackBoxError(
            f"Unknown backbone '{name}' (MODEL.BACKBONE.NAME): "
            f"{nearest(name, [*EMBEDDED, *OPENAI])} Or give architecture:tag of open_clip, "
            f"config.json:weights of an architecture of your own, or the path of a checkpoint file."
        )
    arch = arch.replace("/", "-")
    one_of("architecture of open_clip", arch, open_clip.list_models())
    if os.path.lexists(tag) and not get_pretrained_cfg(arch, tag):
        return file_source(arch, Path(tag))
    return tagged_source(arch, tag)


def own_source(path: Path, weights: str | None) -> Source:
    """An architecture of the user's, which open_clip is told of, and a file of its weights."""
    if not weights:
        raise BlackBoxError(f"{path} is an architecture. Name its weights: {path}:path/to/file.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        towers = [config.get(k) for k in ("vision_cfg", "text_cfg")] if type(config) is dict else []
        if not towers or "embed_dim" not in config or not all(type(t) is dict for t in towers):
            raise ValueError(
                "embed_dim and objects vision_cfg and text_cfg are expected in it; of an "
                "open_clip_config.json save the part 'model_cfg'"
            )
        if path.stem in OPEN_CLIPS and open_clip.get_model_config(path.stem) != config:
            raise ValueError("it has the name of another architecture of open_clip's: rename it")
        open_clip.add_model_config(path)
    except (OSError, ValueError, RecursionError) as e:
        raise BlackBoxError(
            f"The architecture {path} cannot be read ({reason(e)}). MODEL.BACKBONE.NAME takes "
            f"path/to/config.json:path/to/weights with a model configuration of open_clip's."
        ) from e
    return file_source(path.stem, Path(weights), path)


def tagged_source(arch: str, tag: str) -> Source:
    """The weights that open_clip lists under a tag, downloaded if need be."""
    other = twin(arch)
    listed = get_pretrained_cfg(arch, tag) or (get_pretrained_cfg(other, tag) if other else {})
    if not listed:
        tags = [*open_clip.list_pretrained_tags_by_model(arch), "path/to/file"]
        one_of(f"pretrained tag of {arch} (and no such file)", tag, tags)
    check_activation(arch, f"The weights '{tag}'", bool(listed.get("quick_gelu")), tag)
    check_tokenizer(arch)
    try:
        path = Path(download_pretrained(listed))
    except Exception as e:  # whatever the download raised
        raise BlackBoxError(
            f"The weights '{tag}' of {arch} could not be loaded ({reason(e)}). Offline, copy the "
            f"file to this machine and give its path: MODEL.BACKBONE.NAME {arch}:/path/to/file, or "
            f"a file of OpenAI's, such as ViT-B-16.pt, into ~/.cache/clip."
        ) from e
    return arch_source(arch, path, listed, read_weights(path) if is_script(path) else Weights({}))


def file_source(arch: str, path: Path, own: Path | None = None) -> Source:
    """A checkpoint of an architecture of open_clip's, or of the user's, in the file `own`."""
    check_tokenizer(arch)
    weights = read_weights(path)
    note = check_file(arch, path, weights, own)
    return arch_source(arch, path, released(path) or common_preprocessing(arch), weights, note)


def common_preprocessing(arch: str) -> dict[str, Any]:
    """How images are prepared for all weights of an architecture that open_clip lists, if alike."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    found = [{key: get_pretrained_cfg(arch, tag).get(key) for key in keys} for tag in tags]
    return found[0] if found and all(one == found[0] for one in found) else {}


def arch_source(
    arch: str, path: Path, listed: dict[str, Any], weights: Weights, note: str = ""
) -> Source:
    """Weights that open_clip reads into one of its architectures.

    Args:
        listed: how images are prepared, among what open_clip lists of the weights.
    """
    preprocess = {key: value for key, value in listed.items() if key in vars(PreprocessCfg())}

    def build(precision: str) -> nn.Module:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(numpy_values()),
            TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")
            file = path.absolute()
            if not weights.direct:
                file = Path(folder) / "weights.pt"
                torch.save(weights.state, file)
            return open_clip.create_model(
                arch,
                pretrained=str(file),
                precision=precision,
                force_preprocess_cfg=preprocess,
                require_pretrained=True,
                weights_only=True,
            )

    unfit = f"{path} does not fit {arch}: name what it was trained with, or copy the file again"
    return Source(build, unfit, arch, weights.state, note)


def openai_source(path: Path) -> Source:
    """A state dict or archive in OpenAI's layout (QuickGELU, head width 64)."""
    weights = read_weights(path)
    note = check_file(None, path, weights)

    def build(precision: str) -> nn.Module:
        kind = get_cast_dtype(precision)
        model = build_model_from_openai_state_dict(dict(weights.state), cast_dtype=kind)
        if precision != "fp16":  # open_clip builds it in half precision
            model.float().load_state_dict(weights.state)
        if precision == "bf16":
            convert_weights_to_lp(model, dtype=torch.bfloat16)
        set_model_preprocess_cfg(model, vars(PreprocessCfg(size=model.visual.image_size)))
        return model

    unfit = (
        f"{path} is no CLIP in OpenAI's format: of open_clip's, name the architecture, arch:path"
    )
    return Source(build, unfit, None, weights.state, note)


def check_tokenizer(arch: str) -> None:
    """Raise a BlackBoxError unless CLIP's tokens go into a text tower of open_clip's own."""
    text = open_clip.get_model_config(arch)["text_cfg"]
    foreign = {"hf_model_name", "hf_tokenizer_name"} & text.keys()
    if foreign or "siglip" in arch.lower():  # which open_clip goes by
        raise BlackBoxError(
            f"{arch} has a tokenizer of Hugging Face's, by its configuration or by 'siglip' in its "
            f"name, and contexts need CLIP's own. Choose a CLIP model without one."
        )


def quick(arch: str | None) -> bool:
    """Whether an architecture has QuickGELU; None is that of OpenAI's format."""
    return arch is None or bool(open_clip.get_model_config(arch).get("quick_gelu", False))


def twin(arch: str | None) -> str | None:
    """The same architecture with the other activation, where open_clip has one."""
    if arch is None:
        return "its architecture, arch"
    other = arch.removesuffix(QUICK) if arch.endswith(QUICK) else arch + QUICK
    return other if other in open_clip.list_models() and quick(other) != quick(arch) else None


def check_activation(arch: str | None, what: str, trained: bool, weights: str | Path) -> None:
    """Raise a BlackBoxError unless the architecture has what the weights were trained with."""
    if trained != quick(arch):
        raise BlackBoxError(
            f"{what} were trained with {NAMES[trained]}, and {arch or FORMAT} has "
            f"{NAMES[quick(arch)]}: all logits would be off. Name "
            f"{twin(arch) or 'an architecture that has it'}:{weights}."
        )


def check_file(arch: str | None, path: Path, weights: Weights, own: Path | None = None) -> str:
    """The same for a file; returns a note where nothing tells what it was trained with."""
    release, other = released(path), twin(arch)
    if weights.openai or release:
        trained = weights.openai or bool(release.get("quick_gelu"))
        check_activation(arch, f"The weights in {path}", trained, path)
    elif other or (own and "quick_gelu" not in open_clip.get_model_config(arch)):
        return (
            f"{arch or FORMAT} has {NAMES[quick(arch)]}, and {path} does not tell what its weights "
            f"were trained with. If it was {NAMES[not quick(arch)]}, the logits are off: "
            + (f"name {other}:{path}" if other else f'put "quick_gelu": true into {own}')
        )
    return ""


def released(path: Path) -> dict[str, Any]:
    """What open_clip lists of the weights that a file is, by its name or its folder; or nothing."""
    parts = {*path.absolute().parts, *Path(os.path.realpath(path)).parts}
    for model, tag in open_clip.list_pretrained():
        listed = get_pretrained_cfg(model, tag)
        file, hub = Path(listed.get("url", "")).name, listed.get("hf_hub", "").rpartition("/")[0]
        folder = f"models--{hub.replace('/', '--')}"
        if folder in parts or (file in parts and HASHED.fullmatch(file)):
            return listed
    return {}
