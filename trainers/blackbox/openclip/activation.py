"""GELU or QuickGELU: no tensor tells them apart, and with the wrong one all logits are off.

What is known: the activation of open_clip's architectures, and that of the weights that it lists
(`arch:tag`), which a file is when its name, or its folder in the Hugging Face cache, says so. Files
in OpenAI's format have QuickGELU. A contradiction is an error; where nothing is known, a line says
what was assumed.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg

from ..run.errors import BlackBoxError, one_of
from .weights import Weights

QUICK = "-quickgelu"
HASHED = re.compile(r".*-[0-9a-f]{8}\.pth?")  # the end of a name that open_clip gave a release
NAMES = {False: "GELU", True: "QuickGELU"}


def quick(arch: str) -> bool:
    return bool(open_clip.get_model_config(arch).get("quick_gelu", False))


def twin(arch: str) -> str | None:
    """The same architecture with the other activation, where open_clip has one."""
    other = arch.removesuffix(QUICK) if arch.endswith(QUICK) else arch + QUICK
    return other if other in open_clip.list_models() and quick(other) != quick(arch) else None


def check_tag(arch: str, tag: str) -> None:
    """Raise a BlackBoxError unless open_clip lists these weights, with the same activation."""
    listed, other = get_pretrained_cfg(arch, tag), twin(arch)
    if not listed and other is not None and get_pretrained_cfg(other, tag):
        listed = get_pretrained_cfg(other, tag)
    if not listed:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        if not tags:
            raise BlackBoxError(
                f"open_clip lists no weights of {arch}, and there is no file '{tag}'. Give the "
                f"path of a checkpoint: MODEL.BACKBONE.NAME {arch}:/path/to/file."
            )
        one_of(f"pretrained tag of {arch} (and no such file)", tag, tags)
    trained = bool(listed.get("quick_gelu", False))
    if trained != quick(arch):
        raise BlackBoxError(contradiction(arch, f"The weights '{tag}'", trained, tag))


def check_weights(arch: str, path: Path, weights: Weights, own: Path | None = None) -> list[str]:
    """The same for a file; returns a line on what was assumed where nothing is known about it.

    Args:
        own: the file of an architecture of the user's.

    Raises:
        BlackBoxError: the file's activation is known and is not the architecture's.
    """
    release = released(path)
    if not weights.openai and release is None:
        other = twin(arch)
        if other is None and own and "quick_gelu" not in open_clip.get_model_config(arch):
            untold = (
                f"{own} does not tell the activation, and GELU is assumed. If the weights were "
                f"trained with QuickGELU, as OpenAI's were, the logits are off: put "
                f'"quick_gelu": true into it'
            )
            return [untold]
        if other is None:
            return []
        mine, its = NAMES[quick(arch)], NAMES[quick(other)]
        note = (
            f"{arch} has {mine}, and {path} does not tell what its weights were trained with. If "
            f"it was {its}{usual(quick(other))}, the logits are off: name {other}:{path}"
        )
        return [note]
    trained = weights.openai or bool(release and release.get("quick_gelu", False))
    if trained != quick(arch):
        raise BlackBoxError(contradiction(arch, f"The weights in {path}", trained, str(path)))
    return []


def check_bare(path: Path, weights: Weights) -> list[str]:
    """The same for a file that is named without an architecture, and so is taken for OpenAI's."""
    release = released(path)
    if weights.openai:
        return []
    if release is not None and not release.get("quick_gelu", False):
        raise BlackBoxError(
            f"{path} is open_clip's by its name, with GELU, and a file without an architecture is "
            f"taken for OpenAI's, with QuickGELU. Name the architecture: arch:{path}."
        )
    if release is not None:
        return []
    note = (
        f"{path} is taken for OpenAI's (QuickGELU, heads of 64), which it does not tell. If "
        f"open_clip trained it, the logits may be off: name its architecture, arch:{path}"
    )
    return [note]


def contradiction(arch: str, what: str, trained: bool, weights: str) -> str:
    other = twin(arch)
    cure = f"Name {other}:{weights}." if other else "open_clip has no such architecture with it."
    return (
        f"{what} were trained with {NAMES[trained]}, and {arch} has {NAMES[quick(arch)]}: all "
        f"logits would be off. {cure}"
    )


def usual(is_quick: bool) -> str:
    return ", as OpenAI's, MetaCLIP's and DFN's" if is_quick else ""


@cache
def releases() -> dict[str, dict[str, Any]]:
    """What open_clip knows of the weights that it lists, by file name or by folder of the cache."""
    found = {}
    for model, tag in open_clip.list_pretrained():
        listed = get_pretrained_cfg(model, tag)
        name = Path(listed.get("url", "")).name
        if HASHED.fullmatch(name):
            found[name] = listed
        if listed.get("hf_hub"):
            found[f"models--{listed['hf_hub'].rpartition('/')[0].replace('/', '--')}"] = listed
    return found


def released(path: Path) -> dict[str, Any] | None:
    """The listed weights that a file is, by its name or its folder; None where that is unknown."""
    parts = path.absolute().parts[::-1] + Path(os.path.realpath(path)).parts[::-1]
    return next((releases()[part] for part in parts if part in releases()), None)
