"""From `MODEL.BACKBONE.NAME` to a frozen model that has been checked and described.

GELU or QuickGELU: no tensor tells them apart, and with the wrong one all logits are off. What is
known: the activation of open_clip's architectures, that of the weights that it lists (`arch:tag`),
which a file is when its name, or its folder in the Hugging Face cache, says so, and that files in
OpenAI's format have QuickGELU. A contradiction is an error; else a line says what was assumed.
"""

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from open_clip import model as architectures
from open_clip.convert import convert_state_dict
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, get_pretrained_url
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import LayerNormFp32, VisionTransformer
from safetensors.torch import load_file
from torch import nn

from ..errors import BlackBoxError, nearest, one_of
from ..oracle.interface import Description
from .blocks import told
from .embedded import EMBEDDED, embedded_config, embedded_state_dict
from .patches import fold_batch_norms, image_size

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
# CoOp's names mean OpenAI's weights, trained with QuickGELU; open_clip's plain names have GELU.
QUICK = "-quickgelu"
NAMES = ["RN50", "RN101", "RN50x4", "RN50x16", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]
OPENAI = {name: re.sub("[/@]", "-", name).removesuffix("px") + QUICK for name in NAMES}
EOT = 49407  # of CLIP's tokenizer
# numbers that OpenAI's files hold beside the weights
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}
HOLDERS = ("model", "state_dict", "model_state_dict")  # under which training code saves the weights
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# of the fingerprint: what computes nothing, and numbers of modules that are in no tensor
IDLE = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Sequential, nn.ModuleList, nn.ModuleDict)
IDLE_NAMES = ("DropPath", "PatchDropout", "PatchDropoutWithIndices")
CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
NUMBERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LayerNorm: ("eps",),
    nn.GroupNorm: ("num_groups", "eps"),
    nn.modules.batchnorm._BatchNorm: ("eps",),
    nn.modules.conv._ConvNd: CONVOLUTION,
    nn.GELU: ("approximate",),
    nn.AvgPool2d: ("kernel_size", "stride", "padding"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding"),
    nn.MultiheadAttention: ("num_heads",),
    nn.Linear: (),
    nn.Embedding: (),
}


@dataclass
class LoadedModel:
    """A frozen model in evaluation mode, with what is needed to feed it."""

    model: Any
    tokenizer: Any
    description: Description
    precision: str
    device: torch.device


class Source(NamedTuple):
    """What a model is made of."""

    config: Any  # open_clip's dictionary; None: OpenAI's format, whose weights tell it
    state: dict[str, torch.Tensor]
    preprocess: dict[str, Any]  # how images are prepared


