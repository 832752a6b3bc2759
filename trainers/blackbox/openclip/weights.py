"""Files of weights: read without running what is in them, and refused where they are damaged."""

from __future__ import annotations

import hashlib
import mmap
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip.pretrained import get_pretrained_url, list_pretrained_models_by_tag
from safetensors.torch import load_file
from torch import nn

from ..errors import BlackBoxError

# numbers that OpenAI's archives hold beside the weights
OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})
HOLDERS = ("state_dict", "model", "model_state_dict")  # under which training code saves the weights
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class Weights(NamedTuple):
    """What a file holds."""

    state: dict[str, torch.Tensor]
    openai: bool = False  # whether it is in the format that OpenAI released
    direct: bool = True  # whether open_clip finds this state in the file by itself


def reason(error: BaseException) -> str:
    """What an exception says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:240] or type(error).__name__


def read_weights(path: Path) -> Weights:
    """The tensors of a file, on the CPU, as they are stored; where the format allows, mapped.

    Reads safetensors, what `torch.save` wrote, bare or within a checkpoint, and the TorchScript
    archives that OpenAI released. What wraps a model in training leaves names as they were before.

    Raises:
        BlackBoxError: no such file, or one that is damaged or holds something else.
    """
    if not os.path.isfile(path):  # a pipe would be read for ever
        raise BlackBoxError(f"There is no file of weights '{path}' that can be read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that it will drop TorchScript
            content, script = read(path)
        found = held(content)
        names = unwrapped([*found])
        state = {k: v for k, v in zip(names, found.values(), strict=True) if k not in OPENAI_MARKS}
    except BlackBoxError:
        raise
    except Exception as e:
        # an UnpicklingError's text advises to run what is in the file
        why = "its format" if isinstance(e, pickle.UnpicklingError) else reason(e)
        raise BlackBoxError(
            f"{path} cannot be read as a state dict, alone or under {' or '.join(HOLDERS)} "
            f"({type(e).__name__}: {why}). It is damaged, or holds more than tensors and numbers: "
            f"copy it again, or save its state dict alone."
        ) from e
    alone = found is content or found is content.get("state_dict")
    return Weights(
        state,
        openai=script or OPENAI_MARKS <= found.keys(),
        direct=alone and not script and state.keys() == found.keys(),
    )


def read(path: Path) -> tuple[Any, bool]:
    """What a file holds, and whether it is TorchScript."""
    if path.name.endswith(".safetensors"):
        return load_file(path), False
    if is_script(path):
        if is_openais(path):
            return torch.jit.load(str(path), map_location="cpu").state_dict(), True
        raise BlackBoxError(
            f"{path} is a TorchScript archive, which runs code of its own when it is read, and "
            f"none that OpenAI released. If you trust whoever made it, give torch.save its "
            f'torch.jit.load("{path}", "cpu").state_dict(), and name the new file.'
        )
    with torch.serialization.safe_globals(numpy_values()):
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), False


def numpy_values() -> list[Any]:
    """What a pickle needs for numbers and arrays of NumPy: none of it runs anything."""
    parts = {"scalar": np.float64(0), "_reconstruct": np.zeros(0)}
    makers = [
        (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for name, value in parts.items()
        for core in ("core", "_core")  # before NumPy 2, and since
    ]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    return [*makers, *kinds, np.dtype, np.ndarray]


def is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive, by the record that torch tells it by."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def is_openais(path: Path) -> bool:
    """Whether a file is one that OpenAI released, whose addresses have its SHA-256."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        sha = hashlib.sha256(content).hexdigest()
    models = list_pretrained_models_by_tag("openai")
    return any(f"/{sha}/" in get_pretrained_url(name, "openai") for name in models)


def held(content: Any) -> Any:
    """What a checkpoint holds under the innermost of HOLDERS; without one, the content itself."""
    for key in HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return held(content[key])
    return content


def unwrapped(found: list[str]) -> list[str]:
    """The names without those of wrappers, and without what stands ahead of all of them."""
    names = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in found]
    scale = next((name for name in names if name.endswith("logit_scale")), "")
    ahead = scale.removesuffix("logit_scale")
    if all(name.startswith(ahead) for name in names):
        names = [name.removeprefix(ahead) for name in names]
    return names if len({*names}) == len(names) else found


def check_read(name: str, model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Raise a BlackBoxError where a weight is no finite number, or lost a part of it on its way.

    Args:
        state: what was read from a file into the model.
    """
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if not state.get(key, tensor).is_floating_point():
            raise BlackBoxError(
                f"The weights of {name} are of type {state[key].dtype} in '{key}', and floats were "
                f"expected: the file is damaged, or is no model's."
            )
        # a sum is quicker than a test of every number, and finite only if they all are
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise BlackBoxError(
                f"The weights of {name} are infinite or no numbers in '{key}'. The file is "
                f"damaged, or ORACLE.PREC too narrow for it: get it anew, or try ORACLE.PREC fp32."
            )
