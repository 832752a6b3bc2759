"""What clients have sent, threads beside the loop, and the model that one of them asks."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any

import torch

from ..trainers.blackbox.files import digest
from ..trainers.blackbox.openclip.blocks import TextPath
from ..trainers.blackbox.openclip.local import FeatureStore, LocalOracle
from ..trainers.blackbox.openclip.models import LoadedModel
from ..trainers.blackbox.oracle import GRANTS, QUERY_IMAGES, Description, Prompt, Texts
from ..trainers.blackbox.oracle.interface import let_out
from ..trainers.blackbox.oracle.wire import normalised, open_cache
from .access import Refusal, wrong

PICTURE, PIXELS = b"u", b"f"  # first byte of an image: 8-bit, or normalised numbers
TEXTS = 2**16  # whose tokens are kept
WORDS = 2**17  # that the tokeniser remembers; open_clip's own has no bound
PATIENCE = 30.0  # seconds in which a thread ends what it does when the server stops
TEXT_BYTES = 2**26  # of text features that are kept, and that a request holds at a time
TOGETHER = 64  # requests that are answered together
IMAGES = 2**14  # images of theirs that are encoded together
ALL = slice(None)
Named = tuple[str, str]  # an image: account, name


class Contents:
    """Images and lists of texts by name, the oldest first out: a cache for each account, which has
    its part of the `limit` (bytes), and neither finds nor pushes out what another has sent.
    """

    def __init__(self, folder: Path, limit: int, about: Description, owners: list[str]) -> None:
        self.shape, self.description = (3, *about.image_size), about
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.caches: dict[str, Any] = {}
        for owner in owners:
            own = folder / hashlib.sha256(owner.encode()).hexdigest()[:16]
            self.caches[owner] = open_cache(own, limit // len(owners))

    def put_images(self, owner: str, names: Sequence[str], images: torch.Tensor) -> None:
        """Keep images `[B, 3, H, W]`: 8-bit pictures (uint8) or normalised pixels (float32)."""
        kind, cache = PICTURE if images.dtype == torch.uint8 else PIXELS, self.caches[owner]
        rows = images.contiguous().flatten(1).view(torch.uint8).numpy()
        with cache.transact():
            for name, row in zip(names, rows, strict=True):
                cache.set(f"image {name}", kind + row.tobytes())
        cache.cull()

    def missing(self, owner: str, names: Sequence[str]) -> list[str]:
        """Those of the names of images that the account has not sent."""
        cache = self.caches[owner]
        return [name for name in dict.fromkeys(names) if f"image {name}" not in cache]

    def image(self, owner: str, name: str) -> torch.Tensor | None:
        """Normalised pixels `[3, H, W]`."""
        value = self.caches[owner].get(f"image {name}")
        if not value:
            return None
        kind = torch.uint8 if value[:1] == PICTURE else torch.float32
        stored = torch.frombuffer(bytearray(value[1:]), dtype=kind).view(self.shape)
        return normalised(stored, self.description) if kind == torch.uint8 else stored

    def put_texts(self, owner: str, texts: Texts, room: int) -> None:
        """Keep a list of texts, and the number of context tokens that fit in front."""
        value = json.dumps([texts.template, list(texts.names), room]).encode()
        self.caches[owner].set(f"texts {texts.id}", value)

    def texts(self, owner: str, name: str) -> tuple[Texts, int] | None:
        value = self.caches[owner].get(f"texts {name}")
        if not value:
            return None
        template, names, room = json.loads(value)
        return Texts.of(names, template), room


class Task(Future):
    """A call for an account; cancelled where nobody waits for it any more."""

    def __init__(self, owner: str, call: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.owner, self.call = owner, call


class Lane:
    """Threads that do tasks which take a while; accounts take turns, and are bounded elsewhere."""

    def __init__(self, name: str, threads: int = 1, together: int = 1) -> None:
        self.together, self.batches = together, 0
        self.waiting: OrderedDict[str, deque[Any]] = OrderedDict()  # by account
        self.changed, self.closed = Condition(), False
        self.threads = [Thread(target=self.work, name=name, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def submit(self, task: Task) -> Task:
        with self.changed:
            if self.closed:
                raise Refusal(503, "busy", "The server is being stopped.")
            self.waiting.setdefault(task.owner, deque()).append(task)
            self.changed.notify()
        return task

    def take(self) -> list[Any]:
        """The first task of the account whose turn it is, and of others; none at the end."""
        taken: list[Any] = []
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            while self.waiting and len(taken) < self.together:
                owner, queue = self.waiting.popitem(last=False)
                taken.append(queue.popleft())
                if queue:
                    self.waiting[owner] = queue
        return taken

    def work(self) -> None:
        while tasks := self.take():
            self.batches += 1
            self.prepare(tasks)
            while tasks:
                task = tasks.pop(0)
                with suppress(InvalidStateError):  # nobody waits for it any more
                    try:
                        if not task.cancelled():
                            task.set_result(self.do(task))
                    except BaseException as e:  # a panic of Rust is no Exception
                        task.set_exception(e)
                del task  # which may be large, while the next is waited for

    def prepare(self, tasks: list[Any]) -> None:
        """What is done once for all of them."""

    def do(self, task: Any) -> Any:
        return task.call()

    def close(self) -> None:
        """Let what waits be done; a thread that takes long ends with the process."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(PATIENCE)