def load_model(
    name: str, precision: str = "fp32", device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load the model of a name, or raise a BlackBoxError that says why that cannot be.

    Args:
        name: `tiny` or `photo` (embedded); one of CoOp's names (OpenAI's weights: CLIP's own cache,
            then open_clip's download); `arch:tag` or `arch:path` of open_clip, `config.json:path`
            of an architecture of one's own; or the path of a checkpoint in OpenAI's format.
        precision: fp32, fp16, bf16 (of the towers' weights) or amp (fp32 weights under autocast).
    """
    one_of("precision (ORACLE.PREC)", precision, PRECISIONS)
    kind, device = HALF.get(precision), torch.device(device)
    try:
        source = find(name)
        model = build(source, None)
        identity = fingerprint(model)
        if kind is not None:
            model = build(source, kind)
        model = model.to(device).eval().requires_grad_(False)
        if hasattr(model.visual, "trunk"):  # timm's: its convolutions are faster so
            model.visual.to(memory_format=torch.channels_last)
        description = describe(name, model, identity, kind or torch.float32)
        if precision == "fp32":
            model.visual = fold_batch_norms(model.visual)
    except BlackBoxError:
        raise
    except Exception as e:
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:240]}"
        if isinstance(e, pickle.UnpicklingError):  # whose text advises to run what is in the file
            why = "more than tensors and numbers are in it"
        raise BlackBoxError(
            f"{name} cannot be loaded and asked ({why}). Offline, or if it is damaged, copy its "
            f"file and name it, arch:/path/to/file, or put OpenAI's into ~/.cache/clip; or choose "
            f"another architecture, ORACLE.PREC or model."
        ) from e
    zeros = [key for key, value in model.named_parameters() if value.ndim > 1 and not value.any()]
    if zeros:
        print(f"Note: all numbers of {name} are 0 in {', '.join(zeros)}; is its file a whole copy?")
    if source.preprocess.get("resize_mode") in ("squash", "longest"):
        print(f"Note: of {name} open_clip resizes whole images; here, they are cropped to a square")
    options = ((source.config or {}).get("text_cfg") or {}).get("tokenizer_kwargs", {})
    tokenizer = open_clip.SimpleTokenizer(context_length=description.context_length, **options)
    return LoadedModel(model, tokenizer, description, precision, device)


def find(name: str) -> Source:
    """What `MODEL.BACKBONE.NAME` means."""
    if name in EMBEDDED:
        own = embedded_config(name)
        return Source(own["model_cfg"], embedded_state_dict(name), own["preprocess_cfg"])
    file = re.fullmatch(r"(.+?\.json):?(.*)", name, re.DOTALL)
    if file:
        config = json.loads(Path(file[1]).read_text(encoding="utf-8"))
        return of_file(file[1], config, Path(file[2]), {})
    if name in OPENAI:
        left = Path(os.path.expanduser("~/.cache/clip"), re.sub("[/@]", "-", name) + ".pt")
        name = f"{OPENAI[name]}:{left if left.exists() else 'openai'}"  # OpenAI's `clip` left it
    elif os.path.lexists(name):
        return of_file("", None, Path(name), {})
    arch, _, tag = name.partition(":")
    if not tag:
        raise BlackBoxError(
            f"Unknown backbone '{name}' (MODEL.BACKBONE.NAME): "
            f"{nearest(name, [*EMBEDDED, *OPENAI])} Or give architecture:tag of open_clip, "
            f"config.json:weights of an architecture of your own, or the path of a checkpoint file."
        )
    arch = arch.replace("/", "-")
    one_of("architecture of open_clip", arch, open_clip.list_models())
    config, listed = open_clip.get_model_config(arch), get_pretrained_cfg(arch, tag)
    if listed:
        check_architecture(arch, config, tag, bool(listed.get("quick_gelu")))
        tag = download_pretrained(listed)
    elif not os.path.lexists(tag):
        tags = [*open_clip.list_pretrained_tags_by_model(arch), "path/to/file"]
        one_of(f"pretrained tag of {arch} (and no such file)", tag, tags)
    return of_file(arch, config, Path(tag), listed)


def of_file(arch: str, config: Any, path: Path, listed: dict[str, Any]) -> Source:
    """Weights in a file, of which open_clip may list something."""
    state, listed = read_weights(path), listed or listed_of(arch, path)
    trained = bool(listed.get("quick_gelu")) if "hf_hub" in listed else None
    check_architecture(arch, config, str(path), OPENAI_MARKS <= state.keys() or trained)
    return Source(config, state, listed)


def check_architecture(arch: str, config: Any, weights: str, trained: bool | None) -> None:
    """Raise where it has another tokenizer than CLIP's, or another activation than its weights.

    Where nothing tells theirs (None), a line says what is assumed.
    """
    if config and {"hf_model_name", "hf_tokenizer_name"} & config["text_cfg"].keys():
        raise ValueError(f"{arch} has a tokenizer of Hugging Face's, and contexts need CLIP's")
    quick = config is None or bool(config.get("quick_gelu"))
    names = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    other = arch.removesuffix(QUICK) if quick else arch + QUICK
    if not arch or other not in open_clip.list_models():
        other = f"an architecture that has {names[1]}"
    words = (
        f"{arch or 'The format of OpenAI'} has {names[0]}. If the weights {weights} were trained "
        f"with {names[1]}, all logits are off: name {other}:{weights}"
    )
    if trained is None:
        print(f"Note: {words}")
    elif trained != quick:
        raise BlackBoxError(f"{words}. They were.")


def listed_of(arch: str, path: Path) -> dict[str, Any]:
    """What open_clip lists of the weights that a file is, by its name or its folder; of others, how
    images are prepared for all weights of the architecture that it lists, if alike.
    """
    parts = {*path.absolute().parts, *path.resolve().parts}
    for model, tag in open_clip.list_pretrained():
        listed = get_pretrained_cfg(model, tag)
        file, hub = Path(listed.get("url", "")).name, listed.get("hf_hub", "").rpartition("/")[0]
        folder = f"models--{hub.replace('/', '--')}"
        # a name that open_clip gave a release ends in a hash
        if folder in parts or (file in parts and re.fullmatch(r".*-[0-9a-f]{8}\.pth?", file)):
            return listed
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    found = [{key: get_pretrained_cfg(arch, tag).get(key) for key in keys} for tag in tags]
    return found[0] if found and all(one == found[0] for one in found) else {}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, by the names that they had before anything wrapped the model.

    Reads safetensors, what `torch.save` wrote, bare or within a checkpoint, and the TorchScript
    archives that OpenAI released; nothing that is in a file is run.
    """
    if not path.is_file():  # a pipe would be read for ever
        raise BlackBoxError(f"There is no file of weights '{path}' that can be read.")
    content = load_file(path) if path.suffix == ".safetensors" else read_pickled(path)
    for key in 2 * HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    plain = [".".join(part for part in key.split(".") if part not in WRAPPERS) for key in content]
    scale = next((name for name in plain if name.endswith("logit_scale")), "")
    ahead = scale.removesuffix("logit_scale")  # of the model, in the module that trained it
    return dict(zip([name.removeprefix(ahead) for name in plain], content.values(), strict=True))


def read_pickled(path: Path) -> Any:
    archived = zipfile.is_zipfile(path)
    if archived:
        with zipfile.ZipFile(path) as archive:
            script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if script and is_openais(path):
            return torch.jit.load(str(path), map_location="cpu").state_dict()
        if script:
            raise BlackBoxError(
                f"{path} is a TorchScript archive, which runs code when it is read, and none that "
                f"OpenAI released. If you trust whoever made it, torch.save its "
                f'torch.jit.load("{path}", "cpu").state_dict(), and name the new file.'
            )
    # what a pickle needs for numbers and arrays of NumPy: none of it runs anything
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    makers: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    cores = "numpy.core.multiarray", "numpy._core.multiarray"  # before NumPy 2, and since
    named = [(maker, f"{core}.{maker.__name__}") for core in cores for maker in makers]
    with torch.serialization.safe_globals([*named, *kinds, np.dtype, np.ndarray]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archived)


def is_openais(path: Path) -> bool:
    """Whether a file is one that OpenAI released, whose addresses have its SHA-256."""
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    models = open_clip.list_pretrained_models_by_tag("openai")
    return any(f"/{sha}/" in get_pretrained_url(name, "openai") for name in models)


def build(source: Source, kind: torch.dtype | None) -> Any:
    """The model with its weights, on the CPU, as open_clip makes it for float32 (None) or half."""
    config, state = deepcopy(source.config), source.state
    if config is None:
        model = architectures.build_model_from_openai_state_dict(dict(state), cast_dtype=kind)
        model.float()
    else:
        config["vision_cfg"]["timm_model_pretrained"] = False
        whole = "CoCa" if "multimodal_cfg" in config else "CustomTextCLIP"
        made = getattr(open_clip, whole if config.pop("custom_text", False) else "CLIP")
        model = made(**config, cast_dtype=kind)
    prepared = merge_preprocess_dict(PreprocessCfg(), source.preprocess)
    architectures.set_model_preprocess_cfg(model, prepared)
    if kind is not None and hasattr(model.visual, "trunk"):
        model.to(kind)
        for module in model.modules():  # layer norms that compute in float32 keep their weights so
            if isinstance(module, LayerNormFp32):
                module.float()
    elif kind is not None:
        architectures.convert_weights_to_lp(model, kind)
    kept = {key: value for key, value in state.items() if key not in OPENAI_MARKS}
    state = convert_state_dict(model, kept)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = architectures.convert_to_custom_text_state_dict(state)
    sizes = {key: value.shape for key, value in model.state_dict().items()}
    odd = [key for key in state if "pos" in key and state[key].shape != sizes.get(key)]
    if odd:
        print(f"Note: open_clip interpolates {odd[0]} of the weights: other sizes than theirs")
    architectures.resize_pos_embed(state, model)
    architectures.resize_text_pos_embed(state, model)
    model.load_state_dict(state)
    for key, value in model.state_dict().items():
        finite = state[key].is_floating_point() and value.sum(dtype=torch.float64).isfinite()
        if value.is_floating_point() and not finite:
            raise ValueError(f"weights are infinite or no numbers in '{key}', or are no floats")
    return model


@torch.no_grad()
def describe(
    name: str, model: Any, fingerprint: str = "", dtype: torch.dtype = torch.float32
) -> Description:
    """Sizes, normalisation and moments; a black image of this type, and an empty text, are encoded,
    which raises what it may.
    """
    visual, text = model.visual, getattr(model, "text", model)
    words, scale = text.token_embedding.weight, model.logit_scale.float().exp().item()
    if told(text, "pool_type") == "eos" and told(text, "eos_id") != EOT:
        raise ValueError(f"it ends texts with {told(text, 'eos_id')}, CLIP's tokenizer with {EOT}")
    size, resizing = image_size(visual), visual.preprocess_cfg.get("interpolation")
    image = model.encode_image(torch.zeros(1, 3, *size, device=words.device, dtype=dtype))
    empty = model.encode_text(open_clip.tokenize("", text.context_length).to(words.device))
    logit = scale * image.float() @ empty.float().T
    if logit.shape != (1, 1) or not logit.isfinite() or scale == 0:
        raise ValueError(f"an image and a text have the logit {logit.tolist()}, scaled by {scale}")
    patches = visual.conv1.weight.float() if isinstance(visual, VisionTransformer) else None
    return Description(
        name=name,
        width=words.shape[1],
        image_width=None if patches is None else len(patches),
        embed_dim=image.shape[1],
        context_length=text.context_length,
        image_size=size,
        mean=tuple(visual.image_mean),
        std=tuple(visual.image_std),
        interpolation=resizing if resizing == "bilinear" else "bicubic",
        logit_scale=scale,
        token_std=words.float().std().item(),
        patch_mean=None if patches is None else patches.mean().item(),
        patch_std=None if patches is None else patches.std().item(),
        fingerprint=fingerprint,
    )


def fingerprint(model: nn.Module) -> str:
    """What a model is: SHA-256 of its weights and of what its architecture makes of them.

    Of a model in float32 and a fixed list of facts, so that it is the same at every ORACLE.PREC and
    release of torch, timm and open_clip. Checkpoints hold it, so its arithmetic stays.
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
    found: list[list[Any]] = []
    for name, module in model.named_modules():
        own = type(module).__name__
        kind = next((base for base in NUMBERS if isinstance(module, base)), None)
        if kind is not None:
            found.append([name, kind.__name__, [getattr(module, n) for n in NUMBERS[kind]]])
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
    visual, text = model.visual, getattr(model, "text", model)
    mask, pool = getattr(text, "attn_mask", None), told(text, "pool_type")
    padded = getattr(text, "use_pad_mask", False) or getattr(text, "cls_emb", None) is not None
    moments = visual.image_mean, visual.image_std
    pools = getattr(visual, "pool_type", None), getattr(visual, "attn_pool_type", None) or None
    trunk, timm, seen = getattr(visual, "trunk", None), [], None
    if trunk is not None:
        timm_pool = getattr(trunk, "global_pool", None)
        timm_name = (getattr(trunk, "pretrained_cfg", None) or {}).get("architecture")
        timm = [timm_name, timm_pool if isinstance(timm_pool, str) else None]
    if mask is not None:
        seen = hashlib.sha256(mask.detach().cpu().float().numpy().tobytes()).hexdigest()
    return {
        "image size": list(image_size(visual)),
        "normalisation": [[round(float(x), 4) for x in part] for part in moments],
        "image pool": [*pools, bool(getattr(visual, "final_ln_after_pool", False))],
        "timm": timm,
        "context length": text.context_length,
        "text pool": pool,
        "end of text": told(text, "eos_id") if pool == "eos" else None,
        "padding": text.pad_id if padded else None,
        "class token sees padding": bool(getattr(text, "correct_cls_mask", False)),
        "text mask": seen,
    }
