"""Models behind services that exist: words and pictures go in, features or scores come out.

A service of one's own is a class in a file of one's own, `ORACLE.API my_module:MyService`:

    class MyService(FeatureService):
        def embed_texts(self, texts):
            return self.post("/words", {"words": texts}, lambda body: torch.tensor(body["rows"]))

        def embed_images(self, pictures):
            coded = [base64.b64encode(png).decode() for png in pictures]
            return self.post("/png", {"png": coded}, lambda body: torch.tensor(body["rows"]))
"""

from __future__ import annotations

import io
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import log
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import BlackBoxError, first_line
from .cache import AnswerCache, alike, hashed
from .http import Http, Transient
from .interface import Description, Images, NoClasses, Oracle
from .prompt import Prompt
from .wire import Contents, to_8bit

FEW = 8  # pictures whose answers are compared
UNLIKE = 4.0  # mean difference of two pictures that look unlike, in levels of 0 to 255
TRIES = 2  # of a request whose answers cannot be read; each of them may be billed
COUNTS = ("calls", "pictures", "texts", "pictures_cached", "texts_cached")
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
ROUNDING = 1e-6  # of a cosine
SAMPLE = "a photo of a dog."  # a text that is asked about in every process
SMALLEST = torch.finfo(torch.float32).tiny
LOWEST = log(SMALLEST)  # about -87: what a probability that underflowed counts as
CERTAIN = log(0.99)
Part = TypeVar("Part")
Parsed = TypeVar("Parsed")
Several = tuple[torch.Tensor, ...]


