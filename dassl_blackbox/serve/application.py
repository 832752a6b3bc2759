"""The server as a FastAPI application: keys, routes, answers, refusals and what is measured."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import diskcache
import h11
import prometheus_client
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..trainers.blackbox.errors import first_line
from ..trainers.blackbox.oracle.bill import UNITS
from ..trainers.blackbox.oracle.wire import DIGEST, MEDIA, REQUEST, digest_of
from .access import Account
from .requests import Refusal, TextList, busy, wrong
from .service import IMAGE_FEATURES, QUERY, TEXT_FEATURES, Service

ACCOUNT = "dassl_blackbox.account"  # of a request's scope
HEALTH = "/health"  # the one path that needs no key
NAME_LENGTH = 128  # characters of an Idempotency-Key
PAUSE = 0.02  # seconds that a wrong key takes, one at a time
JSON, PICTURES = "application/json", ("image/png", "image/jpeg")
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
STORAGE = (sqlite3.Error, OSError, diskcache.Timeout)  # of a disk that is full, or fails
SENTENCES = {404: "There is no such path.", 405: "The path does not take this method."}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": 'Refused: {"error": {"code", "message"}}'},
    "503": {"description": "Busy: come again after Retry-After"},
}


# ---------------------------------------------------------------------- answers


def answer_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value).encode()
    return Response(body, status, {**(headers or {}), DIGEST: digest_of(body)}, media_type=JSON)


def answer_refusal(refusal: Refusal) -> Response:
    return answer_json(refusal.body(), refusal.status, refusal.headers)


class Sent(Response):
    """Tensors, after which `done` is called, sent or not."""

    def __init__(self, body: bytes, done: Callable[[], object] = lambda: None) -> None:
        super().__init__(body, headers={DIGEST: digest_of(body)}, media_type=MEDIA)
        self.done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.done()


def answer_failures(app: FastAPI) -> None:
    """Refusals and faults become answers with a sentence; none shows a traceback."""

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
        say(f"What must be stored cannot be ({first_line(error)}).")
        words = "The server cannot store what it must; its owner is told."
        return answer_refusal(Refusal(503, "storage", words, {"Retry-After": "10"}))

    for kind in STORAGE:
        app.add_exception_handler(kind, no_storage)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        """The traceback is the owner's; what a client did to its connection is not told."""
        if not isinstance(error, h11.ProtocolError):
            say("".join(traceback.format_exception(error)))
        return answer_refusal(Refusal(500, "failed", "The server failed at this request."))


