"""The server as an ASGI application: keys, routes, answers, refusals and what is measured."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

import diskcache
from prometheus_client import Counter, Gauge, Histogram
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.oracle.bill import UNITS
from ..trainers.blackbox.oracle.wire import DAMAGED, DIGEST, MEDIA, digest_of
from .access import Account, Refusal, complaint, wrong
from .service import IMAGE_FEATURES, QUERY, TEXT_FEATURES, Service, build_service

VISIT = "dassl_blackbox.visit"  # of a request's scope
HEALTH = "/health"  # the one path that needs no key
PAUSE = 0.02  # seconds that a wrong key takes, one at a time
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
STORAGE = (sqlite3.Error, OSError, diskcache.Timeout)  # of a disk that is full, or fails
ANSWERS: tuple[tuple[Any, int, str, str], ...] = (  # (error, status, code, sentence)
    (BlackBoxError, 422, "invalid", ""),  # of what was sent, with a sentence of its own
    (TimeoutError, 408, "too_slow", "The body did not come in time."),
    (ClientDisconnect, 400, DAMAGED, "The client left before the body had come."),
    (STORAGE, 503, "storage", "The server cannot store what it must; its owner is told."),
    (Exception, 500, "failed", "The server failed at this request."),
)
CLOSE = (400, 401, 408, 411, 413, 503)  # where the rest of a body may still come
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
Endpoint = Callable[[Request, Any], Awaitable[Any]]


def say(line: str, error: bool = True) -> None:
    """To the owner; a terminal that is gone, or a log on a full disk, is passed over."""
    with suppress(OSError):
        print(line, file=sys.stderr if error else sys.stdout, flush=True)


def answer_of(content: Any, status: int = 200, **headers: str) -> Response:
    """Tensors, a text, or what is said in JSON, with a digest."""
    kind, body = MEDIA, content
    if isinstance(content, str):
        kind, body = "text/plain; version=0.0.4", content.encode()
    elif not isinstance(content, bytes):
        kind, body = "application/json", json.dumps(content).encode()
    return Response(body, status, {**headers, DIGEST: digest_of(body)}, media_type=kind)


async def refuse(request: Request, error: Exception) -> Response:
    """The sentence that an error is answered with; the traceback is the owner's."""
    if isinstance(error, Refusal):
        refusal = error
    elif isinstance(error, HTTPException):
        refusal = Refusal(error.status_code, "http", f"{error.detail}.")
        refusal.headers.update(error.headers or {})
    elif isinstance(error, ValidationError):
        where, words = complaint(error)
        refusal = wrong(f"{'.'.join(map(str, where))[:60]} is not as expected: {words[:200]}.")
    else:
        status, code, words = next(row[1:] for row in ANSWERS if isinstance(error, row[0]))
        refusal = Refusal(status, code, words or str(error))
        if status == 503:
            say(f"What must be stored cannot be ({first_line(error)}).")
        if status == 500:
            say("".join(traceback.format_exception(error)))
    headers = {**HEADERS.get(refusal.status, {}), **refusal.headers}
    if refusal.status in CLOSE:
        headers["Connection"] = "close"
    return answer_of(refusal.body, refusal.status, **headers)


