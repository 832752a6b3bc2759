"""What a request may be: refusals, bounds, bodies, and questions with everything looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import ClientDisconnect, Request

from ..trainers.blackbox.errors import BlackBoxError
from ..trainers.blackbox.oracle import Description, Prompt
from ..trainers.blackbox.oracle.wire import DAMAGED, DIGEST, HEADER_BYTES, digest_of, unpack

LONGEST = 800  # characters of a message, which may quote what was sent
TOGETHER = 4  # bodies of the largest size that are held at once
HEADER = 2**23  # bytes of a body's JSON, which takes 30 times as many when it is read
PARTS = ("contexts", "image_tokens", "pictures")
Name = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Refusal(Exception):
    """Becomes an answer with this status.

    Args:
        status: of HTTP.
        code: a word for programs.
        message: a sentence for people; it is put on one line.
        headers: of the answer.
        more: further entries of its body.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        message = " ".join(message.split())
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 1]}…"
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers, self.more = dict(headers or {}), more

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message}, **self.more}


def wrong(message: str) -> Refusal:
    return Refusal(422, "invalid", message)


def busy(message: str) -> Refusal:
    return Refusal(503, "busy", message, {"Retry-After": "1"})


def unknown(**names: Sequence[str]) -> Refusal:
    """404: what a request names must be sent first."""
    words = "Some of what is named is not known: send it, then ask again."
    return Refusal(404, "unknown", words, missing=names)


@contextmanager
def refused() -> Iterator[None]:
    """What the model's side cannot take becomes a refusal of what was sent."""
    try:
        yield
    except BlackBoxError as e:
        raise wrong(str(e)) from e


@dataclass(frozen=True)
class Limits:
    """Bounds of one request.

    Attributes:
        body: bytes of a body, and of the numbers of an answer.
        seconds: within which a body must have come.
        images: of one request.
        candidates: P.
        texts: of one list.
        characters: of one text, its name in every slot of its template.
        all_characters: of one list.
        pixels: of one picture that is sent as PNG or JPEG.
        decoded: pixels of one picture times its scans, each of which decodes all of it.
        encoded: candidates x texts, each of which goes through the text tower, and candidates x
            images, where each goes through the image tower.
        waiting: requests of one account that wait; further ones are told to come again.
    """

    body: int = 2**28
    seconds: float = 60.0
    images: int = 2**16
    candidates: int = 4096
    texts: int = 2**15
    characters: int = 1000
    all_characters: int = 2**21
    pixels: int = 2**25
    decoded: int = 2**27
    encoded: int = 2**20
    waiting: int = 128


class Bodies:
    """Reads bodies; all that is held of them, and of answers on their way, is within a bound.

    Bytes count as they come, not as they are announced. Whatever the others hold, an account may
    hold its share: the room for `TOGETHER` of the largest bodies, divided by the accounts.
    """

    def __init__(self, limits: Limits, accounts: int) -> None:
        self.limits, self.held = limits, Counter[str]()
        self.room = TOGETHER * limits.body
        self.share = self.room // max(1, accounts)

    def hold(self, owner: str, size: int) -> None:
        """Count bytes of an account; a negative number gives them back.

        Raises:
            Refusal: 503, with nothing counted.
        """
        more = self.held[owner] + size > self.share and self.held.total() + size > self.room
        if size > 0 and more:
            raise busy("Too much is on its way at once.")
        self.held[owner] += size

    @asynccontextmanager
    async def of(self, request: Request, owner: str) -> AsyncIterator[bytes]:
        """The body of a request, which is counted as held until the context is left.

        Raises:
            Refusal: 411 without a length, 413 above the limit, 408 where it does not come, 400
                where it is not what its digest says, 503 while others hold all the room. The
                connection ends with it, since the rest of the body may still come.
        """
        body = bytearray()
        try:
            try:
                await self.read(request, owner, body)
            except Refusal as refusal:
                refusal.headers["Connection"] = "close"
                raise
            yield bytes(body)
        finally:
            self.hold(owner, -len(body))

    async def read(self, request: Request, owner: str, body: bytearray) -> None:
        declared = request.headers.get("content-length", "")
        if not declared.isascii() or not declared.isdigit():
            raise Refusal(411, "length_required", "A Content-Length is needed.")
        length = int(declared[:20])
        if length > self.limits.body:
            words = f"A body may have {self.limits.body:,} bytes, not {length:,}."
            raise Refusal(413, "too_large", words)
        try:
            with anyio.fail_after(self.limits.seconds):
                async for chunk in request.stream():
                    self.hold(owner, len(chunk))
                    body += chunk
                    if len(body) > length:
                        break
        except TimeoutError as e:
            raise Refusal(408, "too_slow", "The body did not come in time.") from e
        except ClientDisconnect as e:
            raise Refusal(400, DAMAGED, "The client left before the body had come.") from e
        if len(body) != length:
            raise Refusal(400, DAMAGED, "The body is longer or shorter than it says.")
        declared = request.headers.get(DIGEST, "")
        if declared and declared != digest_of(body):
            raise Refusal(400, DAMAGED, f"The body is not what its {DIGEST} says.")


