"""The routes of the server, as a FastAPI application."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..trainers.blackbox.oracle.wire import DIGEST, MEDIA, REQUEST, digest_of
from .access import Account
from .counters import Counters
from .errors import Refusal
from .limits import Bodies
from .questions import TextList, brief, wrong
from .service import IMAGE_FEATURES, QUERY, TEXT_FEATURES, Service

NAME_LENGTH = 128  # characters of an Idempotency-Key
JSON = "application/json"
PICTURES = ("image/png", "image/jpeg")
Handler = Callable[[Request, Account], Awaitable[Response]]


def build_app(service: Service) -> FastAPI:
    """The application; `service` is closed when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="dassl-blackbox", version=__version__, lifespan=lifespan)
    app.add_middleware(Watched, counters=service.counters)
    bodies = Bodies(service.limits)

    def let_in(request: Request) -> Account:
        account = service.accounts.of(request.headers.get("authorization"))
        service.accounts.spend(account)
        return account

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> Response:
        return answer_json(refusal.body(), refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def no_such_path(request: Request, error: HTTPException) -> Response:
        refusal = Refusal(error.status_code, "http", str(error.detail), error.headers)
        return answer_json(refusal.body(), refusal.status, refusal.headers)

    @app.get("/health", tags=["state"])
    async def health() -> Response:
        """Whether the model answers. Needs no key."""
        alive = service.replica.thread.is_alive()
        return answer_json({"status": "ok" if alive else "failed"}, 200 if alive else 500)

    @app.get("/metrics", tags=["state"], responses=REFUSALS)
    async def metrics(request: Request) -> Response:
        """Prometheus' metrics, for every key."""
        let_in(request)
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/description", tags=["model"], responses=REFUSALS)
    async def description(request: Request) -> Response:
        """What the model is, and what is granted to the key."""
        return answer_json(service.describe(let_in(request)))

    @app.get("/v1/usage", tags=["state"], responses=REFUSALS)
    async def usage(request: Request) -> Response:
        """What the key has used."""
        return answer_json(await service.on_disk(service.ledger.usage, let_in(request)))

    @app.get("/v1/embedding", tags=["model"], responses={**REFUSALS, **tensors_out()})
    async def embedding(request: Request, words: str) -> Response:
        """Token embeddings of words, where contexts are granted."""
        return answer_tensors(await service.embedding(let_in(request), words))

    @app.post("/v1/texts", tags=["contents"], openapi_extra=takes(JSON), responses=REFUSALS)
    async def texts(request: Request) -> Response:
        """Name a list of texts: {"names": […], "template": "a photo of a {}."}."""
        let_in(request)
        async with bodies.of(request) as body:
            return answer_json(await service.take_texts(read_texts(body)))

    @app.post(
        "/v1/images",
        tags=["contents"],
        openapi_extra=takes(MEDIA, *PICTURES),
        responses=REFUSALS,
    )
    async def images(request: Request) -> Response:
        """Send images: one PNG or JPEG, or a tensor 'images' `[B, 3, H, W]` of many.

        The tensor is of uint8 (8-bit pictures) or float32 (normalised pixels).
        """
        let_in(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (MEDIA, *PICTURES):
            raise Refusal(415, "media_type", f"{MEDIA}, {' or '.join(PICTURES)} is expected.")
        async with bodies.of(request) as body:
            take = service.take_tensors if kind == MEDIA else service.take_picture
            return answer_json(await take(body))

    async def ask(what: str, request: Request) -> Response:
        account, name = let_in(request), request.headers.get(REQUEST, "")
        if len(name) > NAME_LENGTH:
            raise wrong(f"{REQUEST} has more than {NAME_LENGTH} characters.")
        async with bodies.of(request) as body:
            digest = hashlib.sha256(body).hexdigest()
            name = f"given {name}" if name else f"none {uuid.uuid4().hex}"
            return answer_tensors(await service.answer(what, account, name, body, digest))

    question: dict[str, Any] = {
        "tags": ["questions"],
        "openapi_extra": takes(MEDIA),
        "responses": {**REFUSALS, **tensors_out()},
    }

    @app.post("/v1/query", **question)
    async def query(request: Request) -> Response:
        """Score P candidates on B images: logits `[P, B, C + M]`."""
        return await ask(QUERY, request)

    @app.post("/v1/features/images", **question)
    async def image_features(request: Request) -> Response:
        """Normalised features of images `[B, E]`."""
        return await ask(IMAGE_FEATURES, request)

    @app.post("/v1/features/texts", **question)
    async def text_features(request: Request) -> Response:
        """Normalised features of texts `[P, C + M, E]`."""
        return await ask(TEXT_FEATURES, request)

    return app


def read_texts(body: bytes) -> TextList:
    try:
        return TextList.model_validate_json(body, strict=True)
    except ValidationError as e:
        raise wrong(f"A list of texts is expected: {brief(e)}") from e


def answer_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value).encode()
    return Response(
        body, status, {**(headers or {}), DIGEST: digest_of(body)}, media_type="application/json"
    )


def answer_tensors(body: bytes) -> Response:
    return Response(body, headers={DIGEST: digest_of(body)}, media_type=MEDIA)


class Watched:
    """Counts answers and the time that they took."""

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self.app, self.counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            # other paths are one, so that nobody fills the metrics
            path = getattr(scope.get("route"), "path", "other")
            self.counters.done(path, status, time.perf_counter() - start)


def takes(*media: str) -> dict[str, Any]:
    """A request's body in the OpenAPI description."""
    binary = {"type": "string", "format": "binary"}
    shapes = {JSON: TextList.model_json_schema()}
    content = {kind: {"schema": shapes.get(kind, binary)} for kind in media}
    return {"requestBody": {"required": True, "content": content}}


def tensors_out() -> dict[int | str, dict[str, Any]]:
    content = {MEDIA: {"schema": {"type": "string", "format": "binary"}}}
    return {
        200: {"description": "A safetensors file with one tensor, 'answer'", "content": content}
    }


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": words}
    for status, words in {
        400: "The body is damaged",
        401: "No known key",
        402: "A budget of the key is spent",
        403: "Not granted to the key",
        404: "Something named is not known: send it again",
        408: "The body did not come in time",
        411: "A Content-Length is needed",
        413: "Too large",
        415: "Another kind of body is expected",
        422: "Something in the request is not as expected",
        429: "Too many requests in this minute",
        503: "Busy: come again",
    }.items()
}
