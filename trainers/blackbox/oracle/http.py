"""Requests to a service that holds a model: what can be tried again is, the rest is a sentence."""

from __future__ import annotations

import email.utils
import html
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import quote, urldefrag, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import tenacity

from ..errors import BlackBoxError, BudgetSpent, first_line, printable
from .interface import Refused
from .wire import DAMAGED

KEY = "BLACKBOX_KEY"  # the environment variable that holds the key
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # statuses of what can be tried again
# of a refusal since nothing is left to pay with, which waiting does not change: by its code, and by
# its words where they do not say when to come again (those about a rate are alike)
SPENT_CODE = re.compile(
    r'"(code|type)":\s*"[\w.]*(insufficient_\w*(quota|credit|balance|fund)|billing|budget_exceeded)',
    re.IGNORECASE,
)
SPENT_WORDS = re.compile(
    r"insufficient[\w ]*[ _](balance|credit|quota|fund)"
    r"|balance[\w ]* (insufficient|too low|not enough)"
    r"|\b(used|out of|not enough|no|exceeded|reached)\b[\w ]* (credits|monthly|quota)"
    r"|limited to [\w, ]*(/|per) ?month",
    re.IGNORECASE,
)
RATE = re.compile(r"(retry|again) (in|after)|retryDelay|per.?(second|minute|hour)", re.IGNORECASE)
SHORTEST, LONGEST = 0.1, 10.0  # seconds between two tries
SOON = 2.0  # seconds of waiting after which a line says so
LARGEST = 2**30  # bytes of an answer
SAID = 400  # characters of what a service says that are repeated
PAGE = re.compile(r"\s*<|.*<(!doctype|html)\b", re.IGNORECASE | re.DOTALL)
TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
Answer = TypeVar("Answer")


class RemoteBudgetSpent(BudgetSpent, Refused):
    """The budget that the service keeps for this key does not pay for the request."""


class Transient(Exception):
    """What may be otherwise at the next try."""


class Http:
    """Connections that are kept open to one service; threads may share it.

    Args:
        url: of the service; paths are put behind it.
        timeout: seconds without a byte after which a try is given up.
        patience: seconds after which a request that fails again and again is given up, if the
            service has answered no other one either: one that is started again within them is
            waited for. The key (`Authorization: Bearer`) is in the environment variable
            `BLACKBOX_KEY`.

    Raises:
        BlackBoxError: the URL is none, or the environment does not allow a connection.
    """

    def __init__(self, url: str, timeout: float, patience: float) -> None:
        self.url, self.patience, self.waiting = urldefrag(url).url, patience, False
        self.answered = self.quiet = 0.0  # when last, and until when nothing is sent
        self.ended = threading.Event()  # by the user: while it is set, nothing is tried again
        self.key = key = os.environ.get(KEY, "")
        sizes = "DATALOADER.TRAIN_X.BATCH_SIZE and DATALOADER.TEST.BATCH_SIZE"
        self.advice = {413: f"Smaller {sizes} put less into a request."}  # by status
        if not key.isascii() or not key.isprintable():
            raise BlackBoxError(f"{KEY} holds characters that no header can: check it.")
        try:
            host = httpx.URL(url).host
        except httpx.InvalidURL:
            host = ""
        if not host:
            raise BlackBoxError(f"ORACLE.URL is {url!r}, which is no URL of a service.")
        # a compressed answer may be a thousand times as large as what was received
        headers = {"Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            # a redirect would carry the key along
            self.client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)
        except Exception as e:  # which all come of the environment, and may repeat a password
            raise BlackBoxError(environment(e)) from e
        if key and url.startswith("http:") and in_clear(host):
            print(
                f"Note: the key in {KEY} crosses the network in clear, since ORACLE.URL begins "
                f"with http://; use https:// where others could listen"
            )

    def address(self, path: str) -> str:
        """The URL of the service with a path behind its own, and the queries of both."""
        (own, _, query), parts = path.partition("?"), urlsplit(self.url)
        queries = "&".join(filter(None, (parts.query, query)))
        place = parts.path.rstrip("/") + own if own else parts.path
        return parts._replace(path=place, query=queries).geturl()

    def ask(self, method: str, path: str, read: Callable[[Any], Answer], **body: Any) -> Answer:
        """What `read` makes of the answer (an `httpx.Response` of status 200).

        The request (`content` or `json`, and `headers`) is repeated while the service is not there,
        is busy, or answers with what `read` finds damaged (it raises `Transient`). Waits grow from
        0.1 to 10 seconds, at random; where the service says `Retry-After`, no thread asks before.

        Raises:
            RemoteBudgetSpent: 402, or another status with words to that effect.
            Refused: any other answer that a repetition does not change.
            BlackBoxError: patience is at an end.
        """

        def once() -> Answer:
            while (left := self.quiet - time.monotonic()) > 0 and not self.ended.is_set():
                self.ended.wait(left)
            if self.ended.is_set():
                raise Transient("the run was ended")
            try:
                answer = self.received(method, path, **body)
            except httpx.TransportError as e:
                raise Transient(self.quoted(f"{type(e).__name__}: {first_line(e)}")) from e
            self.judge(answer, path)
            return read(answer)

        def over(state: tenacity.RetryCallState) -> bool:
            since = max(state.start_time, self.answered)
            return self.ended.is_set() or time.monotonic() - since >= self.patience

        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            stop=over,
            wait=tenacity.wait_random_exponential(multiplier=SHORTEST, max=LONGEST),
            sleep=tenacity.sleep_using_event(self.ended),
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
        self.waiting, self.answered = False, time.monotonic()
        return found

    def received(self, method: str, path: str, **body: Any) -> httpx.Response:
        """The answer to one request, read to its end, unless it is compressed or too large."""
        with self.client.stream(method, self.address(path), **body) as answer:
            content, encoding = bytearray(), answer.headers.pop("Content-Encoding", "identity")
            if encoding.strip().lower() == "identity":
                for part in answer.iter_raw():
                    content += part
                    if len(content) > LARGEST:
                        raise BlackBoxError(
                            f"{self.url} sends an answer of more than {LARGEST:,} bytes, which is "
                            f"not read. Check ORACLE.URL, or ask for less at a time."
                        )
            elif answer.status_code == 200:  # what an error's body says is only left out
                raise BlackBoxError(
                    f"{self.url} compresses its answer ({self.quoted(encoding)}), though plain "
                    f"ones were asked for (Accept-Encoding: identity); such an answer has no bound "
                    f"and is not read. Turn compression off there, or in the proxy before it."
                )
        status, headers, asked = answer.status_code, answer.headers, answer.request
        return httpx.Response(status, headers=headers, content=bytes(content), request=asked)

    def note(self, state: tenacity.RetryCallState) -> None:
        """Say once that a service is waited for."""
        soon = state.start_time + SOON
        if not self.waiting and max(time.monotonic(), self.quiet) > soon and state.outcome:
            self.waiting = True
            print(
                f"Waiting for {self.url} ({state.outcome.exception()}); for up to "
                f"{self.patience:g} seconds",
                file=sys.stderr,
            )

    def judge(self, answer: httpx.Response, path: str) -> None:
        """Raise unless the status is 200."""
        status, body = answer.status_code, body_of(answer)
        if status == 200:
            return
        words = self.quoted(said(answer, body))
        if status == 402 or (status in (400, 403, 429) and nothing_left(answer)):
            spent = f"{self.url} refuses, since a budget is spent: {words}"
            raise RemoteBudgetSpent(spent, status, body)
        error = body.get("error") if isinstance(body, dict) else None
        spoilt = status == 400 and isinstance(error, dict) and error.get("code") == DAMAGED
        if status in AGAIN or spoilt:
            pause = min(seconds(answer.headers.get("Retry-After", "")), self.patience)
            self.quiet = max(self.quiet, time.monotonic() + pause)
            raise Transient(f"{status}: {words}")
        whose = "a proxy before the service" if PAGE.match(answer.text) else "the service"
        unset = f"{KEY} is not set: set it to a key that the service's owner gave you."
        reasons = {
            401: f"It does not know the key in {KEY}. Set it to one that its owner gave you.",
            403: "The key does not allow it.",
            404: f"{path or 'That'} is not there. Check ORACLE.URL and ORACLE.API.",
            413: f"The request is above the limit of {whose}.",
            **({} if self.key else {401: unset, 403: unset}),
        }
        if answer.has_redirect_location:
            to = self.quoted(str(answer.url.join(answer.headers["Location"])))
            reasons[status] = (
                f"It points to {to}, which is not followed, since the key would be carried along. "
                f"If that is the service, set ORACLE.URL to {to.replace(path, '', 1)} instead."
            )
        more = filter(None, (reasons.get(status), self.advice.get(status)))
        told = " ".join((f"{self.url} answers {status}: {words.rstrip('.')}.", *more))
        raise Refused(told, status, body)

    def quoted(self, text: str) -> str:
        """What a service says, for an error: in one printable line, cut short, without the key."""
        if self.key:
            forms = self.key, quote(self.key, ""), html.escape(self.key), json.dumps(self.key)[1:-1]
            text = re.sub("|".join(map(re.escape, forms)), "…", text, flags=re.IGNORECASE)
        return printable(" ".join(text.split()))[:SAID]