# ---------------------------------------------------------------------- what is in a body


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


def read_texts(body: bytes, limits: Limits) -> TextList:
    """A list of texts that is within the bounds.

    Raises:
        Refusal: 422.
    """
    try:
        given = TextList.model_validate_json(body, strict=True)
    except ValidationError as e:
        raise wrong(f"A list of texts is expected: {brief(e)}") from e
    slots = given.template.count("{}")
    plain = len(given.template) - 2 * slots
    lengths = [plain + slots * len(name) for name in given.names]
    longest = max(max(lengths), *map(len, (*given.names, given.template)))
    if (
        len(lengths) > limits.texts
        or longest > limits.characters
        or sum(lengths) > limits.all_characters
    ):
        raise wrong(
            f"There are {len(lengths):,} texts, the longest of {longest:,} characters, "
            f"{sum(lengths):,} together; {limits.texts:,} of {limits.characters:,} may be sent, "
            f"{limits.all_characters:,} together."
        )
    return given


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


def read_images(body: bytes, description: Description) -> torch.Tensor:
    """8-bit pictures (uint8) or normalised pixels (float32) `[B, 3, H, W]`.

    Raises:
        Refusal: 422.
    """
    tensors, _ = read_tensors(body)
    size, images = description.image_size, tensors.get("images")
    if images is None or len(tensors) > 1:
        raise wrong("One tensor is expected, named 'images'.")
    if images.dtype not in (torch.uint8, torch.float32) or (
        images.ndim != 4 or tuple(images.shape[1:]) != (3, *size) or not len(images)
    ):
        raise wrong(
            f"'images' is {images.dtype} {list(images.shape)}; uint8 or float32 "
            f"[B, 3, {size[0]}, {size[1]}] is expected."
        )
    if images.is_floating_point() and not torch.isfinite(images).all():
        raise wrong("'images' has numbers that are not finite.")
    return images


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
        if name != "pictures" and tensor.shape[1] > max(description.context_length, 1024):
            raise wrong(f"'{name}' has too many tokens: {tensor.shape[1]:,}.")
    if "pictures" in tensors:
        if asked.images or "image_tokens" in tensors:
            raise wrong("Changed pictures go with neither images nor image tokens.")
        if not tensors["pictures"].shape[1]:
            raise wrong("There is no picture.")
    if "image_tokens" in tensors and description.image_width is None:
        raise wrong("The image tower of this model takes no image tokens.")
    try:
        return asked, Prompt(**tensors)
    except ValueError as e:
        raise wrong(str(e)) from e


def brief(error: Exception) -> str:
    """The first complaint of pydantic, in a line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))[:60]
        return f"{place}: {first['msg']}"[:200]
    return type(error).__name__
