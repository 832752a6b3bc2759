"""One model, and the thread that asks it: what waits at the same time is answered together."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from ..trainers.blackbox.files import digest
from ..trainers.blackbox.openclip.blocks import TextPath
from ..trainers.blackbox.openclip.local import LocalOracle
from ..trainers.blackbox.openclip.models import LoadedModel
from ..trainers.blackbox.oracle.interface import GRANTS, QUERY_IMAGES
from ..trainers.blackbox.oracle.texts import Texts
from .contents import Contents
from .errors import Refusal

TEXTS = 2**16  # whose tokens are kept
WORDS = 2**17  # that the tokeniser remembers; open_clip's own has no bound
PATIENCE = 30.0  # seconds in which the model ends what it does when the server stops
TEXT_BYTES = 2**26  # of text features that are kept
TOGETHER = 64  # requests that are answered together
IMAGES = 2**14  # images of theirs that are encoded together

Group = tuple[str, int]


@dataclass
class Job:
    """What one request asks of the model; `answer` is set when it is done.

    Attributes:
        images: names of images; empty where none are asked about, or pictures are.
        texts: lists of texts, the classes first; empty: image features are asked for.
        contexts: in front of the classes' texts `[P, n, D]`.
        image_tokens: `[P, n_V, W]`.
        pictures: normalised pixels `[P, B, 3, H, W]`.
        answer: logits `[P, B, C + M]`, or text features `[P, C + M, E]` where no images are asked
            about, or image features `[B, E]`.
    """

    images: Sequence[str] = ()
    texts: Sequence[Texts] = ()
    contexts: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    pictures: torch.Tensor | None = None
    answer: Future = field(default_factory=Future)


class Replica:
    """Holds the model. All calls of it are made by one thread.

    Args:
        loaded: the model.
        contents: what clients have sent.
        counters: told of every batch.
    """

    def __init__(self, loaded: LoadedModel, contents: Contents, counters: Any) -> None:
        self.loaded, self.contents, self.counters = loaded, contents, counters
        self.oracle = LocalOracle(loaded, GRANTS)
        self.description = loaded.description
        self.lists: OrderedDict[str, TextPath] = OrderedDict()
        self.known: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()
        self.lock = threading.Lock()  # of `lists` and `waiting`
        self.words = threading.Lock()  # of the tokeniser
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.waiting = 0
        self.thread = threading.Thread(target=self.work, name="model", daemon=True)
        self.thread.start()

    # ------------------------------------------------------------------ what may be asked

    def path(self, texts: Texts) -> TextPath:
        """The texts as tokens.

        Raises:
            BlackBoxError: they are none, or do not fit.
        """
        with self.lock:
            path = self.lists.get(texts.id)
        if path is None:
            path = TextPath(self.loaded)
            with self.words:
                path.set_classes(texts.names, texts.template)
                self.forget_words()
        with self.lock:
            path = self.lists.setdefault(texts.id, path)
            self.lists.move_to_end(texts.id)
            while len(self.lists) > 1 and sum(len(p.texts) for p in self.lists.values()) > TEXTS:
                self.lists.popitem(last=False)
        return path

    def embed(self, words: str) -> torch.Tensor:
        """Token embeddings `[n, D]`.

        Raises:
            BlackBoxError: they are no words.
        """
        with self.words:
            found = self.oracle.embed(words)
            self.forget_words()
        return found

    def forget_words(self) -> None:
        """Keep what the tokeniser remembers within a bound; its special tokens come first."""
        cache = getattr(self.loaded.tokenizer, "cache", None)
        if isinstance(cache, dict) and len(cache) > WORDS:
            for word in list(cache)[WORDS // 2 :]:
                del cache[word]

    def alive(self) -> bool:
        return self.thread.is_alive()

    def submit(self, job: Job) -> Future:
        if not self.alive():
            raise Refusal(503, "stopped", "The model has stopped.", {"Retry-After": "10"})
        with self.lock:
            self.waiting += 1
        job.answer.add_done_callback(self.one_less)
        self.jobs.put(job)
        return job.answer

    def one_less(self, _: Future) -> None:
        with self.lock:
            self.waiting -= 1

    def stop(self) -> None:
        """Answer what waits, then end; the thread ends with the process where that takes long."""
        self.jobs.put(None)
        self.thread.join(PATIENCE)

    # ------------------------------------------------------------------ the thread

    def work(self) -> None:
        while True:
            jobs, last = self.take()
            if jobs:
                self.answer(jobs)
            if last:
                return

    def take(self) -> tuple[list[Job], bool]:
        """What waits now, at least one; whether it is the last."""
        jobs: list[Job] = []
        job = self.jobs.get()
        while True:
            if job is None:
                return jobs, True
            jobs.append(job)
            if len(jobs) == TOGETHER or self.jobs.empty():
                return jobs, False
            job = self.jobs.get()

    @torch.no_grad()
    def answer(self, jobs: list[Job]) -> None:
        """Encode what all of them need together; one that fails does not fail the others."""
        self.counters.together(len(jobs))
        if len(jobs) > 1:
            try:
                names = dict.fromkeys(name for job in jobs for name in plain_images(job))
                if len(names) <= IMAGES:
                    self.encode_images(list(names))
                self.encode_contexts(jobs)
            except Exception:  # whose it is shows when each is answered by itself
                pass
        for job in jobs:
            if not job.answer.set_running_or_notify_cancel():
                continue
            try:
                job.answer.set_result(self.answer_one(job).cpu())
            except BaseException as e:
                job.answer.set_exception(e)

    def answer_one(self, job: Job) -> torch.Tensor:
        if not job.texts:
            return self.encode_images(job.images)
        text = self.text_of(job)
        if job.pictures is not None:
            return self.oracle.score(self.oracle.features_of_pictures(job.pictures), text)
        if not job.images:
            return text
        if job.image_tokens is not None:
            handle = self.oracle.upload(self.pixels(job.images))
            image = self.oracle.features_with_tokens(handle, job.image_tokens)
        else:
            image = self.encode_images(job.images)
        return self.oracle.score(image, text)

    # ------------------------------------------------------------------ images

    def pixels(self, names: Sequence[str]) -> torch.Tensor:
        """Normalised pixels `[B, 3, H, W]`.

        Raises:
            Refusal: 404; they were there when the request came, and have had to go since.
        """
        found = [self.contents.image(name) for name in names]
        lost = [name for name, pixels in zip(names, found, strict=True) if pixels is None]
        if lost:
            raise unknown(images=lost)
        return torch.stack([pixels for pixels in found if pixels is not None])

    def encode_images(self, names: Sequence[str]) -> torch.Tensor:
        """Normalised features `[B, E]`; what is not known is encoded, a batch of 128 at a time."""
        store, found = self.oracle.store, []
        for start in range(0, len(names), QUERY_IMAGES):
            part = names[start : start + QUERY_IMAGES]

            def pixels(rows: list[int] | slice, part: Sequence[str] = part) -> torch.Tensor:
                chosen = part[rows] if isinstance(rows, slice) else [part[i] for i in rows]
                return self.pixels(chosen).to(self.loaded.device)

            keys = [bytes.fromhex(name) for name in part]
            found.append(store.named(keys, pixels, self.oracle.encode_pixels))
        return torch.cat(found) if found else torch.zeros(0, self.description.embed_dim)

    # ------------------------------------------------------------------ texts

    def text_of(self, job: Job) -> torch.Tensor:
        """Normalised features `[P, C + M, E]`."""
        classes, *further = job.texts
        none = torch.zeros(1, 0, self.description.width)
        text = self.features(classes, none if job.contexts is None else job.contexts)
        more = [self.features(texts, none).expand(len(text), -1, -1) for texts in further]
        return torch.cat([text, *more], dim=1)

    def features(self, texts: Texts, contexts: torch.Tensor) -> torch.Tensor:
        """Normalised features `[P, C, E]`, the last ones kept."""
        name = name_of(texts, contexts)
        if name not in self.known:
            self.remember(name, self.encode_texts(texts, contexts))
        self.known.move_to_end(name)
        return self.known[name]

    def encode_texts(self, texts: Texts, contexts: torch.Tensor) -> torch.Tensor:
        path = self.path(texts)
        with self.oracle.autocast():
            return path(contexts.to(self.loaded.device))

    def remember(self, name: tuple[str, str], features: torch.Tensor) -> None:
        self.known[name] = features
        while len(self.known) > 1 and sum(map(size_of, self.known.values())) > TEXT_BYTES:
            self.known.popitem(last=False)

    def encode_contexts(self, jobs: list[Job]) -> None:
        """Encode contexts of several requests about the same classes at once."""
        groups: dict[Group, dict[str, tuple[Texts, torch.Tensor]]] = {}
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


def plain_images(job: Job) -> Sequence[str]:
    """Names of the images that are encoded as they are."""
    return job.images if job.image_tokens is None else ()


def size_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def name_of(texts: Texts, contexts: torch.Tensor) -> tuple[str, str]:
    return texts.id, digest(contexts)


def unknown(**names: Sequence[str]) -> Refusal:
    """404: what a request names must be sent first."""
    return Refusal(
        404,
        "unknown",
        "Some of what is named is not known: send it, then ask again.",
        missing=names,
    )
