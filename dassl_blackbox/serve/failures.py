"""What a request is answered with when something is raised."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import suppress

import diskcache
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ..trainers.blackbox.errors import first_line
from .answers import answer_refusal
from .errors import Refusal
from .questions import wrong

SENTENCES = {404: "There is no such path.", 405: "The path does not take this method."}
STORAGE = (sqlite3.Error, OSError, diskcache.Timeout)  # of a disk that is full, or fails


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
