"""The routes of the server, as a FastAPI application."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from pydantic import ValidationError

from .. import __version__
from ..trainers.blackbox.oracle.wire import MEDIA, REQUEST
from .answers import Sent, answer_json, answer_tensors
from .errors import Refusal
from .failures import answer_failures
from .limits import Bodies
from .middleware import HEALTH, Guard, Watched, account_of
from .openapi import JSON, REFUSALS, takes, tensors_out
from .questions import TextList, brief, wrong
from .service import IMAGE_FEATURES, QUERY, TEXT_FEATURES, Service

NAME_LENGTH = 128  # characters of an Idempotency-Key
PICTURES = ("image/png", "image/jpeg")


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
    answer_failures(app)
    bodies = Bodies(service.limits)
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
