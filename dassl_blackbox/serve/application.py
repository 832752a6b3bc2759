"""The routes of the server, as a FastAPI application."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import diskcache
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..trainers.blackbox.oracle.wire import DIGEST, MEDIA, REQUEST, digest_of
from ..trainers.blackbox.run.errors import first_line
from .access import Account, Accounts
from .counters import Counters
from .errors import Refusal
from .limits import Bodies
from .questions import TextList, brief, wrong
from .service import IMAGE_FEATURES, QUERY, TEXT_FEATURES, Service

NAME_LENGTH = 128  # characters of an Idempotency-Key
JSON = "application/json"
PICTURES = ("image/png", "image/jpeg")
ACCOUNT = "dassl_blackbox.account"  # of a request's scope
HEALTH = "/health"  # the one path that needs no key
SENTENCES = {404: "There is no such path.", 405: "The path does not take this method."}
STORAGE = (sqlite3.Error, OSError, diskcache.Timeout)  # of a disk that is full, or fails


def build_app(service: Service) -> FastAPI:
    """The application; `service` is closed when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="dassl-blackbox",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Guard, accounts=service.accounts)
    app.add_middleware(Watched, counters=service.counters)
    bodies = Bodies(service.limits)
    # the guard has looked at the key: this tells readers of the description
    keyed: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False))]}

    def account_of(request: Request) -> Account:
        return request.scope[ACCOUNT]

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> Response:
        return answer_refusal(refusal)

    @app.exception_handler(HTTPException)
    async def no_such_path(request: Request, error: HTTPException) -> Response:
        words = SENTENCES.get(error.status_code, f"{error.detail}.")
        return answer_refusal(Refusal(error.status_code, "http", words, error.headers))

    @app.exception_handler(RequestValidationError)
    async def not_as_described(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:60]
        return answer_refusal(wrong(f"{place}: {first['msg']}."))

    async def no_storage(request: Request, error: Exception) -> Response:
        with suppress(OSError):  # the log may be on the same disk
            print(f"What must be stored cannot be ({first_line(error)}).", file=sys.stderr)
        words = "The server cannot store what it must; its owner is told."
        return answer_refusal(Refusal(503, "storage", words, {"Retry-After": "10"}))

    for kind in STORAGE:
        app.add_exception_handler(kind, no_storage)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        """uvicorn writes the traceback, which is the owner's."""
        return answer_refusal(Refusal(500, "failed", "The server failed at this request."))

    @app.get(HEALTH, tags=["state"])
    async def health() -> Response:
        """Whether the model answers. Needs no key."""
        if not service.replica.alive():
            raise Refusal(503, "stopped", "The model has stopped.")
        return answer_json({"status": "ok"})

    @app.get("/metrics", tags=["state"], responses=REFUSALS, **keyed)
    async def metrics(request: Request) -> Response:
        """Prometheus' metrics, which sum over all keys, where they are granted."""
        if not account_of(request).metrics:
            raise Refusal(403, "not_granted", "The server's metrics are not granted to this key.")
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/description", tags=["model"], responses=REFUSALS, **keyed)
    async def description(request: Request) -> Response:
        """What the model is, and what is granted to the key."""
        return answer_json(service.describe(account_of(request)))

    @app.get("/v1/usage", tags=["state"], responses=REFUSALS, **keyed)
    async def usage(request: Request) -> Response:
        """What the key has used."""
        return answer_json(await service.on_disk(service.ledger.usage, account_of(request)))

    @app.get("/v1/embedding", tags=["model"], responses={**REFUSALS, **tensors_out()}, **keyed)
    async def embedding(request: Request, words: str) -> Response:
        """Token embeddings of words, where contexts are granted."""
        return answer_tensors(await service.embedding(account_of(request), words))

    @app.post(
        "/v1/texts", tags=["contents"], openapi_extra=takes(JSON), responses=REFUSALS, **keyed
    )
    async def texts(request: Request) -> Response:
        """Name a list of texts: {"names": […], "template": "a photo of a {}."}."""
        async with bodies.of(request) as body:
            given = await service.on_disk(read_texts, body)
            return answer_json(await service.take_texts(given))

    @app.post(
        "/v1/images",
        tags=["contents"],
        openapi_extra=takes(MEDIA, *PICTURES),
        responses=REFUSALS,
        **keyed,
    )
    async def images(request: Request) -> Response:
        """Send images: one PNG or JPEG, or a tensor 'images' `[B, 3, H, W]` of many.

        The tensor is of uint8 (8-bit pictures) or float32 (normalised pixels).
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (MEDIA, *PICTURES):
            raise Refusal(415, "media_type", f"{MEDIA}, {' or '.join(PICTURES)} is expected.")
        async with bodies.of(request) as body:
            take = service.take_tensors if kind == MEDIA else service.take_picture
            return answer_json(await take(body))

    async def ask(what: str, request: Request) -> Response:
        account, name = account_of(request), request.headers.get(REQUEST, "")
        if len(name) > NAME_LENGTH:
            raise wrong(f"{REQUEST} has more than {NAME_LENGTH} characters.")
        async with bodies.of(request) as body:
            name = f"given {name}" if name else f"none {uuid.uuid4().hex}"
            return Sent(await service.answer(what, account, name, body), bodies)

    question: dict[str, Any] = {
        "tags": ["questions"],
        "openapi_extra": takes(MEDIA),
        "responses": {**REFUSALS, **tensors_out()},
        **keyed,
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


class Guard:
    """Lets requests in that have a known key, and tells the others nothing, not even of paths."""

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self.app, self.accounts = app, accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != HEALTH:
            try:
                account = self.accounts.of(Headers(scope=scope).get("authorization"))
                self.accounts.spend(account)
            except Refusal as refusal:
                await answer_refusal(refusal)(scope, receive, send)
                return
            scope[ACCOUNT] = account
        await self.app(scope, receive, send)


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
