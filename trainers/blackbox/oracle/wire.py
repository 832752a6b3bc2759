"""The wire format of our server and client: tensors, what is said beside them, and content names.

A body is a safetensors file, of which one entry of the metadata is JSON: no pickle is read on
either side. Its digest goes with it (RFC 9530), so that a damaged body is known as such.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import safetensors.torch
import torch

from ..errors import BlackBoxError
from ..files import digest
from .interface import Description, Images, few_at_a_time

MEDIA = "application/vnd.safetensors"
DIGEST = "Content-Digest"
REQUEST = "Idempotency-Key"
DAMAGED = "damaged"  # code of our server's error where a body's digest is not the body's
ABOUT = "about"
HEADER_BYTES = 8  # a safetensors file begins with the length of its header


def pack(tensors: Mapping[str, torch.Tensor], about: Any = None) -> bytes:
    """A body of named tensors, and of what can be said in JSON about them."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(held, {ABOUT: json.dumps(about)})


def unpack(body: bytes) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors of a body, and what is said about them.

    Raises:
        BlackBoxError: it is not one of `pack`.
    """
    try:
        tensors = safetensors.torch.load(body)
        length = int.from_bytes(body[:HEADER_BYTES], "little")
        header = json.loads(body[HEADER_BYTES : HEADER_BYTES + length])
        about = json.loads(header.get("__metadata__", {}).get(ABOUT, "null"))
    # safetensors raises an exception of its own, and KeyError for a type that torch has not
    except Exception as e:
        raise BlackBoxError(
            f"The body is no safetensors file with JSON beside it ({type(e).__name__})."
        ) from e
    return tensors, about


def digest_of(body: bytes) -> str:
    """The value of the header `Content-Digest`."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def content_ids(images: torch.Tensor) -> list[str]:
    """SHA-256 of every image `[B, 3, H, W]`, its type and its size, in hexadecimal digits."""
    return [digest(image) for image in images]


class Contents(Images):
    """A batch with the names of its contents.

    Attributes:
        pixels: 8-bit pictures, or normalised pixels that are not made of such, `[B, 3, H, W]`.
    """

    def __init__(self, pixels: torch.Tensor) -> None:
        super().__init__(len(pixels))
        self.pixels = pixels

    @cached_property
    def ids(self) -> list[str]:
        return content_ids(self.pixels)


def as_8bit(pixels: torch.Tensor, description: Description) -> torch.Tensor | None:
    """The pictures `[B, 3, H, W]` of 8 bits that these normalised pixels were made of.

    None where there are none from which `normalised` makes the same pixels, bit for bit.
    """
    pictures = []
    for part in few_at_a_time(pixels.cpu()):
        pictures.append(to_8bit(part, description))
        if not torch.equal(normalised(pictures[-1], description), part):
            return None
    return torch.cat(pictures)


def to_8bit(pixels: torch.Tensor, description: Description) -> torch.Tensor:
    """Normalised pixels `[..., 3, H, W]` as 8-bit values, on the CPU.

    Pictures that came out of files are so again, without a loss. What a method changed is rounded
    to the nearest of 256 levels, and clamped: no file that a service takes holds more. BlackVIP's
    changes of c = 0.01 in a decoder's weight survive that. BAR's shift, of length 0.01 along a unit
    vector of all the numbers of its frame, does not: of 37,620 border values of a picture of
    224 x 224, 37 jump by a level and the others stay, so that its estimate becomes one of rounding.
    A larger `TRAINER.BAR.EPS` reaches further.

    Raises:
        BlackBoxError: a pixel is not finite.
    """
    mean, std = moments(description)
    values = (pixels.detach().cpu() * std + mean) * 255
    if not values.isfinite().all():
        raise BlackBoxError(
            "A changed picture has pixels that are not finite. Lower the step size of the method."
        )
    return values.round().clamp(0, 255).to(torch.uint8).contiguous()


def normalised(pictures: torch.Tensor, description: Description) -> torch.Tensor:
    """Pixels as torchvision's `ToTensor` and `Normalize` make them of 8-bit pictures."""
    mean, std = moments(description)
    return pictures.float().div(255).sub(mean).div(std)


def moments(description: Description) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = torch.tensor([description.mean, description.std]).view(2, 3, 1, 1)
    return mean, std


def as_json(description: Description) -> dict[str, Any]:
    return asdict(description)


def described(about: Mapping[str, Any]) -> Description:
    """The description that `as_json` wrote; TypeError and others where it is none."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
    return Description(**given)
