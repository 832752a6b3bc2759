"""A line to a service that holds a model, and the client of our own server over it."""

import html
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import tenacity
import torch

from ..errors import BlackBoxError, BudgetSpent, first_line, printable
from . import wire
from .bill import UNITS
from .interface import Description, Images, Oracle, Refused
from .prompt import Prompt, Texts

KEY = "BLACKBOX_KEY"  # the environment variable that holds the key
BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses of what can be tried again
# what is said where nothing is left to pay with: by a code, or by words without any about a rate
SPENT = re.compile(
    r'(?is)"(code|type)":\s*"[\w.]*(insufficient_\w*(quota|credit|balance|fund)|billing|budget_ex)'
    r"|\A(?!.*((retry|again) (in|after)|retryDelay|per.?(second|minute|hour))).*"
    r"(insufficient[\w ]*[ _](balance|credit|quota|fund)"
    r"|balance[\w ]* (insufficient|too low|not enough)"
    r"|\b(used|out of|not enough|no|exceeded|reached)\b[\w ]* (credits|monthly|quota)"
    r"|limited to [\w, ]*(/|per) ?month)"
)
PAGE = re.compile(r"(?is).*?<title[^>]*>(?P<title>.*?)</title>|\s*<")
LONGEST = 10.0  # seconds between two tries, unless the service says more
BACKOFF = tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST)
LARGEST, UPLOAD = 2**30, 2**24  # bytes of an answer; of one request with images
SAID, AGAIN = 400, 100  # characters that are repeated of an error; tries to send what is missing


class RemoteBudgetSpent(BudgetSpent, Refused):
    """The budget that the service keeps for this key does not pay for the request."""


