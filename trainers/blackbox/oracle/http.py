"""Requests to a service that holds a model: what can be tried again is, the rest is a sentence."""

from __future__ import annotations

import email.utils
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..run.errors import BlackBoxError, BudgetSpent, first_line

KEY = "BLACKBOX_KEY"  # the environment variable that holds the key
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # statuses of what can be tried again
DAMAGED = "damaged"  # code of our server's error where a body's digest is not the body's
SHORTEST, LONGEST = 0.1, 10.0  # seconds between two tries
Answer = TypeVar("Answer")


class Refused(BlackBoxError):
    """The service did not do what it was asked for, and did not bill it."""


class RemoteBudgetSpent(BudgetSpent, Refused):
    """The budget that the service keeps for this key does not pay for the request."""


class Transient(Exception):
    """What may be otherwise at the next try; `after`: seconds that the service asks to wait."""

    def __init__(self, words: str, after: float | None = None) -> None:
        super().__init__(words)
        self.after = after


class Missing(Exception):
    """The service answers 404; `about` is its body, if it is JSON."""

    def __init__(self, about: Any) -> None:
        super().__init__("404")
        self.about = about


class Http:
    """A connection that is kept open to one service.

    Args:
        url: of the service; paths are put behind it.
        timeout: seconds without a byte after which a try is given up.
        patience: seconds after which a request that fails again and again is given up: a service
            that is started again within them is waited for.
        headers: of every request, beside the key (`Authorization: Bearer`), which the environment
            variable `BLACKBOX_KEY` holds.

    Raises:
        BlackBoxError: the packages of the extra `remote` are not installed, or the URL is none.
    """

    def __init__(
        self, url: str, timeout: float, patience: float, headers: dict[str, str] | None = None
    ) -> None:
        try:
            import httpx
            import tenacity
        except ImportError as e:
            raise BlackBoxError(
                f"A model behind HTTP needs the package {e.name}. In a clone of dassl-blackbox: "
                f"pip install -e '.[remote]'"
            ) from e
        self.httpx, self.tenacity = httpx, tenacity
        self.url, self.patience, self.waiting = url.rstrip("/"), patience, False
        self.key = key = os.environ.get(KEY, "")
        if not key.isascii() or not key.isprintable():
            raise BlackBoxError(f"{KEY} holds characters that no header can: check it.")
        known = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self.client = httpx.Client(
                timeout=timeout,
                headers={**known, **(headers or {})},
                # one request at a time, and none elsewhere: a redirect would carry the key along
                limits=httpx.Limits(max_connections=1),
                follow_redirects=False,
            )
            scheme = httpx.URL(self.url).scheme
        except Exception as e:
            raise BlackBoxError(f"ORACLE.URL is {url!r}, which is no URL ({first_line(e)}).") from e
        if scheme not in ("http", "https"):
            raise BlackBoxError(f"ORACLE.URL is {url!r}; http://… or https://… is expected.")

    def ask(
        self,
        method: str,
        path: str,
        read: Callable[[Any], Answer],
        content: bytes | None = None,
        json: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """What `read` makes of the answer (an `httpx.Response` of status 200).

        The request is repeated, with these headers and this content, while the service is not
        there, is busy (408, 425, 429, 5xx), or answers with what `read` finds damaged (it raises
        `Transient`). Waits grow from 0.1 to 10 seconds, are drawn at random, and are as long as
        `Retry-After` says where it says anything.

        Raises:
            Missing: 404.
            RemoteBudgetSpent: 402.
            Refused: any other answer that a repetition does not change.
            BlackBoxError: patience is at an end.
        """

        def once() -> Answer:
            try:
                answer = self.client.request(
                    method, self.url + path, content=content, json=json, headers=headers
                )
            except self.httpx.TransportError as e:
                raise Transient(f"{type(e).__name__}: {first_line(e)}") from e
            except self.httpx.HTTPError as e:  # content that cannot be decoded
                raise Transient(first_line(e)) from e
            self.judge(answer)
            return read(answer)

        again = self.tenacity.Retrying(
            retry=self.tenacity.retry_if_exception_type(Transient),
            stop=self.tenacity.stop_after_delay(self.patience),
            wait=self.wait,
            before_sleep=self.note,
            reraise=True,
        )
        try:
            found = again(once)
        except Transient as e:
            raise BlackBoxError(
                f"{self.url} gave no answer within {self.patience:g} seconds ({e}). Is it running, "
                f"and is ORACLE.URL right? The same command goes on from the last checkpoint; "
                f"ORACLE.PATIENCE sets how long is waited."
            ) from e
        self.waiting = False
        return found

    def wait(self, state: Any) -> float:
        """Seconds before the next try."""
        asked = state.outcome.exception().after
        drawn = self.tenacity.wait_random_exponential(multiplier=SHORTEST, max=LONGEST)(state)
        if asked is None:
            return drawn
        return min(asked, self.patience) + min(drawn, SHORTEST)

    def note(self, state: Any) -> None:
        """Say once, after a few tries, that a service is waited for."""
        if not self.waiting and state.seconds_since_start > 2:
            self.waiting = True
            print(
                f"Waiting for {self.url} ({state.outcome.exception()}); for up to "
                f"{self.patience:g} seconds",
                file=sys.stderr,
            )

    def judge(self, answer: Any) -> None:
        """Raise unless the status is 200."""
        status, words = answer.status_code, said(answer)
        if self.key:  # which a service may repeat, and a log should not
            words = words.replace(self.key, "…")
        if status == 200:
            return
        if status in AGAIN or (status == 400 and DAMAGED in answer.text):
            raise Transient(f"{status}: {words}", seconds(answer.headers.get("Retry-After")))
        if status == 404:
            raise Missing(body_of(answer))
        if status == 402:
            raise RemoteBudgetSpent(f"{self.url} refuses, since a budget is spent: {words}")
        reasons = {
            401: f"It does not know the key in {KEY}. Set it to one that its owner gave you.",
            403: "The key does not allow it.",
            413: "The request is too large for it.",
        }
        raise Refused(f"{self.url} answers {status}: {words} {reasons.get(status, '')}".strip())


def body_of(answer: Any) -> Any:
    try:
        return answer.json()
    except (ValueError, RecursionError):
        return None


def said(answer: Any) -> str:
    """What an error's body says, in one line: our own shape, OpenAI's, FastAPI's, or the text."""
    if answer.status_code == 200:
        return ""
    body = body_of(answer)
    for name in ("error", "detail", "message"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    if isinstance(body, list):  # FastAPI's, which echo what they were sent
        body = "; ".join(str(e.get("msg", "")) if isinstance(e, dict) else str(e) for e in body)
    text = body if isinstance(body, str) else str(body) if body else answer.text
    return " ".join(text.split())[:400]


def seconds(header: str | None) -> float | None:
    """What `Retry-After` says: seconds, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
