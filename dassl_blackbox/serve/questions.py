"""From a body to what it asks of the model, with everything in it looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..trainers.blackbox.errors import BlackBoxError
from ..trainers.blackbox.oracle.interface import Description
from ..trainers.blackbox.oracle.prompt import Prompt
from ..trainers.blackbox.oracle.wire import HEADER_BYTES, unpack
from .errors import Refusal
from .limits import Limits

Name = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
HEADER = 2**23  # bytes of a body's JSON, which takes 30 times as many when it is read
PARTS = ("contexts", "image_tokens", "pictures")


class TextList(BaseModel):
    """A list of texts: the template with a name in its slot."""

    model_config = ConfigDict(extra="forbid")
    names: list[str] = Field(min_length=1)
    template: str = "{}."


class Asked(BaseModel):
    """What is said beside the tensors of a question."""

    model_config = ConfigDict(extra="forbid", strict=True)
    images: list[Name] = []
    classes: Name | None = None
    texts: Name | None = None


def wrong(message: str) -> Refusal:
    return Refusal(422, "invalid", message)


@contextmanager
def refused() -> Iterator[None]:
    """What the model's side cannot take becomes a refusal of what was sent."""
    try:
        yield
    except BlackBoxError as e:
        raise wrong(str(e)) from e


def read_tensors(body: bytes) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors of a body, and what is said about them.

    Raises:
        Refusal: 422.
    """
    length = int.from_bytes(body[:HEADER_BYTES], "little")
    if HEADER < length <= len(body):
        raise wrong(f"The header of the body has {length:,} bytes; {HEADER:,} may be.")
    with refused():
        return unpack(body)


def read_question(body: bytes, description: Description, limits: Limits) -> tuple[Asked, Prompt]:
    """The names and the prompt of a question, which lacks its further texts yet.

    Raises:
        Refusal: 422; a tensor is of another name, type or shape than the model takes, not finite,
            or there are too many of something.
    """
    tensors, about = read_tensors(body)
    try:
        asked = Asked.model_validate(about or {})
    except (ValidationError, RecursionError) as e:
        raise wrong(f"What is said beside the tensors is not as expected: {brief(e)}") from e
    for name in tensors:
        if name not in PARTS:
            raise wrong(f"There is a tensor '{name[:40]}'; {', '.join(PARTS)} are expected.")
    if len(asked.images) > limits.images:
        raise wrong(f"{len(asked.images):,} images are asked about; {limits.images:,} may be.")
    height, width = description.image_size
    shapes: dict[str, tuple[str, Sequence[int]]] = {
        "contexts": (f"[P, n, {description.width}]", (description.width,)),
        "image_tokens": (f"[P, n, {description.image_width}]", (description.image_width or 0,)),
        "pictures": (f"[P, B, 3, {height}, {width}]", (3, height, width)),
    }
    for name, tensor in tensors.items():
        words, last = shapes[name]
        fits = tensor.ndim == 2 + len(last) and tuple(tensor.shape[2:]) == tuple(last)
        if not fits or tensor.dtype != torch.float32 or not len(tensor):
            raise wrong(
                f"'{name}' is {tensor.dtype} {list(tensor.shape)}; float32 {words} is expected."
            )
        if len(tensor) > limits.candidates:
            raise wrong(f"{len(tensor):,} candidates were sent; {limits.candidates:,} may be.")
        if not torch.isfinite(tensor).all():
            raise wrong(f"'{name}' has numbers that are not finite.")
    check_sizes(tensors, asked, description)
    try:
        return asked, Prompt(**tensors)
    except ValueError as e:
        raise wrong(str(e)) from e


def check_sizes(
    tensors: Mapping[str, torch.Tensor], asked: Asked, description: Description
) -> None:
    """Refuse what goes together in no request, and lengths that no tower takes."""
    if "pictures" in tensors:
        if asked.images or "image_tokens" in tensors:
            raise wrong("Changed pictures go with neither images nor image tokens.")
        if not tensors["pictures"].shape[1]:
            raise wrong("There is no picture.")
    for name in ("contexts", "image_tokens"):
        if name in tensors and tensors[name].shape[1] > max(description.context_length, 1024):
            raise wrong(f"'{name}' has too many tokens: {tensors[name].shape[1]:,}.")
    if "image_tokens" in tensors and description.image_width is None:
        raise wrong("The image tower of this model takes no image tokens.")


def brief(error: Exception) -> str:
    """The first complaint of pydantic, in a line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))[:60]
        return f"{place}: {first['msg']}"[:200]
    return type(error).__name__