class Guard:
    """Lets requests with a known key in; others are told nothing, not even of paths, and slowly."""

    def __init__(self, app: ASGIApp, service: Service, paths: Collection[str]) -> None:
        self.app, self.accounts, self.paths = app, service.accounts, paths
        self.wrong, self.pause = 0, asyncio.Lock()
        self.met: set[str] = set()  # names of the accounts that have asked something
        counts, times = ("blackbox_requests", "Requests"), ("blackbox_request_seconds", "Times")
        self.requests = Counter(*counts, ("path", "status"), registry=service.registry)
        self.seconds = Histogram(*times, ("path",), buckets=SECONDS, registry=service.registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if scope["path"] == HEALTH:
                await self.app(scope, receive, watched)
            else:
                account = self.accounts.of(Headers(scope=scope).get("authorization", ""))
                with self.accounts.visit(account) as scope[VISIT]:
                    if account.name not in self.met:
                        self.met.add(account.name)
                        say(f"{account.name} asks for the first time", error=False)
                    await self.app(scope, receive, watched)
        except Refusal as refusal:
            if refusal.status == 401:
                await self.slow_down(scope)
            answer = await refuse(Request(scope), refusal)
            await answer(scope, receive, watched)
        finally:
            # other paths are one, so that nobody fills the metrics
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.requests.labels(path, str(status)).inc()
            self.seconds.labels(path).observe(time.perf_counter() - start)

    async def slow_down(self, scope: Scope) -> None:
        self.wrong += 1
        if self.wrong & (self.wrong - 1) == 0:  # 1, 2, 4, 8, … so that nobody fills the log
            host = (scope.get("client") or ("?",))[0]
            say(f"{self.wrong:,} requests without a known key so far, the last from {host}")
        async with self.pause:
            await asyncio.sleep(PAUSE)


def build_app(service: Service) -> Starlette:
    """The application; `service` is closed when it shuts down."""
    charged, waiting = service.ledger.charged, service.replica.waiting
    watched: dict[str, tuple[str, Callable[[], float]]] = {
        "waiting": ("Requests that wait for the model", lambda: sum(map(len, [*waiting.values()]))),
        "batches": ("Times that the model answered", lambda: service.replica.batches),
        "queries": ("Queries charged", lambda: charged[UNITS[0]]),
        "image_queries": ("Candidate x image charged", lambda: charged[UNITS[1]]),
    }
    for name, (words, value) in watched.items():
        Gauge(f"blackbox_{name}", words, registry=service.registry).set_function(value)
    endpoints: dict[str, tuple[str, Endpoint]] = {
        HEALTH: ("GET", service.health),
        "/metrics": ("GET", service.metrics),
        "/v1/description": ("GET", service.describe),
        "/v1/usage": ("GET", service.usage),
        "/v1/embedding": ("GET", service.embedding),
        "/v1/texts": ("POST", service.texts),
        "/v1/images": ("POST", service.images),
        "/v1/query": ("POST", partial(service.question, QUERY)),
        "/v1/features/images": ("POST", partial(service.question, IMAGE_FEATURES)),
        "/v1/features/texts": ("POST", partial(service.question, TEXT_FEATURES)),
    }

    async def answered(endpoint: Endpoint, request: Request) -> Response:
        try:
            return answer_of(await endpoint(request, request.scope.get(VISIT)))
        except Exception as e:
            return await refuse(request, e)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    app = Starlette(
        routes=[Route(p, partial(answered, e), methods=[m]) for p, (m, e) in endpoints.items()],
        middleware=[Middleware(Guard, service=service, paths=endpoints)],
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def serve_replicas(
    args: argparse.Namespace, accounts: Sequence[Account], host: str, port: int
) -> None:
    """Serve by Ray until SIGTERM or SIGINT; rates hold for each replica by itself.

    Ray's ports are on the loopback address, but for one a replica (Ray 2.60 gives no choice).
    """
    # read by Ray when it is imported; the second: it listens on the loopback address alone
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if find_spec("ray") is None:
        raise BlackBoxError("Replicas need Ray. In a clone: pip install -e '.[ray]'")
    import ray
    from ray import serve

    ray.init(include_dashboard=False, log_to_driver=True)
    try:
        serve.start(http_options={"host": host, "port": port})
        deployment = serve.deployment(
            serve.ingress(lambda: build_app(build_service(args, accounts)))(),
            name="dassl-blackbox",
            num_replicas=args.replicas,
            max_ongoing_requests=64,
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=10.0,
            ray_actor_options={"num_cpus": 1, "num_gpus": args.gpus_each},
        )
        serve.run(deployment.bind(), name="dassl-blackbox", route_prefix="/")
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has its own while it starts
            signal.signal(number, lambda *_: stop.set())
        url = f"http://{host}:{port}"
        print(f"{args.replicas} replicas of {args.backbone} listen on {url}", flush=True)
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