class Http:
    """Connections that are kept open to one service; threads may share it.

    A try is given up after `timeout` seconds without a byte, a request that fails again and again
    after `patience` seconds. The key is in the environment variable `BLACKBOX_KEY`.
    """

    def __init__(self, url: str, timeout: float, patience: float) -> None:
        self.url, self.patience, self.quiet = url, patience, 0.0  # until when nothing is tried
        self.advice = {413: "Smaller batches of DATALOADER put less into a request."}  # by status
        self.key = key = os.environ.get(KEY, "")
        if not key.isascii() or not key.isprintable():
            raise BlackBoxError(f"{KEY} holds characters that no header can: check it.")
        headers = {"Accept-Encoding": "identity"}  # a compressed answer has no bound
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            # a redirect would carry the key along
            self.client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)
        except Exception as e:  # which all come of the environment, and may repeat a password
            names = [name for name in sorted(os.environ) if re.search("(?i)_proxy$|^ssl_", name)]
            told = f"The environment allows no connection: check {', '.join(names)}. A proxy is"
            raise BlackBoxError(f"{told} http://HOST:PORT, or needs 'httpx[socks]' of pip.") from e
        host = urlsplit(url).hostname or ""
        proxied = {"http", "all"} & getproxies().keys() and not proxy_bypass(host)
        here = re.fullmatch(r"localhost|127\.[\d.]+|::1", host) and not proxied
        if key and url.startswith("http:") and not here:
            print(f"Note: the key in {KEY} crosses the network in clear; use https:// if you can")

    def ask(self, method: str, path: str, **request: Any) -> bytes:
        """The body that answers a request (arguments of `httpx.Client.stream`), which is made again
        while the service is not there, is busy, or what crosses is damaged; Refused (also as
        RemoteBudgetSpent) for what a repetition does not change, or BlackBoxError at the end.
        """

        def note(state: tenacity.RetryCallState) -> None:
            if state.outcome and (state.attempt_number == 6 or state.upcoming_sleep > LONGEST):
                why = self.quoted(str(state.outcome.exception()))
                print(f"Waiting for {self.url} ({why})", file=sys.stderr)

        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(httpx.TransportError),
            stop=tenacity.stop_after_delay(self.patience),
            wait=lambda state: max(BACKOFF(state), self.quiet - time.monotonic()),
            before_sleep=note,
            reraise=True,
        )
        try:
            return again(self.once, method, path, **request)
        except httpx.TransportError as e:
            why = self.quoted(first_line(e))
            told = f"{self.url} gave no answer within {self.patience:g} seconds ({why}): check"
            raise BlackBoxError(f"{told} ORACLE.URL, or raise ORACLE.PATIENCE and go on.") from e

    def once(self, method: str, path: str, **request: Any) -> bytes:
        """One try; httpx.TransportError where another may be answered otherwise."""
        url, content = urlsplit(self.url), bytearray()
        url = url._replace(path=url.path.rstrip("/") + path if path else url.path)
        with self.client.stream(method, url.geturl(), **request) as answer:
            status, headers = answer.status_code, answer.headers
            plain = (coding := headers.get("Content-Encoding", "identity")) == "identity"
            for part in answer.iter_raw() if plain else ():
                content += part
                if len(content) > LARGEST:
                    raise BlackBoxError(f"{self.url} sends more than {LARGEST:,} bytes.")
        if status == 200 and not plain:  # an error's words are only left out
            told = f"{self.url} compresses its answer ({self.quoted(coding)}), which is not read"
            raise BlackBoxError(f"{told}: turn that off, there or in the proxy before it.")
        if plain and headers.get(wire.DIGEST, "") not in ("", wire.digest_of(content)):
            raise httpx.TransportError("the answer is damaged")
        if status == 200:
            return bytes(content)
        text, later, body = content.decode(errors="replace"), headers.get("Retry-After", ""), None
        with suppress(ValueError, RecursionError):
            body = json.loads(text)
        words = self.quoted(said(body, text)) or answer.reason_phrase
        heard = f"retry after {later} {text}" if later else text
        if status == 402 or (status in (400, 403, 429) and SPENT.search(heard[:10_000])):
            spent = f"{self.url} refuses, since a budget is spent: {words.rstrip('.')}."
            raise RemoteBudgetSpent(spent, status, body)
        if status in BUSY or (status == 400 and f'"code": "{wire.DAMAGED}"' in text):
            with suppress(ValueError):
                self.quiet = time.monotonic() + min(float(later), self.patience)
            raise httpx.TransportError(f"{status}: {words}")
        if answer.has_redirect_location:
            words = f"it points to {self.quoted(headers['Location'])}, where no key is carried"
        check = f"Check ORACLE.URL, ORACLE.API and {KEY}{'' if self.key else ', which is not set'}."
        more = self.advice.get(status, check if status in (401, 403, 404) or status < 400 else "")
        told = f"{answer.url} answers {status}: {words.rstrip('.')}. {more}".rstrip()
        raise Refused(told, status, body)

    def quoted(self, text: str) -> str:
        """What a service says, for an error: in one printable line, cut short, without the key."""
        if self.key:
            forms = self.key, quote(self.key, ""), html.escape(self.key), json.dumps(self.key)[1:-1]
            text = re.sub("|".join(map(re.escape, forms)), "…", text, flags=re.IGNORECASE)
        return printable(" ".join(text.split()))[:SAID]