class ServiceOracle(Oracle):
    """A model behind a service that takes words and pictures, and lets out features or scores.

    What the service does not tell is taken from the configuration: the size, normalisation and
    interpolation of pictures (`INPUT`, undone before they are sent), the temperature
    (`ORACLE.LOGIT_SCALE`) and the model's name (`MODEL.BACKBONE.NAME`).

    Answers about pictures and texts are kept in this process and in the folder `ORACLE.CACHE`, by
    content. Pictures that a method changed are new each time, and nothing is kept of them. Where a
    call is about one picture, `ORACLE.THREADS` are made at a time.

    Args:
        cfg: Dassl configuration with our nodes.
        device: where answers are put.
        client: name of the method that asks, for error messages.
    """

    advice: str = ""  # what to do where a request is too large
    batch: int = 0  # pictures or texts of a call; 0: as ORACLE.BATCH says

    def __init__(self, cfg: Any, device: Any, client: str) -> None:
        node, given, self.model = cfg.ORACLE, cfg.INPUT, cfg.MODEL.BACKBONE.NAME
        self.line = Http(node.URL, node.TIMEOUT, node.PATIENCE)
        self.line.advice = {413: self.advice, 422: self.advice}
        self.device, self.client = torch.device(device), client
        self.price, self.spelling = node.PRICE, node.IMAGES
        self.batch = self.batch or node.BATCH
        self.threads = node.THREADS if self.batch == 1 else 1
        self.description = Description(
            name=self.model,
            image_size=tuple(given.SIZE),
            mean=tuple(given.PIXEL_MEAN),
            std=tuple(given.PIXEL_STD),
            interpolation=given.INTERPOLATION,
            logit_scale=node.LOGIT_SCALE,
            fingerprint=hashed(node.API, self.model),
        )
        owner = node.API, self.line.url.rstrip("/"), self.model, self.spelling
        self.answers = AnswerCache(node.CACHE, *owner)
        self.remedy = (
            f"The service {self.line.url} takes words and pictures and lets out nothing else. "
            f"Choose a method that needs no more, such as SONAR, or ask the model's owner for the "
            f"server of dassl_blackbox.serve, which can grant all."
        )
        self.lock = threading.Lock()  # of what follows, and of the answers
        self.tally = dict.fromkeys(COUNTS, 0)
        self.classes: list[str] = []
        self.first: list[tuple[torch.Tensor, torch.Tensor]] = []  # pictures and their answers

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.classes = whole_texts(names, template)

    def texts_of(self, prompt: Prompt) -> list[str]:
        """The C class texts, and the prompt's M further ones behind them."""
        if not self.classes:
            raise NoClasses
        if prompt.texts is None:
            return self.classes
        return self.classes + whole_texts(prompt.texts.names, prompt.texts.template)

    def upload(self, images: torch.Tensor) -> Images:
        """They are sent when they are first asked about, as PNG files; see `to_8bit`."""
        self.description.check_images(images)
        return Contents(to_8bit(images, self.description))

    def rows(
        self, kind: str, names: Sequence[str], send: Callable[[list[int]], torch.Tensor]
    ) -> torch.Tensor:
        """Answers `[N, ·]` about named contents, each of which is sent once.

        Args:
            kind: of the answers, which are kept by it and by name; "texts" are no pictures.
            names: of the N contents.
            send: gets numbers of contents of one call.
        """
        first: dict[str, int] = {}
        for i, name in enumerate(names):
            first.setdefault(name, i)
        found = {name: row for name in first if (row := self.answers.get(kind, name)) is not None}
        unknown = [name for name in first if name not in found]
        what = "texts_cached" if kind == "texts" else "pictures_cached"
        self.count(**{what: len(names) - len(unknown)})

        def ask(part: list[str]) -> None:
            fresh = send([first[name] for name in part])
            with self.lock:
                for name, row in zip(part, fresh, strict=True):
                    self.answers.put(row, kind, name)
                    found[name] = row

        self.each(ask, [unknown[i : i + self.batch] for i in range(0, len(unknown), self.batch)])
        return torch.stack([found[name] for name in names])

    def shown(
        self,
        kind: str,
        images: Images,
        prompt: Prompt,
        send: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Answers `[1, B, ·]` about the images, or `[P, B, ·]` about the pictures of the prompt, of
        which nothing is kept; `send` gets the 8-bit pictures of one call.
        """
        if prompt.pictures is None:
            assert isinstance(images, Contents)  # of this oracle's own upload
            pixels = images.pixels
            return self.rows(kind, images.ids, lambda part: send(pixels[part]))[None]
        parts = prompt.pictures.flatten(0, 1).split(self.batch)  # there may be gigabytes
        answers = self.each(lambda part: send(to_8bit(part, self.description)), parts)
        return torch.cat(answers).unflatten(0, prompt.pictures.shape[:2])

    def each(self, ask: Callable[[Part], Parsed], parts: Sequence[Part]) -> list[Parsed]:
        """What calls about parts give, in order: one after the other until `look` has seen enough,
        then as many at a time as there are threads.

        Where one fails, those that have not begun are not made; those that have are waited for, and
        are counted and kept as any.
        """
        done: list[Parsed] = []
        while len(done) < len(parts) and (self.threads == 1 or len(self.first) < FEW):
            done.append(ask(parts[len(done)]))
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                return done + list(pool.map(ask, parts[len(done) :]))
            except KeyboardInterrupt:
                self.line.ended.set()
                pool.shutdown()  # what is on its way is waited for, and kept
                self.line.ended.clear()
                raise

    def look(self, picture: torch.Tensor, answer: torch.Tensor) -> None:
        """Compare the answers about the first few pictures that look unlike the first one, before
        more of them are paid for; `picture` is of 8-bit values `[3, H, W]`.

        Raises:
            BlackBoxError: they are not about what the pictures show.
        """
        if len(self.first) == FEW:
            return
        if self.first and (picture.float() - self.first[0][0].float()).abs().mean() < UNLIKE:
            return
        self.first.append((picture, answer))
        if len(self.first) == FEW and not self.sees(*zip(*self.first, strict=True)):
            raise BlackBoxError(
                f"{self.line.url} answers, but not about what pictures show: different pictures "
                f"are answered alike, or one picture differently where its file is written "
                f"differently. {self.model} may read texts alone, or take pictures in another form "
                f"than ORACLE.IMAGES {self.spelling}: check both. {self.tally['pictures']:,} "
                f"pictures were sent."
            )

    @abstractmethod
    def sees(self, pictures: Several, answers: Several) -> bool:
        """Whether answers are about these pictures, all of which look unlike the first."""

    def post(self, path: str, body: Any, parse: Callable[[Any], Parsed]) -> Parsed:
        """What `parse` makes of the JSON that answers a request with this JSON.

        An exception of `parse` means that the answer is damaged: the request is made again, though
        not more than a few times, since a service bills what it answers.

        Args:
            path: behind `ORACLE.URL`, such as "/embeddings", or nothing.
            body: what is sent.
            parse: decoded JSON to numbers.

        Raises:
            BlackBoxError: the service refuses, cannot be reached, or answers otherwise.
        """
        url, tries = self.line.address(path), 0

        def read(answer: Any) -> Parsed:
            nonlocal tries
            tries += 1
            try:
                return parse(answer.json())
            except UNREADABLE as e:
                what = self.line.quoted(f"{type(e).__name__}: {first_line(e)}")
                if tries < TRIES:
                    raise Transient(f"the answer cannot be read, {what}") from e
                raise BlackBoxError(
                    f"{url} answers, but not as expected ({what}). Check ORACLE.URL, ORACLE.API "
                    f"and ORACLE.IMAGES."
                ) from e

        return self.line.ask("POST", path, read, json=body)

    def counted(self, answer: Any, shape: tuple[int, ...], **more: int) -> torch.Tensor:
        """The answer to a call, which is counted.

        Raises:
            BlackBoxError: it is of another shape, or has what is no number.
        """
        rows = torch.as_tensor(answer).detach().float().cpu()
        self.count(calls=1, **more)
        if rows.shape != shape or not rows.isfinite().all():
            what = " and ".join(f"{number} {name}" for name, number in more.items())
            raise BlackBoxError(
                f"{self.line.url} gives numbers {list(rows.shape)} of {what}, where {list(shape)} "
                f"is expected, all finite. Does {self.model} have one space for pictures and texts?"
            )
        return rows

    def count(self, **more: int) -> None:
        with self.lock:
            for name, number in more.items():
                self.tally[name] += number

    def usage(self) -> dict[str, int | float]:
        """Calls that were answered, pictures and texts that were sent in them, those that were not
        since their answers were kept, and with `ORACLE.PRICE` the money. A call that was tried
        again counts once.
        """
        paid = {"money": round(self.price * self.tally["pictures"], 6)} if self.price else {}
        return {**self.tally, **paid}

    def quote(self, pictures: int, texts: int) -> str:
        calls = -(-pictures // self.batch)
        if "features" in self.grants:  # texts are sent apart
            calls += -(-texts // self.batch)
        amount = self.price * pictures
        money = f"{amount:,.2f}" if amount >= 0.1 or not amount else f"{amount:.2g}"
        paid = f", {money} by ORACLE.PRICE" if self.price else ""
        return f"about {several(calls, 'call')}, {several(pictures, 'picture')}{paid}"


class FeatureService(ServiceOracle):
    """Grants logits and features. Logits are `ORACLE.LOGIT_SCALE` times the cosine.

    A service of one's own overrides `embed_texts` and `embed_images`, and mostly calls `post`. One
    text is embedded at the start: its length is that of all features, and where it differs from
    what is on disk, the service holds another model under the same name.
    """

    grants = frozenset({"features", "logits"})
    advice = "A smaller ORACLE.BATCH puts less into a request."

    def __init__(self, cfg: Any, device: Any, client: str) -> None:
        super().__init__(cfg, device, client)
        sample = self.sent(self.embed_texts, [SAMPLE], "texts")[0]
        self.description = replace(self.description, embed_dim=len(sample))
        if self.answers.belong(sample):
            print(
                f"Note: {self.line.url} no longer answers about {self.model} as ORACLE.CACHE has "
                f"it; what is kept there is of another model, and is passed over"
            )

    @abstractmethod
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Features `[M, E]` of at most `ORACLE.BATCH` texts; they need not be normalised."""

    @abstractmethod
    def embed_images(self, pictures: list[bytes]) -> torch.Tensor:
        """Features `[B, E]` of at most `ORACLE.BATCH` PNG files; they need not be normalised."""

    def sent(self, embed: Callable[[list], torch.Tensor], items: list, what: str) -> torch.Tensor:
        """Normalised features `[N, E]` of what is sent in one call, `N` at least 1."""
        rows = torch.as_tensor(embed(items))
        width = self.description.embed_dim or rows.shape[-1]
        return F.normalize(self.counted(rows, (len(items), width), **{what: len(items)}), dim=-1)

    def sent_pictures(self, content: torch.Tensor) -> torch.Tensor:
        rows = self.sent(self.embed_images, [png(picture) for picture in content], "pictures")
        for picture, row in zip(content, rows, strict=True):
            self.look(picture, row)
        return rows

    def sees(self, pictures: Several, answers: Several) -> bool:
        """Whether the first is nearest to itself in a file that is written otherwise.

        A model of texts that is given files as words embeds their bytes, not what they show.
        """
        first, others = answers[0], torch.stack(answers[1:])
        again = self.sent(self.embed_images, [png(pictures[0], compress_level=0)], "pictures")[0]
        return alike(first, again) and bool((others @ first).max() < again @ first - ROUNDING)

    def image_of(self, images: Images, prompt: Prompt) -> torch.Tensor:
        """Normalised features `[P or 1, B, E]`, float32."""
        return self.shown("pictures", images, prompt, self.sent_pictures).to(self.device)

    def text_of(self, prompt: Prompt) -> torch.Tensor:
        """Normalised features `[C + M, E]` of the class texts and the further ones."""
        texts = self.texts_of(prompt)

        def send(part: list[int]) -> torch.Tensor:
            return self.sent(self.embed_texts, [texts[i] for i in part], "texts")

        return self.rows("texts", texts, send).to(self.device)

    @torch.no_grad()
    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        self.require("logits", *prompt.grants)
        text, image = self.text_of(prompt), self.image_of(images, prompt)
        logits = self.description.logit_scale * image @ text.mT
        return logits.expand(len(prompt), -1, -1).contiguous()

    @torch.no_grad()
    def image_features(self, images: Images) -> torch.Tensor:
        self.require("features")
        return self.image_of(images, Prompt())[0]

    @torch.no_grad()
    def text_features(self, prompt: Prompt) -> torch.Tensor:
        self.require("features", *prompt.grants)
        return self.text_of(prompt).expand(len(prompt), -1, -1).clone()


class ScoreService(ServiceOracle):
    """Grants logits: log-probabilities, which are the model's logits less a number an image.

    The number is that of all texts of a request, further texts and class texts together. Cross
    entropy, a softmax and an argmax do not see it. A probability below the smallest normal number
    of float32 counts as that: about -87, beyond which the order of texts is lost. Scores that are
    independent of each other, as SigLIP's sigmoids are, do not sum to 1: their logarithm is
    `log sigmoid` of the logit, which keeps the order, but not the differences.

    A service of one's own overrides `score`, and mostly calls `post`. A call is about one picture,
    and all texts, each once: two classes of one text get one score.
    """

    grants = frozenset({"logits"})
    advice = "A smaller INPUT.SIZE, or fewer texts, put less into a request."
    batch = 1

    @abstractmethod
    def score(self, picture: bytes, texts: list[str]) -> torch.Tensor:
        """Log-probabilities `[M]` of a PNG file on M different texts, in their order."""

    def sees(self, pictures: Several, answers: Several) -> bool:
        """Whether not all have the same scores; rounded ones of which one is nearly 1 may have."""
        first = answers[0]
        same = all(row.shape == first.shape and torch.allclose(row, first) for row in answers)
        return not same or first.max().item() > CERTAIN

    @torch.no_grad()
    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        self.require("logits", *prompt.grants)
        asked = self.texts_of(prompt)
        texts = list(dict.fromkeys(asked))

        def send(content: torch.Tensor) -> torch.Tensor:
            """`[1, M]` of one 8-bit picture."""
            answer = torch.as_tensor(self.score(png(content[0]), texts)).clamp_min(LOWEST)
            row = self.counted(answer, (len(texts),), pictures=1, texts=len(texts))
            self.look(content[0], row)
            return row[None]

        logits = self.shown(hashed("scores", *texts), images, prompt, send)
        place = {text: i for i, text in enumerate(texts)}
        columns = [place[text] for text in asked]
        return logits[..., columns].expand(len(prompt), -1, -1).to(self.device)


def whole_texts(names: Sequence[str], template: str) -> list[str]:
    """The text of every name: the template with the name in the slot, `_` read as a space.

    Raises:
        BlackBoxError: no name, one that is no text, a template without a slot.
    """
    if not len(names):
        raise BlackBoxError("There are no classes: at least one name is needed.")
    if "{}" not in template:
        raise BlackBoxError(f"The template {template!a} has no slot {{}} for the class name.")
    for name in names:
        try:
            empty = not name.replace("_", " ").strip()
            (template + name).encode()
        except (AttributeError, UnicodeError) as e:
            raise BlackBoxError(
                f"{name!a} is not a text that can be sent (a number, or a name in another encoding "
                f"than UTF-8, perhaps). Rename it."
            ) from e
        if empty:
            raise BlackBoxError(f"The class name {name!a} has no words. Give it a name.")
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def several(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def png(picture: torch.Tensor, **options: int) -> bytes:
    """A PNG file of 8-bit values `[3, H, W]`; the format loses nothing, with any options."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", **options)
    return file.getvalue()
