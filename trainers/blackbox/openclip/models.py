"""A frozen model that has been checked and described, from `MODEL.BACKBONE.NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.model import get_cast_dtype

from ..oracle.interface import Description
from ..run.errors import one_of
from .convolutions import fold_batch_norms
from .describe import describe, doubts, fingerprint, image_size
from .sources import find
from .weights import check_read

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