def say(line: str) -> None:
    """To the owner; a terminal that is gone, or a log on a full disk, is passed over."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- what every request passes


def account_of(request: Request) -> Account:
    """Whose key the request has, which the guard has looked at."""
    return request.scope[ACCOUNT]


class Guard:
    """Lets requests in that have a known key, so many of each at a time; counts the answers.

    Others are told nothing, not even of paths, and slowly: one at a time.
    """

    def __init__(self, app: ASGIApp, service: Service, measured: Measured) -> None:
        self.app, self.service, self.measured = app, service, measured
        self.inside = Counter[str]()  # requests of an account
        self.wrong, self.pause = 0, asyncio.Lock()
        self.met: set[str] = set()  # names of the accounts that have asked something

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
            if scope["path"] == HEALTH:
                await self.app(scope, receive, watched)
                return
            with self.let_in(scope):
                await self.app(scope, receive, watched)
        except Refusal as refusal:
            if refusal.status == 401:
                await self.slow_down(scope)
            await answer_refusal(refusal)(scope, receive, watched)
        finally:
            # other paths are one, so that nobody fills the metrics
            path = getattr(scope.get("route"), "path", "other")
            self.measured.done(path, status, time.perf_counter() - start)

    @contextmanager
    def let_in(self, scope: Scope) -> Iterator[None]:
        """Raises a Refusal where the key is not known, asks too fast, or too much at once."""
        account = self.service.accounts.of(Headers(scope=scope).get("authorization"))
        self.service.accounts.spend(account)
        if self.inside[account.name] >= self.service.limits.waiting:
            raise busy("Too many requests of this key are on their way.")
        if account.name not in self.met:
            self.met.add(account.name)
            with suppress(OSError):
                print(f"{account.name} asks for the first time", flush=True)
        scope[ACCOUNT] = account
        self.inside[account.name] += 1
        try:
            yield
        finally:
            self.inside[account.name] -= 1

    async def slow_down(self, scope: Scope) -> None:
        self.wrong += 1
        if self.wrong & (self.wrong - 1) == 0:  # 1, 2, 4, 8, … so that nobody fills the log
            host = (scope.get("client") or ("?",))[0]
            say(f"{self.wrong:,} requests without a known key so far, the last from {host}")
        async with self.pause:
            await asyncio.sleep(PAUSE)


class Measured:
    """What is measured, in Prometheus' format; two servers in a process do not share it."""

    def __init__(self, service: Service) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "blackbox_requests", "Requests", ("path", "status"), registry=self.registry
        )
        self.seconds = prometheus_client.Histogram(
            "blackbox_request_seconds",
            "Time of a request",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        watched: dict[str, tuple[str, Callable[[], float]]] = {
            "waiting": ("Requests that wait for the model", lambda: len(service.replica.jobs)),
            "batches": ("Times that the model answered", service.replica.together.total),
            "queries": ("Queries charged", lambda: service.charged[UNITS[0]]),
            "image_queries": ("Candidate x image charged", lambda: service.charged[UNITS[1]]),
        }
        for name, (words, value) in watched.items():
            gauge = prometheus_client.Gauge(f"blackbox_{name}", words, registry=self.registry)
            gauge.set_function(value)

    def done(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)


# ---------------------------------------------------------------------- routes


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
    measured, bodies = Measured(service), service.bodies
    app.add_middleware(Guard, service=service, measured=measured)
    answer_failures(app)
    # the guard has looked at the key: this tells readers of the description
    keyed: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False))]}

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
        text = prometheus_client.generate_latest(measured.registry)
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/description", tags=["model"], responses=REFUSALS, **keyed)
    async def description(request: Request) -> Response:
        """What the model is, and what is granted to the key."""
        return answer_json(service.describe(account_of(request)))

    @app.get("/v1/usage", tags=["state"], responses=REFUSALS, **keyed)
    async def usage(request: Request) -> Response:
        """What the key has used."""
        return answer_json(await service.usage(account_of(request)))

    @app.get("/v1/embedding", tags=["model"], responses={**REFUSALS, **tensors_out()}, **keyed)
    async def embedding(request: Request, words: str) -> Response:
        """Token embeddings of words, where contexts are granted."""
        return Sent(await service.embedding(account_of(request), words))

    @app.post(
        "/v1/texts", tags=["contents"], openapi_extra=takes(JSON), responses=REFUSALS, **keyed
    )
    async def texts(request: Request) -> Response:
        """Name a list of texts: {"names": […], "template": "a photo of a {}."}."""
        account = account_of(request)
        async with bodies.of(request, account.name) as body:
            return answer_json(await service.take_texts(account, body))

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
        account = account_of(request)
        async with bodies.of(request, account.name) as body:
            return answer_json(await service.take_images(account, body, kind in PICTURES))

    async def ask(what: str, request: Request) -> Response:
        account, name = account_of(request), request.headers.get(REQUEST, "")
        if len(name) > NAME_LENGTH:
            raise wrong(f"{REQUEST} has more than {NAME_LENGTH} characters.")
        name = f"given {name}" if name else f"none {uuid.uuid4().hex}"
        async with bodies.of(request, account.name) as body:
            answer = asyncio.ensure_future(service.answer(what, account, name, body))
            left = asyncio.ensure_future(request.receive())  # nothing is left to come but the end
            try:
                await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    raise Refusal(400, "left", "The client has left.")
                content, room = await answer
                return Sent(content, partial(bodies.hold, account.name, -room))
            finally:
                left.cancel()
                answer.cancel()

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
