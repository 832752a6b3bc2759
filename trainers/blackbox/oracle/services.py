"""Models behind services: words and pictures go in, features or scores come out."""

import base64
import hashlib
import io
import json
import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import BlackBoxError, first_line
from .interface import Description, Images, Oracle
from .prompt import Prompt
from .remote import Http
from .wire import Contents, open_cache, to_8bit, whole_texts

FEW = 8  # pictures whose answers are compared
UNLIKE = 4.0  # mean difference of two pictures that look unlike, in levels of 0 to 255
ALIKE, ROUNDING = 0.99, 1e-6  # cosine of two answers of one model to one question; of a cosine
TRIES = 2  # of a request whose answers cannot be read; each of them may be billed
SAMPLE = "a photo of a dog."  # a text that is asked about in every process
LOWEST = math.log(torch.finfo(torch.float32).tiny)  # about -87: of a probability that underflowed
CERTAIN = math.log(0.99)
Send = Callable[[list], torch.Tensor]


class ServiceOracle(Oracle):
    """A model behind a service that takes words and pictures, and lets out features or scores.

    What it does not tell is taken from the configuration: size and normalisation of pictures, which
    are sent as PNG files, the temperature, the model's name. Answers are kept by content. One's own
    is a subclass of FeatureService or ScoreService, of ten lines: docs/REMOTE.md has an example.
    """

    classes: list[str]
    advice = ""  # what to do where a request is too large
    batch = 0  # pictures or texts of a call; 0: as ORACLE.BATCH says
    remedy = "A service takes words and pictures alone: choose a method such as SONAR."

    def __init__(self, cfg: Any, device: Any, client: str) -> None:
        node, given, self.model = cfg.ORACLE, cfg.INPUT, cfg.MODEL.BACKBONE.NAME
        self.device, self.client = torch.device(device), client
        self.price, self.spelling = node.PRICE, node.IMAGES
        self.batch = self.batch or node.BATCH
        self.threads = node.THREADS if self.batch == 1 else 1
        self.line = Http(node.URL, node.TIMEOUT, node.PATIENCE)
        self.line.advice = {413: self.advice, 422: self.advice}
        size, mean, std = tuple(given.SIZE), tuple(given.PIXEL_MEAN), tuple(given.PIXEL_STD)
        told = self.model, size, mean, std, given.INTERPOLATION, node.LOGIT_SCALE
        self.description = Description(*told, fingerprint=hashed(node.API, self.model))
        self.owner = hashed(node.API, node.URL.rstrip("/"), self.model, self.spelling)
        self.answers: Any = {}  # float32 rows as bytes, by owner, kind and content
        try:
            if node.CACHE:
                self.answers = open_cache(Path(node.CACHE).expanduser().absolute() / "answers")
        except Exception as e:  # the system's, sqlite3's, diskcache's own
            print(f"Note: answers are not kept in ORACLE.CACHE, {node.CACHE} ({first_line(e)})")
        self.lock = threading.Lock()  # of the answers and the counts
        counts = "calls", "pictures", "texts", "pictures_cached", "texts_cached"
        self.tally = dict.fromkeys(counts, 0)
        self.first: list[tuple[torch.Tensor, torch.Tensor]] = []  # pictures and their answers

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.classes = whole_texts(names, template)

    def texts_of(self, prompt: Prompt) -> list[str]:
        """The C class texts, and the prompt's M further ones behind them."""
        self.require(*prompt.grants)
        more = prompt.texts
        return self.classes + (whole_texts(more.names, more.template) if more else [])

    def upload(self, images: torch.Tensor) -> Images:
        self.description.check_images(images)
        return Contents(to_8bit(images, self.description))

    def shown(self, kind: str, images: Images, prompt: Prompt, send: Send) -> torch.Tensor:
        """Answers `[1, B, ·]` about the images, or `[P, B, ·]` about the prompt's pictures."""
        size = len(images)
        if prompt.pictures is not None:
            kind, images = "", Contents(to_8bit(prompt.pictures.flatten(0, 1), self.description))
        assert isinstance(images, Contents)  # of this oracle's own upload
        return self.rows(kind, images.ids, images.pixels, send).unflatten(0, (-1, size))

    def rows(self, kind: str, names: Sequence[str], items: Any, send: Send) -> torch.Tensor:
        """Answers `[N, ·]` of one kind (""; not to be kept) about texts or pictures, each of which
        is sent once. Where a call fails, those on their way are waited for, counted and kept.
        """
        keys = [hashed(self.owner, kind, name) for name in names]
        kept = self.answers if kind else {}
        found = {key: row for key in set(keys) if (row := kept.get(key))}
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
        self.tally["texts_cached" if kind == "texts" else "pictures_cached"] += len(keys) - len(new)

        def ask(part: list[str]) -> None:
            sent = [new[key] for key in part]
            answers = send(sent if kind == "texts" else [png(picture) for picture in sent])
            if kind != "texts" and len(self.first) < FEW:
                self.look(sent, answers)
            with self.lock:
                for key, row in zip(part, answers, strict=True):
                    found[key] = kept[key] = row.numpy().tobytes()

        parts = [list(new)[i : i + self.batch] for i in range(0, len(new), self.batch)]
        while parts and (self.threads == 1 or len(self.first) < FEW):
            ask(parts.pop(0))
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(ask, parts))
        rows = bytearray().join(found[key] for key in keys)
        return torch.frombuffer(rows, dtype=torch.float32).view(len(keys), -1).to(self.device)

    def look(self, pictures: list[torch.Tensor], answers: torch.Tensor) -> None:
        """Compare the answers about a few pictures that look unlike, before more are paid for."""
        for picture, answer in zip(pictures, answers, strict=True):
            first = self.first[0][0].float() if self.first else math.inf
            if len(self.first) < FEW and (picture.float() - first).abs().mean() >= UNLIKE:
                self.first.append((picture, answer))
        if len(self.first) == FEW and not self.sees():
            told = f"{self.line.url} answers, but not about what pictures show: {self.model} may"
            raise BlackBoxError(f"{told} read texts alone, or not ORACLE.IMAGES {self.spelling}.")

    def sees(self) -> bool:
        """Whether not all first answers are the same, but for scores that are nearly 1."""
        first = self.first[0][1]
        same = [row.shape == first.shape and torch.allclose(row, first) for _, row in self.first]
        return not all(same) or first.max().item() > CERTAIN

    def post(self, path: str, body: Any, parse: Callable[[Any], Any]) -> Any:
        """What `parse` makes of the JSON that answers a request with this JSON, the path behind
        `ORACLE.URL`; where it raises, the request is made once more, but answers are billed.
        """
        for _ in range(TRIES):
            answer = self.line.ask("POST", path, json=body)
            try:
                return parse(json.loads(answer))
            except Exception as e:
                what = self.line.quoted(f"{type(e).__name__}: {first_line(e)}")
        keys = "ORACLE.URL, ORACLE.API and ORACLE.IMAGES"
        raise BlackBoxError(f"{self.line.url} answers, but not as expected ({what}): check {keys}.")

    def counted(self, answer: Any, width: int, pictures: int = 0, texts: int = 0) -> torch.Tensor:
        """The numbers `[N, width]` that answer a call, which is counted; a width of 0 is any."""
        rows, n = torch.as_tensor(answer).detach().float().cpu(), pictures or texts
        with self.lock:
            self.tally["calls"] += 1
            self.tally["pictures"] += pictures
            self.tally["texts"] += texts
        if rows.shape != (n, width or rows.shape[-1]) or not rows.isfinite().all():
            told = f"{self.line.url} answers {list(rows.shape)} numbers, not [{n}, {width or 'E'}]"
            raise BlackBoxError(f"{told} finite ones. Has {self.model} one space for all?")
        return rows

    def usage(self) -> dict[str, int | float]:
        paid = {"money": round(self.price * self.tally["pictures"], 6)} if self.price else {}
        return {**self.tally, **paid}

    def quote(self, pictures: int, texts: int) -> str:
        apart = texts if "features" in self.grants else 0
        calls = math.ceil(pictures / self.batch) + math.ceil(apart / self.batch)
        paid = f", {round(self.price * pictures, 4):,} by ORACLE.PRICE" if self.price else ""
        return f"about {calls:,} call(s), {pictures:,} picture(s){paid}"