def said(body: Any, text: str) -> str:
    """What an error says: our JSON, OpenAI's, FastAPI's, the title of a page, or its text."""
    for name in ("error", "detail", "message"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    if isinstance(body, list) and body and isinstance(body[0], dict):
        body = body[0].get("msg")  # FastAPI's echo what they were sent
    page = PAGE.match(str(body or text))
    return html.unescape(page["title"] or "") if page else str(body or text)


class RemoteOracle(Oracle):
    """Asks a server of `dassl_blackbox.serve`; no weight comes to this side.

    Texts and images are named by content. A server that does not know a name says so, and is sent
    the content: one that was started anew goes on where it was. It must hold the model that the
    name says (`MODEL.BACKBONE.NAME`), and let out what `ORACLE.TOP_K` says.
    """

    classes: Texts
    remedy = "Its owner grants it, by the server's --grants or among the grants of your key."

    def __init__(
        self, line: Http, device: torch.device, name: str, client: str, top_k: int = 0
    ) -> None:
        self.line, self.device, self.client = line, device, client
        answer = line.ask("GET", "/v1/description")
        try:
            about = json.loads(answer)
            self.description = Description(**about["model"])
            self.grants, self.most = frozenset(about["grants"]), int(about["max_bytes"])
            held = self.description.name, about["top_k"]
        except (ValueError, LookupError, TypeError) as e:
            raise BlackBoxError(f"{line.url} is no dassl_blackbox.serve: check ORACLE.API.") from e
        if held != (name, top_k):
            told = f"{line.url} holds {held[0]!r} with ORACLE.TOP_K {held[1]}, not {name!r} with"
            raise BlackBoxError(f"{told} {top_k}: set MODEL.BACKBONE.NAME and ORACLE.TOP_K.")

    def allowance(self) -> dict[str, int]:
        used = json.loads(self.line.ask("GET", "/v1/usage"))
        limits = {unit: used[f"max_{unit}"] for unit in UNITS}
        return {unit: max(0, most - used[unit]) for unit, most in limits.items() if most}

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        wire.whole_texts(names, template)
        self.classes = Texts.of(names, template)
        self.send_texts(self.classes)

    def embed(self, words: str) -> torch.Tensor:
        answer = self.line.ask("GET", "/v1/embedding", params={"words": words})
        return wire.unpack(answer)[0]["answer"].to(self.device)

    def upload(self, images: torch.Tensor) -> Images:
        self.description.check_images(images)
        return wire.Contents(wire.as_8bit(images, self.description))

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        return self.ask("/v1/query", images, prompt, len(images))

    def image_features(self, images: Images) -> torch.Tensor:
        return self.asked("/v1/features/images", images, None)

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        return self.ask("/v1/features/texts", None, prompt, self.description.embed_dim)

    def ask(self, path: str, images: Images | None, prompt: Prompt, numbers: int) -> torch.Tensor:
        """So many numbers a candidate and text, in as many requests as the server's bound wants."""
        answer = numbers * len(self.classes) * torch.float32.itemsize
        sent = sum(part.nbytes for part in prompt.tensors().values()) // len(prompt)
        at_once = max(1, self.most // (2 * max(1, answer, sent)))  # half is left for names
        if prompt.texts is not None:  # which each request would be charged for
            at_once = len(prompt)
        answers: list[torch.Tensor] = []
        for part in prompt.split(at_once):
            try:
                answers.append(self.asked(path, images, part))
            except Refused as e:
                if not answers:
                    raise
                kind = BudgetSpent if isinstance(e, BudgetSpent) else BlackBoxError
                raise kind(str(e)) from e  # no refusal: those before it are billed
        return torch.cat(answers)

    def asked(self, path: str, images: Images | None, prompt: Prompt | None) -> torch.Tensor:
        """The answer to one request, which goes under one name until it is answered."""
        tensors, about = {}, dict[str, Any]()
        if prompt is not None:
            tensors = prompt.tensors()
            about = {"classes": self.classes.id, "texts": getattr(prompt.texts, "id", None)}
        if isinstance(images, wire.Contents) and "pictures" not in tensors:
            about["images"] = images.ids
        body, name, tries = wire.pack(tensors, about), uuid.uuid4().hex, 0
        while True:
            try:
                return wire.unpack(self.send(path, body, name))[0]["answer"].to(self.device)
            except Refused as e:
                missing = e.body.get("missing") if isinstance(e.body, dict) else None
                tries += 1
                if e.status != 404 or missing is None or tries > AGAIN:
                    raise
            if isinstance(images, wire.Contents) and missing["images"]:
                self.send_images(images, missing["images"])
            for texts in (self.classes, prompt.texts) if prompt is not None else ():
                if texts is not None and texts.id in missing["texts"]:
                    self.send_texts(texts)

    def send(self, path: str, body: bytes, name: str) -> bytes:
        named = {"Content-Type": wire.MEDIA, wire.REQUEST: name, wire.DIGEST: wire.digest_of(body)}
        return self.line.ask("POST", path, content=body, headers=named)

    def send_images(self, images: wire.Contents, names: Sequence[str]) -> None:
        place = {name: i for i, name in enumerate(images.ids)}
        rows = torch.tensor([place[name] for name in names], dtype=torch.long)
        each = min(UPLOAD, self.most // 2) // max(1, images.pixels[:1].nbytes)
        for part in rows.split(max(1, each)):
            self.send("/v1/images", wire.pack({"images": images.pixels[part]}), uuid.uuid4().hex)

    def send_texts(self, texts: Texts) -> None:
        body = {"names": texts.names, "template": texts.template}
        self.line.ask("POST", "/v1/texts", json=body)
