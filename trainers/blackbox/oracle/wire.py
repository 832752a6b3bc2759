"""What both sides of HTTP share: bodies of tensors, names of contents, 8-bit pictures, a disk."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import diskcache
import safetensors.torch
import torch

from ..errors import BlackBoxError
from ..files import digest
from .interface import Description, Images, few_at_a_time
from .prompt import Texts

MEDIA = "application/vnd.safetensors"
DIGEST, REQUEST = "Content-Digest", "Idempotency-Key"  # of a body (RFC 9530), of a request
DAMAGED = "damaged"  # code of our server's error where a body's digest is not the body's
HEADER_BYTES = 8  # a safetensors file begins with the length of its header
MARK = 16  # bytes of the digest ahead of a value on disk
WORDS = re.compile(r"(?s)(?=.*[^\s_])[^\ud800-\udfff]*")


def pack(tensors: Mapping[str, torch.Tensor], about: Any = None) -> bytes:
    """A body, a safetensors file: named tensors, and what can be said in JSON about them."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(held, {"about": json.dumps(about)})


def unpack(body: bytes) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors of a body, and what is said about them; BlackBoxError where it is none."""
    try:
        tensors = safetensors.torch.load(body)
        length = int.from_bytes(body[:HEADER_BYTES], "little")
        header = json.loads(body[HEADER_BYTES : HEADER_BYTES + length])
        return tensors, json.loads(header.get("__metadata__", {}).get("about", "null"))
    except Exception as e:  # safetensors' own, or KeyError for a type that torch has not
        raise BlackBoxError(f"A body is no safetensors file with JSON: {type(e).__name__}.") from e


def digest_of(body: bytes | bytearray) -> str:
    """The value of the header `Content-Digest`."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


class Contents(Images):
    """A batch `[B, 3, H, W]` of 8-bit pictures or normalised pixels, named by content."""

    def __init__(self, pixels: torch.Tensor) -> None:
        super().__init__(len(pixels))
        self.pixels = pixels

    @cached_property
    def ids(self) -> list[str]:
        return [digest(image) for image in self.pixels]


def normalised(pictures: torch.Tensor, description: Description) -> torch.Tensor:
    """Pixels as torchvision's `ToTensor` and `Normalize` make them of 8-bit pictures."""
    mean, std = torch.tensor([description.mean, description.std]).view(2, 3, 1, 1)
    return pictures.float().div(255).sub(mean).div(std)


def to_8bit(pixels: torch.Tensor, description: Description) -> torch.Tensor:
    """Normalised pixels `[B, 3, H, W]` as 8-bit values: changes below half a level vanish."""
    mean, std = torch.tensor([description.mean, description.std]).view(2, 3, 1, 1)
    if not pixels.isfinite().all():
        raise BlackBoxError("A changed picture has pixels that are not finite: lower OPTIM.LR.")
    parts = few_at_a_time(pixels.detach().cpu())
    values = (((part * std + mean) * 255).round().clamp(0, 255) for part in parts)
    return torch.cat([levels.to(torch.uint8) for levels in values])


def as_8bit(pixels: torch.Tensor, description: Description) -> torch.Tensor:
    """The 8-bit pictures `[B, 3, H, W]` that `normalised` makes these pixels of, or the pixels."""
    pictures, pixels = to_8bit(pixels, description), pixels.cpu()
    parts = zip(few_at_a_time(pictures), few_at_a_time(pixels), strict=True)
    same = all(torch.equal(normalised(part, description), given) for part, given in parts)
    return pictures if same else pixels


def whole_texts(*lists: Texts) -> list[str]:
    """The text of every name: the template with the name in the slot, `_` read as a space."""
    texts = list[str]()
    for names, template in ((each.names, each.template) for each in lists):
        odd = [name for name in names if not (isinstance(name, str) and WORDS.fullmatch(name))]
        if odd or not names or "{}" not in template:
            told = f"a slot {{}}: there are {odd[:1] or list(names)[:1]!a} and {template!a}"
            raise BlackBoxError(f"Class names are words in UTF-8, a template has {told}.")
        texts += [template.replace("{}", name.replace("_", " ")) for name in names]
    return texts


class Plain(diskcache.Disk):
    """Gives bytes alone, as they were put in: a pickle is never loaded, what is damaged is b""."""

    def store(self, value: bytes, read: bool, key: Any = None) -> tuple[Any, ...]:
        return super().store(hashlib.sha256(value).digest()[:MARK] + value, read, key)

    def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> bytes:
        raw = mode in (diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY)
        found = super().fetch(mode, filename, value, read) if raw else b""
        held = found[MARK:] if isinstance(found, bytes) else b""
        return held if hashlib.sha256(held).digest()[:MARK] + held == found else b""


def open_cache(folder: Path, limit: int = 2**32) -> Any:
    """A `diskcache.Cache` for its owner alone; beyond the limit (bytes), the oldest goes first."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return diskcache.Cache(str(folder), disk=Plain, size_limit=limit)
