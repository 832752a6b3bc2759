"""One model, and the thread that asks it: what waits at the same time is answered together."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..trainers.blackbox.files import digest
from ..trainers.blackbox.openclip.blocks import TextPath
from ..trainers.blackbox.openclip.local import LocalOracle
from ..trainers.blackbox.openclip.models import LoadedModel
from ..trainers.blackbox.oracle import GRANTS, QUERY_IMAGES, Texts
from .contents import Contents
from .requests import Refusal, refused, unknown, wrong

TEXTS = 2**16  # whose tokens are kept
WORDS = 2**17  # that the tokeniser remembers; open_clip's own has no bound
PATIENCE = 30.0  # seconds in which the model ends what it does when the server stops
TEXT_BYTES = 2**26  # of text features that are kept, and that a request holds at a time
TOGETHER = 64  # requests that are answered together
IMAGES = 2**14  # images of theirs that are encoded together


class Turns:
    """What waits, by account: each has its turn. Who lets requests in bounds their number."""

    def __init__(self) -> None:
        self.queues: OrderedDict[str, deque[Any]] = OrderedDict()
        self.changed = threading.Condition()
        self.closed = False

    def __len__(self) -> int:
        with self.changed:
            return sum(map(len, self.queues.values()))

    def put(self, owner: str, item: Any) -> None:
        with self.changed:
            self.queues.setdefault(owner, deque()).append(item)
            self.changed.notify()

    def get(self, wait: bool = True) -> Any:
        """The first of the account whose turn it is; None where none waits, or none will come."""
        with self.changed:
            while wait and not self.closed and not self.queues:
                self.changed.wait()
            if not self.queues:
                return None
            owner, queue = self.queues.popitem(last=False)
            item = queue.popleft()
            if queue:
                self.queues[owner] = queue
            return item

    def close(self) -> None:
        """Let what waits be taken, and nothing come."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class Lane:
    """Threads that make calls which take a while, beside the loop that answers others."""

    def __init__(self, name: str, threads: int) -> None:
        self.turns = Turns()
        self.threads = [
            threading.Thread(target=self.work, name=name, daemon=True) for _ in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def submit(self, owner: str, function: Callable[..., Any], *arguments: Any) -> Future:
        answer: Future = Future()
        self.turns.put(owner, (answer, partial(function, *arguments)))
        return answer

    def work(self) -> None:
        while (found := self.turns.get()) is not None:
            settle(*found)

    def close(self) -> None:
        self.turns.close()
        for thread in self.threads:
            thread.join(PATIENCE)


def settle(answer: Future, call: Callable[[], Any]) -> None:
    """Make a call, unless nobody waits for it any more."""
    if answer.set_running_or_notify_cancel():
        try:
            answer.set_result(call())
        except BaseException as e:
            answer.set_exception(e)


@dataclass
class Job:
    """What one request asks of the model; `answer` is set when it is done.

    Attributes:
        owner: name of the account.
        images: names of images; empty where none are asked about, or pictures are.
        texts: lists of texts, the classes first; empty: image features are asked for.
        contexts: in front of the classes' texts `[P, n, D]`.
        image_tokens: `[P, n_V, W]`.
        pictures: normalised pixels `[P, B, 3, H, W]`.
        answer: logits `[P, B, C + M]`, or text features `[P, C + M, E]` where no images are asked
            about, or image features `[B, E]`.
        left: whether the client has gone; what is begun is ended between two parts of the work.
    """

    owner: str
    images: Sequence[str] = ()
    texts: Sequence[Texts] = ()
    contexts: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    pictures: torch.Tensor | None = None
    answer: Future = field(default_factory=Future)
    left: bool = False

    def stay(self) -> None:
        if self.left:
            raise Refusal(400, "left", "The client has left.")


class Replica:
    """Holds the model. All calls of it are made by one thread.

    Args:
        loaded: the model.
        contents: what clients have sent.

    Attributes:
        together: how often so many requests were answered together.
    """

    def __init__(self, loaded: LoadedModel, contents: Contents) -> None:
        self.loaded, self.contents = loaded, contents
        self.together = Counter[int]()
        self.oracle = LocalOracle(loaded, GRANTS)
        self.description = loaded.description
        self.lists: OrderedDict[str, TextPath] = OrderedDict()
        self.known: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()
        self.words = threading.Lock()  # of the tokeniser
        self.jobs = Turns()
        self.thread = threading.Thread(target=self.work, name="model", daemon=True)
        self.thread.start()

    # ------------------------------------------------------------------ words

    def tokens(self, names: Sequence[str], template: str) -> TextPath:
        """Texts as tokens.

        Raises:
            Refusal: they are none, or do not fit.
        """
        path, cache = TextPath(self.loaded), getattr(self.loaded.tokenizer, "cache", None)
        with self.words, refused():
            path.set_classes(names, template)
            if isinstance(cache, dict) and len(cache) > WORDS:  # its special tokens come first
                for word in list(cache)[WORDS // 2 :]:
                    del cache[word]
        return path

    def room(self, names: Sequence[str], template: str) -> int:
        """How many context tokens fit in front of texts."""
        longest = max(map(len, self.tokens(names, template).texts))
        return self.description.context_length - 2 - longest

    def embed(self, words: str) -> torch.Tensor:
        """Token embeddings `[n, D]`."""
        with self.words, refused():
            return self.oracle.embed(words)

    # ------------------------------------------------------------------ the thread

    def alive(self) -> bool:
        return self.thread.is_alive()

    def submit(self, job: Job) -> Future:
        if not self.alive():
            raise Refusal(503, "stopped", "The model has stopped.", {"Retry-After": "10"})
        self.jobs.put(job.owner, job)
        return job.answer

    def stop(self) -> None:
        """Answer what waits, then end; the thread ends with the process where that takes long."""
        self.jobs.close()
        self.thread.join(PATIENCE)

    def work(self) -> None:
        while (first := self.jobs.get()) is not None:
            jobs = [first]
            while len(jobs) < TOGETHER and (job := self.jobs.get(wait=False)) is not None:
                jobs.append(job)
            self.answer(jobs)

    @torch.no_grad()
    def answer(self, jobs: list[Job]) -> None:
        """Encode what all of them need together; one that fails does not fail the others."""
        self.together[len(jobs)] += 1
        jobs = [job for job in jobs if not job.left]
        if len(jobs) > 1:
            try:
                names = dict.fromkeys(name for job in jobs for name in plain_images(job))
                if len(names) <= IMAGES:
                    self.encode_images(list(names), lambda: any(not job.left for job in jobs))
                self.encode_contexts(jobs)
            except Exception:  # whose it is shows when each is answered by itself
                pass
        for job in jobs:
            settle(job.answer, partial(self.answer_one, job))

    def answer_one(self, job: Job) -> torch.Tensor:
        job.stay()
        found = self.features_or_logits(job).cpu()
        if not found.isfinite().all():
            raise wrong("The answer is no finite numbers: what was sent is too large.")
        return found

    def features_or_logits(self, job: Job) -> torch.Tensor:
        if not job.texts:
            return self.encode_images(plain_images(job), job.stay)
        classes, *further = job.texts
        none = torch.zeros(1, 0, self.description.width)
        contexts = none if job.contexts is None else job.contexts
        more = [self.features(texts, none) for texts in further]
        if not job.images and job.pictures is None:
            text = self.features(classes, contexts)
            return torch.cat([text, *(part.expand(len(text), -1, -1) for part in more)], dim=1)
        image = self.image_of(job)
        if len(contexts) == 1:
            return self.oracle.score(image, torch.cat([self.features(classes, contexts), *more], 1))
        # candidate by candidate, so that features [P, C + M, E] are never there at once
        at_once = max(1, TEXT_BYTES // (4 * len(classes) * self.description.embed_dim))
        parts = []
        for rows in torch.arange(len(contexts)).split(at_once):
            job.stay()
            own = image if image.ndim == 2 else image[rows]
            logits = self.oracle.score(own, self.features(classes, contexts[rows]))
            scored = [self.oracle.score(own, part) for part in more]
            parts.append(torch.cat([logits, *(s.expand(len(rows), -1, -1) for s in scored)], -1))
        return torch.cat(parts)

    # ------------------------------------------------------------------ images

    def image_of(self, job: Job) -> torch.Tensor:
        """Normalised features `[B, E]`, or `[P, B, E]` where the images differ by candidate."""
        if job.pictures is not None:
            return self.oracle.features_of_pictures(job.pictures)
        if job.image_tokens is None:
            return self.encode_images(plain_images(job), job.stay)
        parts = []
        for start in range(0, len(job.images), QUERY_IMAGES):
            job.stay()
            names = [(job.owner, name) for name in job.images[start : start + QUERY_IMAGES]]
            handle = self.oracle.upload(self.pixels(names))
            parts.append(self.oracle.features_with_tokens(handle, job.image_tokens))
        return torch.cat(parts, dim=1)

    def pixels(self, names: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Normalised pixels `[B, 3, H, W]` of (account, name).

        Raises:
            Refusal: 404; they were there when the request came, and have had to go since.
        """
        found = [self.contents.image(*name) for name in names]
        lost = [name for (_, name), image in zip(names, found, strict=True) if image is None]
        if lost:
            raise unknown(images=lost)
        return torch.stack([image for image in found if image is not None])

    def encode_images(
        self, names: Sequence[tuple[str, str]], stay: Callable[[], Any]
    ) -> torch.Tensor:
        """Normalised features `[B, E]`; what is not known is encoded, a batch of 128 at a time.

        `stay` is asked before each batch, and ends the work by raising, or with False.
        """
        found = [torch.zeros(0, self.description.embed_dim, device=self.loaded.device)]
        for start in range(0, len(names), QUERY_IMAGES):
            if stay() is False:
                break
            part = names[start : start + QUERY_IMAGES]

            def pixels(
                rows: list[int] | slice, part: Sequence[tuple[str, str]] = part
            ) -> torch.Tensor:
                chosen = part[rows] if isinstance(rows, slice) else [part[i] for i in rows]
                return self.pixels(chosen).to(self.loaded.device)

            # by account, so that no time tells what another has sent
            keys = [hashlib.sha256(f"{name} {owner}".encode()).digest() for owner, name in part]
            found.append(self.oracle.store.named(keys, pixels, self.oracle.encode_pixels))
        return torch.cat(found)

    # ------------------------------------------------------------------ texts

    def features(self, texts: Texts, contexts: torch.Tensor) -> torch.Tensor:
        """Normalised features `[P, C, E]`, the last ones kept."""
        name = name_of(texts, contexts)
        if name not in self.known:
            self.remember(name, self.encode_texts(texts, contexts))
        self.known.move_to_end(name)
        return self.known[name]

    def encode_texts(self, texts: Texts, contexts: torch.Tensor) -> torch.Tensor:
        if texts.id not in self.lists:
            self.lists[texts.id] = self.tokens(texts.names, texts.template)
        self.lists.move_to_end(texts.id)
        while len(self.lists) > 1 and sum(len(p.texts) for p in self.lists.values()) > TEXTS:
            self.lists.popitem(last=False)
        path = self.lists[texts.id]
        with self.oracle.autocast():
            return path(contexts.to(self.loaded.device))

    def remember(self, name: tuple[str, str], features: torch.Tensor) -> None:
        self.known[name] = features
        while len(self.known) > 1 and sum(map(size_of, self.known.values())) > TEXT_BYTES:
            self.known.popitem(last=False)

    def encode_contexts(self, jobs: list[Job]) -> None:
        """Encode contexts of several requests about the same classes at once."""
        groups: dict[tuple[str, int], dict[str, tuple[Texts, torch.Tensor]]] = {}
        for job in jobs:
            if job.texts and job.contexts is not None:
                name = name_of(job.texts[0], job.contexts)
                if name not in self.known:
                    group = groups.setdefault((name[0], job.contexts.shape[1]), {})
                    group[name[1]] = job.texts[0], job.contexts
        for group in groups.values():
            if len(group) == 1:
                continue
            texts = next(iter(group.values()))[0]
            contexts = [contexts for _, contexts in group.values()]
            size = 4 * sum(map(len, contexts)) * len(texts) * self.description.embed_dim
            if size > TEXT_BYTES:  # the first would be forgotten before they are asked for
                continue
            encoded = self.encode_texts(texts, torch.cat(contexts))
            parts = encoded.split([len(part) for part in contexts])
            for key, part in zip(group, parts, strict=True):
                self.remember((texts.id, key), part.clone())


def plain_images(job: Job) -> list[tuple[str, str]]:
    """(account, name) of the images that are encoded as they are."""
    return [(job.owner, name) for name in job.images] if job.image_tokens is None else []


def size_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def name_of(texts: Texts, contexts: torch.Tensor) -> tuple[str, str]:
    return texts.id, digest(contexts)
