"""Answers: JSON, tensors and refusals, with the digest of their bodies."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from ..trainers.blackbox.oracle.wire import DIGEST, MEDIA, digest_of
from .errors import Refusal
from .limits import Bodies


def answer_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value).encode()
    return Response(
        body, status, {**(headers or {}), DIGEST: digest_of(body)}, media_type="application/json"
    )


def answer_tensors(body: bytes) -> Response:
    return Response(body, headers={DIGEST: digest_of(body)}, media_type=MEDIA)


def answer_refusal(refusal: Refusal) -> Response:
    return answer_json(refusal.body(), refusal.status, refusal.headers)


class Sent(Response):
    """Tensors, which take room among the bodies until they are sent."""

    def __init__(self, body: bytes, bodies: Bodies) -> None:
        super().__init__(body, headers={DIGEST: digest_of(body)}, media_type=MEDIA)
        self.bodies = bodies
        bodies.held += len(body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.bodies.held -= len(self.body)
