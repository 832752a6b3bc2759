"""From `MODEL.BACKBONE.NAME` to a frozen model that has been checked and described."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.model import get_cast_dtype

from ..oracle.interface import Description
from ..run.errors import BlackBoxError, one_of
from .describe import check_model, describe, image_size, resized_otherwise
from .folding import fold_batch_norms
from .identity import fingerprint, identify
from .sources import find
from .weights import check_finite, reason, zero_matrices

PRECISIONS = ("fp32", "fp16", "bf16", "amp")


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
    model: Any = source.build(weights)
    check_finite(name, model)
    found = identify(
        source.file,
        source.way,
        lambda: fingerprint(model if weights == "fp32" else source.build("fp32")),
    )
    device = torch.device(device)
    model = model.to(device).eval().requires_grad_(False)
    tokenizer = get_tokenizer(source.arch, model)
    if hasattr(model.visual, "trunk"):  # timm's: its convolutions are faster so
        model.visual.to(memory_format=torch.channels_last)
    check_model(name, model, tokenizer, get_cast_dtype(precision) or torch.float32)
    if precision == "fp32":
        model.visual = fold_batch_norms(model.visual, *image_size(model.visual))
    if precision == "fp16" and device.type == "cpu":
        print("Note: fp16 takes a CPU longer than fp32, up to ten times as long")
    for note in source.notes + resized_otherwise(name, model.visual) + zero_matrices(name, model):
        print(f"Note: {note}")
    return LoadedModel(model, tokenizer, describe(name, model, found), precision, device)


def get_tokenizer(arch: str | None, model: Any) -> Any:
    """That of an architecture of open_clip; CLIP's own for a model that was not named by one."""
    if arch is None:
        return open_clip.SimpleTokenizer(context_length=model.context_length)
    try:
        return open_clip.get_tokenizer(arch)
    except Exception as e:
        raise BlackBoxError(f"open_clip has no tokenizer for {arch} ({reason(e)}).") from e
