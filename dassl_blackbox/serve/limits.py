"""How much a request may be, and reading no more than that of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from starlette.requests import ClientDisconnect, Request

from ..trainers.blackbox.oracle.wire import DAMAGED, DIGEST, digest_of
from .errors import Refusal

TOGETHER = 4  # bodies of the largest size that are held at once


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
        encoded: candidates x texts, each of which goes through the text tower, and candidates x
            images, where each goes through the image tower.
        waiting: requests that wait for the model; further ones are told to come again.
    """

    body: int = 2**28
    seconds: float = 60.0
    images: int = 2**16
    candidates: int = 4096
    texts: int = 2**15
    characters: int = 1000
    all_characters: int = 2**21
    pixels: int = 2**25
    encoded: int = 2**20
    waiting: int = 256


class Bodies:
    """Reads bodies, all of which, and the answers on their way, together stay within a bound."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.held = limits, 0

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which is counted as held until the context is left.

        Raises:
            Refusal: 411 without a length, 413 above the limit, 408 where it does not come, 400
                where it is not what its digest says, 503 while others hold all the room.
        """
        declared = request.headers.get("content-length", "")
        if not declared.isascii() or not declared.isdigit():
            raise Refusal(411, "length_required", "A Content-Length is needed.")
        length = int(declared[:20])
        if length > self.limits.body:
            raise Refusal(
                413, "too_large", f"A body may have {self.limits.body:,} bytes, not {length:,}."
            )
        if self.held + length > TOGETHER * self.limits.body:
            raise Refusal(503, "busy", "Too much is on its way at once.", {"Retry-After": "1"})
        self.held += length
        try:
            yield await self.read(request, length)
        finally:
            self.held -= length

    async def read(self, request: Request, length: int) -> bytes:
        body = bytearray()
        try:
            with anyio.fail_after(self.limits.seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > length:
                        break
        except TimeoutError as e:
            raise Refusal(408, "too_slow", "The body did not come in time.") from e
        except ClientDisconnect as e:
            raise Refusal(400, DAMAGED, "The client left before the body had come.") from e
        if len(body) != length:
            raise Refusal(400, DAMAGED, "The body is longer or shorter than it says.")
        declared = request.headers.get(DIGEST)
        if declared is not None and declared != digest_of(bytes(body)):
            raise Refusal(400, DAMAGED, f"The body is not what its {DIGEST} says.")
        return bytes(body)