def environment(error: Exception) -> str:
    """What of the environment keeps any connection from being made, and how to mend it."""
    about, cure = "_proxy=", "A proxy is written http://HOST:PORT; set it so, or unset it."
    if isinstance(error, ImportError):
        about = "_proxy=socks"
        cure = "A SOCKS proxy needs the package socksio: pip install 'httpx[socks]', or unset it."
    elif isinstance(error, OSError):
        about, cure = "^ssl_cert", "No certificates can be read there; set or unset it."
    pairs = sorted(os.environ.items())
    names = [k for k, v in pairs if re.search(about, f"{k}={v}", re.IGNORECASE)]
    return f"{' or '.join(names)} in the environment cannot be used. {cure}"


def in_clear(host: str) -> bool:
    """Whether others than this machine see what is sent to a host by http."""
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    proxied = {"http", "all"} & getproxies().keys() and not proxy_bypass(host)
    return bool(proxied) or not here


def nothing_left(answer: httpx.Response) -> bool:
    """Whether it refuses since nothing is left to pay with, and not for haste."""
    text = answer.text
    rate = "Retry-After" in answer.headers or RATE.search(text)
    return bool(SPENT_CODE.search(text) or (not rate and SPENT_WORDS.search(text)))


def body_of(answer: httpx.Response) -> Any:
    """The JSON of an error; None where it is none."""
    if answer.status_code != 200:
        with suppress(ValueError, RecursionError):
            return answer.json()
    return None


def said(answer: httpx.Response, body: Any) -> str:
    """What an error's body says: our shape, OpenAI's, FastAPI's, the title of a page, or text."""
    for name in ("error", "detail", "message"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    if isinstance(body, list):  # FastAPI's, which echo what they were sent
        body = "; ".join(str(e.get("msg", "")) if isinstance(e, dict) else str(e) for e in body)
    text = body if isinstance(body, str) else str(body) if body else answer.text
    if PAGE.match(text):
        title = TITLE.search(text)
        text = html.unescape(title[1]) if title else ""
    return text.strip() or answer.reason_phrase


def seconds(header: str) -> float:
    """What `Retry-After` says, as seconds or as a date; 0 where it says nothing."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0
