"""What a request is answered with where it is not done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST = 800  # characters of a message, which may quote what was sent


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