class FeatureService(ServiceOracle):
    """Grants logits (`ORACLE.LOGIT_SCALE` times the cosine) and features.

    A subclass has `embed_texts` and `embed_images`, which mostly call `post`. A text is embedded at
    the start: it tells E, and whether the cache is of another model.
    """

    grants = frozenset({"features", "logits"})
    advice = "A smaller ORACLE.BATCH puts less into a request."

    def __init__(self, cfg: Any, device: Any, client: str) -> None:
        super().__init__(cfg, device, client)
        sample = self.sent_texts([SAMPLE])[0]
        self.description = replace(self.description, embed_dim=len(sample))
        key, fresh = hashed(self.owner, "sample"), sample.numpy().tobytes()
        kept = self.answers.get(key) or fresh
        if len(kept) != len(fresh) or np.frombuffer(kept, np.float32) @ sample.numpy() < ALIKE:
            print(f"Note: {self.line.url} no longer holds the {self.model} of ORACLE.CACHE")
            kept = fresh
        self.answers[key] = kept
        self.owner = hashed(self.owner, kept.hex())

    @abstractmethod
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Features `[M, E]` of at most `ORACLE.BATCH` texts; they need not be normalised."""

    @abstractmethod
    def embed_images(self, pictures: list[bytes]) -> torch.Tensor:
        """Features `[B, E]` of at most `ORACLE.BATCH` PNG files; they need not be normalised."""

    def sent_texts(self, texts: list[str]) -> torch.Tensor:
        rows, width = self.embed_texts(texts), self.description.embed_dim
        return F.normalize(self.counted(rows, width, texts=len(texts)), dim=-1)

    def sent_pictures(self, files: list[bytes]) -> torch.Tensor:
        rows, width = self.embed_images(files), self.description.embed_dim
        return F.normalize(self.counted(rows, width, pictures=len(files)), dim=-1)

    def sees(self) -> bool:
        """Whether the first is nearest to itself in a file of other bytes, which texts embed."""
        first, *others = [answer for _, answer in self.first]
        again = self.sent_pictures([png(self.first[0][0], compress_level=0)])[0]
        nearest = max((first @ other).item() for other in others)
        return (first @ again).item() > max(ALIKE, nearest + ROUNDING)

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        text = self.text_features(prompt)[0]
        image = self.shown("pictures", images, prompt, self.sent_pictures)
        return (self.description.logit_scale * image @ text.mT).expand(len(prompt), -1, -1)

    def image_features(self, images: Images) -> torch.Tensor:
        return self.shown("pictures", images, Prompt(), self.sent_pictures)[0]

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        texts = self.texts_of(prompt)
        return self.rows("texts", texts, texts, self.sent_texts).expand(len(prompt), -1, -1)


class ScoreService(ServiceOracle):
    """Grants logits: log-probabilities, which are the model's logits less a number an image.

    A softmax and an argmax do not see that number. Of scores that are independent of each other, as
    SigLIP's sigmoids are, only the order is that of logits. A subclass has `score`, which mostly
    calls `post`, about one picture and all texts, each once: classes of one text get one score.
    """

    grants = frozenset({"logits"})
    advice = "A smaller INPUT.SIZE, or fewer texts, put less into a request."
    batch = 1

    @abstractmethod
    def score(self, picture: bytes, texts: list[str]) -> torch.Tensor:
        """Log-probabilities `[M]` of a PNG file on M different texts, in their order."""

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        asked = self.texts_of(prompt)
        place = {text: i for i, text in enumerate(dict.fromkeys(asked))}
        texts = list(place)

        def send(files: list[bytes]) -> torch.Tensor:
            scores = torch.as_tensor(self.score(files[0], texts)).clamp_min(LOWEST)
            return self.counted(scores[None], len(texts), 1, len(texts))

        logits = self.shown(hashed("scores", *texts), images, prompt, send)
        return logits[..., [place[text] for text in asked]].expand(len(prompt), -1, -1)


class OpenAIService(FeatureService):
    """`POST {ORACLE.URL}/embeddings`, with pictures as `ORACLE.IMAGES` says:

    modality   {"input": ["data:image/png;base64,…"], "modality": "image"}     (Infinity)
    items      {"input": [{"image": "…"}]}, texts {"input": [{"text": "…"}]}   (Jina)
    data_uri   {"input": ["data:image/png;base64,…"]}                          (LiteLLM)
    """

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        items = [{"text": text} for text in texts] if self.spelling == "items" else texts
        return self.embedded(items, "text")

    def embed_images(self, pictures: list[bytes]) -> torch.Tensor:
        coded = [base64.b64encode(picture).decode() for picture in pictures]
        if self.spelling == "items":
            return self.embedded([{"image": code} for code in coded], "image")
        return self.embedded([f"data:image/png;base64,{code}" for code in coded], "image")

    def embedded(self, items: list, modality: str) -> torch.Tensor:
        body: dict[str, Any] = {"model": self.model, "input": items}
        if self.spelling == "modality":
            body |= {"modality": modality, "encoding_format": "base64"}

        def parse(answer: Any) -> torch.Tensor:
            data, count = answer["data"], len(items)
            order = [entry.get("index") for entry in data]
            if set(order) == {None}:  # they are in order
                order = list(range(len(data)))
            if len(data) != count or set(order) != set(range(count)):
                raise ValueError(f"an index of {str(order)[:60]}, not of 0 to {count - 1}")
            rows = [data[order.index(i)]["embedding"] for i in range(count)]
            if isinstance(rows[0], str):  # base64 of little-endian float32
                rows = [np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in rows]
            return torch.from_numpy(np.asarray_chkfinite(np.stack(rows), np.float32))

        return self.post("/embeddings", body, parse)


class HuggingFaceService(ScoreService):
    """The task zero-shot-image-classification at `ORACLE.URL`, the whole address of an endpoint."""

    def score(self, picture: bytes, texts: list[str]) -> torch.Tensor:
        asked = {"candidate_labels": texts, "hypothesis_template": "{}"}
        body = {"inputs": base64.b64encode(picture).decode(), "parameters": asked}

        def parse(answer: Any) -> torch.Tensor:
            scores = {entry["label"]: float(entry["score"]) for entry in answer}
            found = torch.tensor([scores[text] for text in texts], dtype=torch.float64)
            if not ((found >= 0) & (found < 1 + 1e-3)).all():
                raise ValueError("scores that are not between 0 and 1")
            return found.log()

        return self.post("", body, parse)


def hashed(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def png(picture: torch.Tensor, **options: int) -> bytes:
    """A PNG file of 8-bit values `[3, H, W]`; the format loses nothing, with any options."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", **options)
    return file.getvalue()