class Job(Task):
    """What one request asks of the model, with its content's name, price and room in bytes.

    That is logits `[P, B, C + M]`, or text features `[P, C + M, E]` where neither images nor
    pictures are asked about, or image features `[B, E]` where there are no classes.
    """

    def __init__(self, owner: str, images: list[str], texts: Texts | None, prompt: Prompt) -> None:
        super().__init__(owner)
        self.images, self.classes, self.prompt = images, texts, prompt
        self.top_k, self.digest, self.cost, self.size = 0, "", (0, 0), 0

    def named(self) -> list[Named]:
        return [(self.owner, name) for name in self.images]


def stay(jobs: Sequence[Job]) -> None:
    """Between two parts of the work: end it where nobody waits for it."""
    if all(job.cancelled() for job in jobs):
        raise Refusal(400, "left", "The client has left.")


class Replica(Lane):
    """Holds the model. All calls of it are made by one thread, for what waits at the same time."""

    def __init__(self, loaded: LoadedModel, contents: Contents) -> None:
        self.loaded, self.contents = loaded, contents
        self.oracle, self.description = LocalOracle(loaded, GRANTS), loaded.description
        self.none = torch.zeros(1, 0, self.description.width)
        self.paths: OrderedDict[str, TextPath] = OrderedDict()  # by name of the texts
        self.known = FeatureStore(TEXT_BYTES)  # [C, E] by names of texts and context
        self.words = Lock()  # of the tokeniser
        super().__init__("model", together=TOGETHER)

    def tokens(self, names: Sequence[str], template: str) -> TextPath:
        """Texts as tokens; BlackBoxError where they are none, or do not fit."""
        path, cache = TextPath(self.loaded), self.loaded.tokenizer.cache
        with self.words:
            path.set_classes(names, template)
            if len(cache) > WORDS:  # its special tokens come first
                for word in list(cache)[WORDS // 2 :]:
                    del cache[word]
        return path

    def room(self, names: Sequence[str], template: str) -> int:
        """How many context tokens fit in front of texts."""
        longest = max(map(len, self.tokens(names, template).texts))
        return self.description.context_length - 2 - longest

    def embed(self, words: str) -> torch.Tensor:
        """Token embeddings `[n, D]`."""
        with self.words:
            return self.oracle.embed(words)

    @torch.no_grad()
    def prepare(self, jobs: list[Job]) -> None:
        """Encode what several requests need at once."""
        jobs = [job for job in jobs if not job.cancelled()]
        if len(jobs) == 1:
            return
        plain = [job.named() for job in jobs if job.prompt.image_tokens is None]
        names = list(dict.fromkeys(name for named in plain for name in named))
        groups: dict[tuple[Texts, int], list[torch.Tensor]] = {}
        for job in jobs:
            if job.classes is not None and job.prompt.contexts is not None:
                key = job.classes, job.prompt.tokens
                groups.setdefault(key, []).append(job.prompt.contexts)
        try:
            if len(names) <= IMAGES:
                self.encode_images(names, jobs)
            for (texts, _), contexts in groups.items():
                # of more than fits, the first would be forgotten before they are asked for
                if sum(map(len, contexts)) <= self.at_once(texts):
                    self.features(texts, torch.cat(contexts))
        except Exception:  # whose it is shows when each is answered by itself
            pass

    @torch.no_grad()
    def do(self, job: Job) -> torch.Tensor:
        texts, encode = job.classes, self.encode_images
        found = self.ask(job, texts) if texts is not None else encode(job.named(), [job])
        if not found.isfinite().all():
            raise wrong("The answer is no finite numbers: what was sent is too large.")
        if job.top_k:
            found = let_out(found, len(job.classes or ()), job.top_k)
        return found.cpu()

    def ask(self, job: Job, classes: Texts) -> torch.Tensor:
        """Logits, or text features where no images are asked about."""
        prompt = job.prompt
        contexts = self.none if prompt.contexts is None else prompt.contexts
        further = [] if prompt.texts is None else [self.features(prompt.texts, self.none)]
        if not job.images and prompt.pictures is None:
            text = self.features(classes, contexts)
            return torch.cat([text, *(part.expand(len(text), -1, -1) for part in further)], dim=1)
        image, found = self.image_of(job), []
        for rows in torch.arange(len(prompt)).split(self.at_once(classes)):
            stay([job])
            own = image if image.ndim == 2 else image[rows]
            text = self.features(classes, contexts if len(contexts) == 1 else contexts[rows])
            # of one candidate in one product, as in process
            parts = [text, *further] if len(text) > 1 else [torch.cat([text, *further], dim=1)]
            scores = [self.oracle.score(own, part) for part in parts]
            found.append(torch.cat([part.expand(len(rows), -1, -1) for part in scores], dim=-1))
        return torch.cat(found)

    def at_once(self, texts: Texts) -> int:
        """Candidates whose features of texts may be there at once: never all of [P, C + M, E]."""
        return max(1, TEXT_BYTES // (4 * len(texts) * self.description.embed_dim))

    def image_of(self, job: Job) -> torch.Tensor:
        """Normalised features `[B, E]`, or `[P, B, E]` where the images differ by candidate."""
        tokens = job.prompt.image_tokens
        if job.prompt.pictures is not None:
            return self.oracle.features_of_pictures(job.prompt.pictures)
        if tokens is None:
            return self.encode_images(job.named(), [job])
        tokens, names, parts = tokens.to(self.loaded.device), job.named(), []
        for start in range(0, len(names), QUERY_IMAGES):
            stay([job])
            pixels = self.pixels(names[start : start + QUERY_IMAGES])
            parts.append(self.oracle.encode_with_tokens(pixels, tokens))
        return torch.cat(parts, dim=1)

    def pixels(self, names: Sequence[Named], rows: list[int] | slice = ALL) -> torch.Tensor:
        """Normalised pixels `[B, 3, H, W]` of some of the images, on the model's device."""
        images = []
        for owner, name in names[rows] if isinstance(rows, slice) else [names[i] for i in rows]:
            image = self.contents.image(owner, name)
            if image is None:  # it was there when the request came, and has had to go since
                raise unknown([name], [])
            images.append(image)
        return torch.stack(images).to(self.loaded.device)

    def encode_images(self, names: Sequence[Named], jobs: Sequence[Job]) -> torch.Tensor:
        """Normalised features `[B, E]`, of which those that are not known are encoded."""
        found = [torch.zeros(0, self.description.embed_dim, device=self.loaded.device)]
        for start in range(0, len(names), QUERY_IMAGES):
            stay(jobs)
            part = names[start : start + QUERY_IMAGES]
            # by account, so that no time tells what another has sent
            keys = [hashlib.sha256(f"{name} {owner}".encode()).digest() for owner, name in part]
            pixels = partial(self.pixels, part)
            found.append(self.oracle.store.named(keys, pixels, self.oracle.encode_pixels))
        return torch.cat(found)

    def features(self, texts: Texts, contexts: torch.Tensor) -> torch.Tensor:
        """Normalised features `[P, C, E]`, of which those that are not known are encoded."""
        keys = [f"{texts.id} {digest(context)}".encode() for context in contexts]
        encode = partial(self.encode_texts, texts)
        return self.known.named(keys, contexts.__getitem__, encode)

    def encode_texts(self, texts: Texts, contexts: torch.Tensor) -> torch.Tensor:
        path = self.paths.pop(texts.id, None) or self.tokens(texts.names, texts.template)
        self.paths[texts.id] = path
        while len(self.paths) > 1 and sum(len(p.texts) for p in self.paths.values()) > TEXTS:
            self.paths.popitem(last=False)
        with self.oracle.autocast():
            return path(contexts.to(self.loaded.device))


def unknown(images: Sequence[str], texts: Sequence[str]) -> Refusal:
    """What a request names must be sent first."""
    words = "Some of what is named is not known: send it, then ask again."
    return Refusal(404, "unknown", words, missing={"images": images, "texts": texts})
