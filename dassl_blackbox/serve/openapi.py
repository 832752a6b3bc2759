"""Bodies and refusals in the server's OpenAPI description."""

from __future__ import annotations

from typing import Any

from ..trainers.blackbox.oracle.wire import MEDIA
from .questions import TextList

JSON = "application/json"


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
