"""Files of weights: read without running what is in them, and refused where they are damaged."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import stat
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip.pretrained import get_pretrained_url, list_pretrained_models_by_tag
from torch import nn

from ..run.errors import BlackBoxError, first_line

# numbers that OpenAI's archives hold beside the weights
OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})
TEXT_LENGTH = 240  # of an exception that is quoted
HOLDERS = ("state_dict", "model", "model_state_dict")  # under which training code saves the weights
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class Weights(NamedTuple):
    """What a file holds."""

    state: dict[str, torch.Tensor]
    script: bool  # whether it is a TorchScript archive
    direct: bool  # whether open_clip finds this state in the file by itself

    @property
    def openai(self) -> bool:
        """Whether it is in the format that OpenAI released, and open_clip writes to nobody."""
        return self.script or OPENAI_MARKS <= self.state.keys()


def reason(error: BaseException) -> str:
    """What an exception says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:TEXT_LENGTH] or type(error).__name__


def is_there(path: str | Path) -> bool:
    """Whether something has this path, be it a file or not."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):  # ValueError: a null byte
        return False
    return True


def check_file(path: str | Path) -> None:
    """Raise a BlackBoxError unless the path is a regular file that may be read and is not empty."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise BlackBoxError(f"{path} is {kind}; a file of weights was expected.")
        if not found.st_size:
            raise BlackBoxError(f"{path} is empty; a file of weights was expected. Copy it again.")
        with open(path, "rb"):
            pass
    except OSError as e:
        raise BlackBoxError(f"{path} cannot be read ({e.strerror or first_line(e)}).") from e


def read_weights(path: str | Path) -> Weights:
    """The tensors of a file, on the CPU, as they are stored; where the format allows, mapped.

    Reads safetensors, what `torch.save` wrote, bare or within a checkpoint, and the TorchScript
    archives that OpenAI released. What wraps a model in training leaves names as they were before.

    Raises:
        BlackBoxError: no such file, or one that is damaged or holds something else.
    """
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that it will drop TorchScript
            content, script = read(path)
    except BlackBoxError:
        raise
    except pickle.UnpicklingError as e:  # whose text advises to run what is in the file
        raise BlackBoxError(
            f"{path} is not a file of weights that can be read: it is damaged, or holds something "
            f"else than tensors and numbers. Copy it again, or save its state dict alone."
        ) from e
    except Exception as e:
        raise BlackBoxError(
            f"{path} is not a file of weights that can be read ({type(e).__name__}: {reason(e)}). "
            f"It may be damaged: copy it again."
        ) from e
    found = content
    while isinstance(found, Mapping):
        inner = next((found[key] for key in HOLDERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not found or not all(map(is_tensor, found.items())):
        raise BlackBoxError(
            f"{path} holds no state dict, that is tensors by name, but {describe(found)}."
        )
    state = unwrapped(found)
    direct = not script and (found is content or found is content.get("state_dict"))
    return Weights(state, script, direct and state.keys() == found.keys())


def unwrapped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names without those of wrappers, and without what stands ahead of all of them."""
    names = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in state]
    scale = next((name for name in names if name.endswith("logit_scale")), "")
    ahead = scale.removesuffix("logit_scale")
    if all(name.startswith(ahead) for name in names):
        names = [name.removeprefix(ahead) for name in names]
    named = dict(zip(names, state.values(), strict=True))
    return named if len(named) == len(state) else dict(state)


def read(path: str | Path) -> tuple[Any, bool]:
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path), False
    if is_script(path):
        if not is_openais(path):
            new = f"{path}.weights"
            state = f'torch.jit.load({json.dumps(str(path))}, "cpu").state_dict()'
            code = f"import torch; torch.save({state}, {json.dumps(new)})"
            raise BlackBoxError(
                f"{path} is a TorchScript archive, which runs code of its own when it is read, and "
                f"none that OpenAI released. If you trust whoever made it, convert it: python -c "
                f"{shlex.quote(code)}, and name {new}."
            )
        return torch.jit.load(str(path), map_location="cpu").state_dict(), True
    mapped = zipfile.is_zipfile(path)
    with torch.serialization.safe_globals(numpy_values()):
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


def is_openais(path: str | Path) -> bool:
    """Whether a file is one that OpenAI released, whose addresses have its SHA-256."""
    sha = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(2**20):
            sha.update(part)
    models = list_pretrained_models_by_tag("openai")
    return any(f"/{sha.hexdigest()}/" in get_pretrained_url(name, "openai") for name in models)


def is_script(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, by the record that torch tells it by."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def is_tensor(item: tuple[object, object]) -> bool:
    name, tensor = item
    return isinstance(name, str) and isinstance(tensor, torch.Tensor) and not tensor.is_sparse


def describe(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return "an empty one" if not content else f"a dict with {next(iter(content))!r:.40}"


def named(keys: Sequence[str]) -> str:
    """The first of the names of weights, and how many there are besides."""
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"'{keys[0]}'{more}"


def check_finite(name: str, model: nn.Module) -> None:
    """Raise a BlackBoxError where a weight is infinite or no number, or a variance below 0."""
    tensors = {k: v for k, v in model.state_dict().items() if v.is_floating_point() and v.numel()}
    # a sum is quicker than a test of every number, and finite only if they all are
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors.values()])
    suspects = [k for k, fine in zip(tensors, sums.isfinite().tolist(), strict=True) if not fine]
    bad = [k for k in suspects if not tensors[k].isfinite().all()]
    if bad:
        raise BlackBoxError(
            f"The weights of {name} are infinite or no numbers in {named(bad)}. The file is "
            f"damaged, or ORACLE.PREC too narrow for it: get it anew, or try ORACLE.PREC fp32."
        )
    for key, tensor in tensors.items():
        if key.endswith(".running_var") and tensor.min() < 0:
            raise BlackBoxError(
                f"The weights of {name} have variances below 0 in '{key}': the file is damaged. "
                f"Copy it again."
            )


def zero_matrices(name: str, model: nn.Module) -> list[str]:
    """A note, if there are matrices of zeros alone: a copy that stopped midway can leave such."""
    matrices = {k: p for k, p in model.named_parameters() if p.ndim > 1 and p.numel()}
    # its first row, since most have a number there: all of a large model take a while
    found = [k for k, p in matrices.items() if not p[0].any() and not p.any()]
    if not found:
        return []
    return [f"in {name} every number of {named(found)} is 0; is the file a whole copy?"]
