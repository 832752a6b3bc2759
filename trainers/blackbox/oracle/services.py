"""A model behind HTTP: the line to it, the client of our own server, and services of others."""

import base64
import hashlib
import html
import io
import json
import math
import os
import re
import sys
import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import finalize

import httpx
import numpy as np
import tenacity
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import BlackBoxError, BudgetSpent, first_line, printable
from . import wire
from .bill import UNITS
from .interface import Description, Images, Oracle, Questions, Refused
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


class RemoteBudgetSpent(BudgetSpent, Refused):
    """The budget that the service keeps for this key does not pay for the request."""


class Http:
    """Connections that threads may share, with ORACLE's `TIMEOUT` and `PATIENCE` in seconds."""

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
        finalize(self, self.client.close)
        host = urlsplit(url).hostname or ""
        proxied = {"http", "all"} & getproxies().keys() and not proxy_bypass(host)
        here = re.fullmatch(r"localhost|127\.[\d.]+|::1", host) and not proxied
        if key and url.startswith("http:") and not here:
            print(f"Note: the key in {KEY} crosses the network in clear; use https:// if you can")

    def ask(self, method: str, path: str, **request: Any) -> bytes:
        """The body that answers a request of httpx, made anew unless that is vain: then Refused."""
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(httpx.TransportError),
            stop=tenacity.stop_after_delay(self.patience),
            wait=lambda state: max(BACKOFF(state), self.quiet - time.monotonic()),
            before_sleep=self.note,
            reraise=True,
        )
        try:
            return again(self.once, method, path, **request)
        except httpx.TransportError as e:
            why = self.quoted(first_line(e))
            told = f"{self.url} gave no answer within {self.patience:g} seconds ({why}): check"
            raise BlackBoxError(f"{told} ORACLE.URL, or raise ORACLE.PATIENCE and go on.") from e

    def note(self, state: tenacity.RetryCallState) -> None:
        if state.outcome and (state.attempt_number == 6 or state.upcoming_sleep > LONGEST):
            why = self.quoted(str(state.outcome.exception()))
            print(f"Waiting for {self.url} ({why})", file=sys.stderr)

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
        error = body.get("error") if isinstance(body, dict) else None
        damaged = isinstance(error, dict) and error.get("code") == wire.DAMAGED
        words = self.quoted(said(body, text)) or answer.reason_phrase
        heard = f"retry after {later} {text}" if later else text
        if status == 402 or (status in (400, 403, 429) and SPENT.search(heard[:10_000])):
            spent = f"{self.url} refuses, since a budget is spent: {words.rstrip('.')}."
            raise RemoteBudgetSpent(spent, status, body)
        if status in BUSY or (status == 400 and damaged):
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
        return printable(" ".join(text.split()))[:400]


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
    the content: one that was started anew goes on where it was.
    """

    classes: Texts
    remedy = "Its owner grants it, by the server's --grants or among the grants of your key."

    def __init__(
        self, line: Http, device: torch.device, name: str, client: str, top_k: int = 0
    ) -> None:
        self.line, self.device, self.client = line, device, client
        try:
            about = json.loads(line.ask("GET", "/v1/description"))
            self.description = Description(**about["model"])
            self.grants, self.most = frozenset(about["grants"]), int(about["max_bytes"])
            held = self.description.name, about["top_k"]
        except (ValueError, LookupError, TypeError) as e:
            raise BlackBoxError(f"{line.url} is no dassl_blackbox.serve: check ORACLE.API.") from e
        if name != line.url and held != (name, top_k):  # a URL stands for what it holds
            told = f"{line.url} holds {held[0]!r} with ORACLE.TOP_K {held[1]}, not {name!r} with"
            raise BlackBoxError(f"{told} {top_k}: set MODEL.BACKBONE.NAME and ORACLE.TOP_K.")

    def allowance(self) -> dict[str, int]:
        used = json.loads(self.line.ask("GET", "/v1/usage"))
        return {u: max(0, used[f"max_{u}"] - used[u]) for u in UNITS if used[f"max_{u}"]}

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.classes = Texts.of(names, template)
        wire.whole_texts(self.classes)
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
        fit = max(1, self.most // (2 * max(1, answer, sent)))  # half is left for names
        at_once = fit if prompt.texts is None else len(prompt)  # each would be charged for texts
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
        body, name, tries = wire.pack(tensors, about), os.urandom(16).hex(), 0
        while True:
            try:
                return wire.unpack(self.send(path, body, name))[0]["answer"].to(self.device)
            except Refused as e:
                missing = e.body.get("missing") if isinstance(e.body, dict) else None
                tries += 1
                if e.status != 404 or missing is None or tries > 100:
                    raise
            if isinstance(images, wire.Contents) and missing["images"]:
                place = {name: i for i, name in enumerate(images.ids)}
                rows = torch.tensor([place[name] for name in missing["images"]])
                each = min(UPLOAD, self.most // 2) // max(1, images.pixels[:1].nbytes)
                for part in rows.split(max(1, each)):
                    self.send("/v1/images", wire.pack({"images": images.pixels[part]}))
            for texts in (self.classes, prompt.texts) if prompt is not None else ():
                if texts is not None and texts.id in missing["texts"]:
                    self.send_texts(texts)

    def send(self, path: str, body: bytes, name: str = "") -> bytes:
        headers = {wire.REQUEST: name or os.urandom(16).hex(), wire.DIGEST: wire.digest_of(body)}
        headers["Content-Type"] = wire.MEDIA
        return self.line.ask("POST", path, content=body, headers=headers)

    def send_texts(self, texts: Texts) -> None:
        self.line.ask("POST", "/v1/texts", json={"names": texts.names, "template": texts.template})


FEW, UNLIKE = 8, 4.0  # pictures whose answers are compared; their mean difference in 255 levels
ALIKE, ROUNDING = 0.99, 1e-6  # cosine of two answers of one model to one question; of a cosine


class ServiceOracle(Oracle):
    """A model behind a service that takes words and pictures, and lets out features or scores.

    What it does not tell is taken from the configuration: size and normalisation of pictures, which
    are sent as PNG files, the temperature, the model's name. Answers are kept by content. One's own
    is a subclass of FeatureService or ScoreService, of ten lines: docs/REMOTE.md has an example.
    """

    classes: Texts
    batch = 0  # pictures or texts of a call; 0: as ORACLE.BATCH says
    width = 0  # E of features, once it is known
    description: Description = property(lambda self: self.told)  # type: ignore[assignment]
    send: Callable[[str, list, Sequence[str]], torch.Tensor]  # the numbers `[N, ·]` of one call
    remedy = "A service takes words and pictures alone: choose a method such as SONAR."

    def __init__(self, cfg: Any, device: Any, client: str) -> None:
        node, given, self.model = cfg.ORACLE, cfg.INPUT, cfg.MODEL.BACKBONE.NAME
        self.device, self.client = torch.device(device), client
        self.price, self.token_price, self.spelling = node.PRICE, node.PRICE_TOKENS, node.IMAGES
        self.batch, self.threads = self.batch or node.BATCH, node.THREADS
        self.line = Http(node.URL, node.TIMEOUT, node.PATIENCE)
        less = "Fewer texts, or a smaller INPUT.SIZE or ORACLE.BATCH puts less into a request."
        self.line.advice = dict.fromkeys((413, 422), less)
        size, mean, std = map(tuple, (given.SIZE, given.PIXEL_MEAN, given.PIXEL_STD))
        told = self.model, size, mean, std, given.INTERPOLATION, node.LOGIT_SCALE
        self.told = Description(*told, fingerprint=hashed(node.API, self.model))
        self.owner = hashed(node.API, node.URL.rstrip("/"), self.model, self.spelling)
        self.answers: Any = {}  # float32 rows as bytes, by owner, kind and content
        try:
            if node.CACHE:
                self.answers = wire.open_cache(Path(node.CACHE).expanduser().absolute() / "answers")
                finalize(self, self.answers.close)
        except Exception as e:  # the system's, sqlite3's, diskcache's own
            print(f"Note: answers are not kept in ORACLE.CACHE, {node.CACHE} ({first_line(e)})")
        self.lock = threading.Lock()  # of the counts
        self.tally = Counter(calls=0, pictures=0, texts=0, pictures_cached=0, texts_cached=0)
        self.first = list[tuple[torch.Tensor, torch.Tensor]]()  # few pictures, and their answers

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.classes = Texts.of(names, template)
        _ = wire.whole_texts(self.classes), self.description

    def texts_of(self, prompt: Prompt) -> list[str]:
        """The C class texts, and the prompt's M further ones behind them."""
        self.require(*prompt.grants)
        return wire.whole_texts(self.classes, *([prompt.texts] if prompt.texts else []))

    def upload(self, images: torch.Tensor) -> wire.Contents:
        self.told.check_images(images)
        return wire.Contents(wire.to_8bit(images, self.told))

    def shown(self, images: Images, prompt: Prompt, texts: Sequence[str] = ()) -> torch.Tensor:
        """Answers `[1, B, ·]` about the images, or `[P, B, ·]` about the prompt's pictures."""
        size, kept = len(images), self.answers
        if prompt.pictures is not None:
            images, kept = self.upload(prompt.pictures.flatten(0, 1)), {}
        assert isinstance(images, wire.Contents)  # of this oracle's own upload
        named = zip(images.ids, images.pixels, strict=True)
        return self.rows(kept, "pictures", named, texts).unflatten(0, (-1, size))

    def rows(self, kept: Any, kind: str, named: Any, texts: Sequence[str] = ()) -> torch.Tensor:
        """Answers `[N, ·]` that are kept, or are from then on, about "texts" or "pictures" with
        names, each sent once. Where a call fails, those on their way are waited for and counted.
        """
        about = hashed("scores", *texts) if texts else kind
        pairs = [(hashed(self.owner, about, name), item) for name, item in named]
        found = {key: row for key in dict(pairs) if (row := kept.get(key))}
        new = {key: item for key, item in pairs if key not in found}
        self.tally[f"{kind}_cached"] += len(pairs) - len(new)
        look = kind == "pictures"

        def ask(part: list[str]) -> None:
            sent = [new[key] for key in part]
            answers = self.called(kind, list(map(png, sent)) if look else sent, texts)
            if look and len(self.first) < FEW:  # before more are paid for
                compared(self.first, zip(sent, answers, strict=True))
                if len(self.first) == FEW and not self.sees():
                    told = f"{self.line.url} answers, but not about what pictures show: it may read"
                    raise BlackBoxError(f"{told} texts alone or not ORACLE.IMAGES {self.spelling}.")
            for key, row in zip(part, answers, strict=True):
                found[key] = kept[key] = row.numpy().tobytes()

        parts = [list(new)[i : i + self.batch] for i in range(0, len(new), self.batch)]
        while parts and look and len(self.first) < FEW:
            ask(parts.pop(0))
        # several calls about many pictures each would time out where one takes long
        with ThreadPoolExecutor(1 if look and self.batch > 1 else self.threads) as pool:
            list(pool.map(ask, parts))
        rows = bytearray().join(found[key] for key, _ in pairs)
        return torch.frombuffer(rows, dtype=torch.float32).view(len(pairs), -1).to(self.device)

    def sees(self) -> bool:
        """Whether not all first answers are the same, but for scores that are nearly 1."""
        first, *others = (answer for _, answer in self.first)
        same = [row.shape == first.shape and torch.allclose(row, first) for row in others]
        return not all(same) or first.max().item() > math.log(0.99)

    def post(self, path: str, body: Any, parse: Callable[[Any], Any] = lambda found: found) -> Any:
        """What `parse` makes of the JSON that answers this JSON at a path behind `ORACLE.URL`."""
        answer = json.loads(self.line.ask("POST", path, json=body))
        with suppress(LookupError, TypeError, ValueError, OverflowError), self.lock:
            self.tally["tokens"] += max(0, int(answer["usage"]["total_tokens"]))  # where told
        return parse(answer)

    def called(self, kind: str, items: list, texts: Sequence[str] = ()) -> torch.Tensor:
        """The numbers `[N, ·]` of a call; one whose answer cannot be read is made twice."""
        n, width = len(items), len(texts) or self.width  # 0 for any
        for _ in range(2):
            try:
                answer: Any = self.send(kind, items, texts)
            except BlackBoxError:
                raise
            except Exception as e:  # whatever a parser raises
                answer = e
            with self.lock:  # in any case, since it may be billed
                self.tally.update({"calls": 1, kind: n}, texts=n * len(texts))
            if isinstance(answer, torch.Tensor):
                rows = answer.detach().cpu()
                if rows.shape == (n, width or rows.shape[-1]) and rows.isfinite().all():
                    return rows
                told = f"answers {list(rows.shape)} numbers, not [{n}, {width or 'E'}] finite ones"
                raise BlackBoxError(f"{self.line.url} {told}. Has {self.model} one space for all?")
        what = self.line.quoted(f"{type(answer).__name__}: {first_line(answer)}")
        told = f"{self.line.url} answers, but not as expected ({what}): check ORACLE.URL,"
        raise BlackBoxError(f"{told} ORACLE.API and ORACLE.IMAGES.") from answer

    def usage(self) -> dict[str, int | float]:
        return self.priced(**self.tally)

    def quote(self, asked: Questions) -> dict[str, int | float]:
        """A batch that is a size is of pictures that are neither known nor like each other."""
        sample = self.answers.get(hashed(self.owner, "sample"))  # of an earlier process
        owner = hashed(self.owner, sample.hex()) if sample else self.owner
        embeds, first = "features" in self.grants, [*self.first]
        seen, unseen, sent = set[str](), 0, Counter(calls=0, pictures=0, texts=0)

        def new(kind: str, names: Sequence[str], items: Any) -> list[Any]:
            keys = [hashed(owner, kind, name) for name in names]
            found = {key: item for key, item in zip(keys, items, strict=True) if key not in seen}
            seen.update(keys)
            return [item for key, item in found.items() if not self.answers.get(key)]

        for batches, lists in asked:
            texts = list(dict.fromkeys(wire.whole_texts(*lists)))
            if embeds:
                count = len(new("texts", texts, texts))
                sent.update(calls=-(-count // self.batch), texts=count)
                texts = []
            kind = "pictures" if embeds else hashed("scores", *texts)
            for batch in batches:
                if isinstance(batch, int):
                    count, unseen = batch, unseen + batch
                else:
                    shown = self.upload(batch)
                    pictures = new(kind, shown.ids, shown.pixels)
                    count = len(pictures)
                    compared(first, zip(pictures, pictures, strict=True))
                sent.update(calls=-(-count // self.batch), pictures=count, texts=count * len(texts))
        if embeds and asked:  # see `sees`, and the sample
            again, one = len(self.first) < FEW <= len(first) + unseen, not self.width
            sent.update(calls=again + one, pictures=again, texts=one)
        return self.priced(**sent)

    def priced(self, **sent: int) -> dict[str, int | float]:
        """What was sent, or would be, and its price in money where that is known."""
        if not (self.price or self.token_price) or (self.token_price and "tokens" not in sent):
            return {**sent}
        tokens = self.token_price * sent.get("tokens", 0) / 1e6
        return {**sent, "money": round(self.price * sent["pictures"] + tokens, 6)}


class FeatureService(ServiceOracle):
    """Grants logits (`ORACLE.LOGIT_SCALE` times the cosine) and features.

    A subclass has `embed_texts` and `embed_images`, which mostly call `post`. A text is embedded at
    the start: it tells E, and whether the cache is of another model.
    """

    grants = frozenset({"features", "logits"})

    @cached_property
    def description(self) -> Description:  # type: ignore[override]
        sample = self.called("texts", ["a photo of a dog."])[0]
        self.width, fresh = len(sample), sample.numpy().tobytes()
        key = hashed(self.owner, "sample")
        kept = self.answers.get(key) or fresh
        if len(kept) != len(fresh) or np.frombuffer(kept, np.float32) @ sample.numpy() < ALIKE:
            print(f"Note: {self.line.url} no longer holds the {self.model} of ORACLE.CACHE")
            kept = fresh
        self.answers[key] = kept
        self.owner = hashed(self.owner, kept.hex())
        return replace(self.told, embed_dim=self.width)

    @abstractmethod
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Features `[M, E]` of at most `ORACLE.BATCH` texts; they need not be normalised."""

    @abstractmethod
    def embed_images(self, pictures: list[bytes]) -> torch.Tensor:
        """Features `[B, E]` of at most `ORACLE.BATCH` PNG files; they need not be normalised."""

    def send(self, kind: str, items: list, texts: Sequence[str]) -> torch.Tensor:
        embed = self.embed_texts if kind == "texts" else self.embed_images
        return F.normalize(torch.as_tensor(embed(items)).float(), dim=-1)

    def sees(self) -> bool:
        """Whether the first is nearest to itself in a file of other bytes, which texts embed."""
        first, *others = (answer for _, answer in self.first)
        again = self.called("pictures", [png(self.first[0][0], compress_level=0)])[0]
        nearest = max((first @ other).item() for other in others)
        return (first @ again).item() > max(ALIKE, nearest + ROUNDING)

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        text = self.text_features(prompt)[0]
        image = self.shown(images, prompt)
        return (self.description.logit_scale * image @ text.mT).expand(len(prompt), -1, -1)

    def image_features(self, images: Images) -> torch.Tensor:
        return self.shown(images, Prompt())[0]

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        named = [(text, text) for text in self.texts_of(prompt)]
        return self.rows(self.answers, "texts", named).expand(len(prompt), -1, -1)


class ScoreService(ServiceOracle):
    """Grants logits: log-probabilities, which are the model's logits less a number an image.

    Of scores that are independent of each other, as SigLIP's sigmoids are, only the order is that
    of logits. A subclass has `score`, about one picture and all texts, each of them once.
    """

    grants = frozenset({"logits"})
    batch = 1

    @abstractmethod
    def score(self, picture: bytes, texts: list[str]) -> torch.Tensor:
        """Log-probabilities `[M]` of a PNG file on M different texts, in their order."""

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        asked = self.texts_of(prompt)
        place = {text: i for i, text in enumerate(dict.fromkeys(asked))}
        logits = self.shown(images, prompt, list(place))
        return logits[..., [place[text] for text in asked]].expand(len(prompt), -1, -1)

    def send(self, kind: str, items: list, texts: Sequence[str]) -> torch.Tensor:
        lowest = math.log(torch.finfo(torch.float32).tiny)  # of a probability that underflowed
        return torch.as_tensor(self.score(items[0], list(texts))).clamp_min(lowest).float()[None]


class OpenAIService(FeatureService):
    """`POST {ORACLE.URL}/embeddings`, with pictures as `ORACLE.IMAGES` says:

    modality   {"input": ["data:image/png;base64,…"], "modality": "image"}     (Infinity)
    items      {"input": [{"image": "…"}]}, texts {"input": [{"text": "…"}]}   (Jina)
    data_uri   {"input": ["data:image/png;base64,…"]}                          (LiteLLM)
    """

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        return self.embedded("text", texts)

    def embed_images(self, pictures: list[bytes]) -> torch.Tensor:
        ahead = "" if self.spelling == "items" else "data:image/png;base64,"
        return self.embedded("image", [ahead + base64.b64encode(p).decode() for p in pictures])

    def embedded(self, modality: str, items: list[str]) -> torch.Tensor:
        body: dict[str, Any] = {"model": self.model, "input": items}
        if self.spelling == "items":
            body["input"] = [{modality: item} for item in items]
        elif self.spelling == "modality":
            body |= {"modality": modality, "encoding_format": "base64"}
        data, places = self.post("/embeddings", body)["data"], list(range(len(items)))
        order = [entry.get("index") for entry in data]
        order = places if order == [None] * len(places) else order  # they are in order
        if len(order) != len(places) or {*order} != {*places}:
            raise ValueError(f"an index of {str(order)[:60]}, not of 0 to {len(places) - 1}")
        rows = [data[order.index(place)]["embedding"] for place in places]
        if isinstance(rows[0], str):  # base64 of little-endian float32
            rows = [np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in rows]
        return torch.from_numpy(np.asarray_chkfinite(np.stack(rows), np.float32))


class HuggingFaceService(ScoreService):
    """The task zero-shot-image-classification at `ORACLE.URL`, the whole address of an endpoint."""

    def score(self, picture: bytes, texts: list[str]) -> torch.Tensor:
        asked = {"candidate_labels": texts, "hypothesis_template": "{}"}
        body = {"inputs": base64.b64encode(picture).decode(), "parameters": asked}
        scores = {entry["label"]: float(entry["score"]) for entry in self.post("", body)}
        found = torch.tensor([scores[text] for text in texts], dtype=torch.float64)
        if not ((found >= 0) & (found < 1 + 1e-3)).all():
            raise ValueError("scores that are not between 0 and 1")
        return found.log()


def compared(first: list[Any], shown: Iterable[tuple[torch.Tensor, Any]]) -> None:
    """Put pictures with their answers among the first few, if they look unlike the very first."""
    for picture, answer in shown:
        far = not first or (picture.float() - first[0][0].float()).abs().mean() >= UNLIKE
        if far and len(first) < FEW:
            first.append((picture, answer))


def hashed(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def png(picture: torch.Tensor, **options: int) -> bytes:
    """A PNG file of 8-bit values `[3, H, W]`; the format loses nothing, with any options."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", **options)
    return file.getvalue()
