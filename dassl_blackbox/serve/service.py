"""What the server does with a request that was let in: it is looked at, charged, then done."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from ..trainers.blackbox.data import to_rgb
from ..trainers.blackbox.errors import first_line
from ..trainers.blackbox.oracle.bill import price
from ..trainers.blackbox.oracle.prompt import Prompt
from ..trainers.blackbox.oracle.texts import Texts
from ..trainers.blackbox.oracle.topk import let_out
from ..trainers.blackbox.oracle.wire import as_json, content_ids, pack
from .access import Account, Accounts
from .contents import Contents, missing
from .counters import Counters
from .errors import Refusal
from .ledger import Ledger
from .limits import Limits
from .questions import Asked, TextList, read_question, read_tensors, refused, wrong
from .replica import Job, Replica, unknown

QUERY, IMAGE_FEATURES, TEXT_FEATURES = "query", "images", "texts"
NUMBER_BYTES = 4
FORMATS = ("PNG", "JPEG")  # Pillow's others are many, and one of them runs a program
DISK_THREADS = 2  # that write to the ledger and to what is kept; beside the model's


@dataclass
class Service:
    """A model, those who may ask it, and what they have used."""

    replica: Replica
    accounts: Accounts
    ledger: Ledger
    contents: Contents
    counters: Counters
    limits: Limits

    def __post_init__(self) -> None:
        self.description = self.replica.description
        self.disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        # what may take seconds and much memory, one at a time: pictures, words
        self.slow = ThreadPoolExecutor(1, thread_name_prefix="slow")
        self.counters.watch(lambda: self.replica.waiting)

    async def on_disk(self, function: Any, *arguments: Any) -> Any:
        """A call that waits for the disk, beside the loop that answers others."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.disk, partial(function, *arguments))

    async def slowly(self, function: Any, *arguments: Any) -> Any:
        """A call that takes long, beside those that do not."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.slow, partial(function, *arguments))

    def close(self) -> None:
        self.replica.stop()
        for pool in (self.slow, self.disk):
            pool.shutdown(cancel_futures=True)
        self.ledger.close()
        self.contents.close()

    def describe(self, account: Account) -> dict[str, Any]:
        return {
            "model": as_json(self.description),
            "grants": sorted(account.grants),
            "top_k": account.top_k,
            "max_bytes": self.limits.body,
        }

    # ------------------------------------------------------------------ what is sent once

    async def take_texts(self, given: TextList) -> dict[str, Any]:
        """Keep a list of texts; tells its name, and how many context tokens fit in front."""
        return await self.slowly(self.keep_texts, Texts.of(given.names, given.template))

    def keep_texts(self, texts: Texts) -> dict[str, Any]:
        slots, limits = texts.template.count("{}"), self.limits
        plain = len(texts.template) - 2 * slots
        lengths = [plain + slots * len(name) for name in texts.names]
        longest = max(max(lengths), *map(len, (*texts.names, texts.template)))
        if len(texts) > limits.texts or longest > limits.characters:
            raise wrong(
                f"There are {len(texts):,} texts, the longest of {longest:,} characters; "
                f"{limits.texts:,} of {limits.characters:,} may be sent."
            )
        if sum(lengths) > limits.all_characters:
            raise wrong(
                f"The texts have {sum(lengths):,} characters together; "
                f"{limits.all_characters:,} may be sent."
            )
        path = self.path(texts)
        self.contents.put_texts(texts)
        room = self.description.context_length - 2 - max(map(len, path.texts))
        return {"id": texts.id, "room": room}

    def path(self, texts: Texts) -> Any:
        with refused():
            return self.replica.path(texts)

    async def take_tensors(self, body: bytes) -> dict[str, Any]:
        """Keep images: 8-bit pictures (uint8) or normalised pixels (float32) `[B, 3, H, W]`."""
        return await self.on_disk(self.keep_tensors, body)

    def keep_tensors(self, body: bytes) -> dict[str, Any]:
        tensors, _ = read_tensors(body)
        size = self.description.image_size
        images = tensors.get("images")
        if images is None or len(tensors) > 1:
            raise wrong("One tensor is expected, named 'images'.")
        if images.dtype not in (torch.uint8, torch.float32) or (
            images.ndim != 4 or tuple(images.shape[1:]) != (3, *size) or not len(images)
        ):
            raise wrong(
                f"'images' is {images.dtype} {list(images.shape)}; uint8 or float32 "
                f"[B, 3, {size[0]}, {size[1]}] is expected."
            )
        if images.is_floating_point() and not torch.isfinite(images).all():
            raise wrong("'images' has numbers that are not finite.")
        return self.keep(images)

    async def take_picture(self, body: bytes) -> dict[str, Any]:
        """Keep one picture of any size: its short side is resized, and the centre is cut out."""
        return await self.slowly(self.keep_picture, body)

    def keep_picture(self, body: bytes) -> dict[str, Any]:
        size = self.description.image_size
        mode = InterpolationMode(self.description.interpolation)
        prepare = Compose([Resize(min(size), mode), CenterCrop(size), PILToTensor()])
        try:
            with Image.open(io.BytesIO(body), formats=FORMATS) as opened:
                width, height = opened.size
                if max(width, height) > 50 * min(width, height):
                    raise ValueError("it is more than 50 times as long as it is wide")
                if width * height > self.limits.pixels:
                    raise ValueError(
                        f"it has {width * height:,} pixels, and {self.limits.pixels:,} may be"
                    )
                pixels = prepare(to_rgb(opened))
        # Pillow raises errors of many kinds on damaged data
        except (Exception, Image.DecompressionBombError) as e:
            reason = first_line(e)
            if isinstance(e, UnidentifiedImageError):  # its own words hold an address in memory
                reason = f"it is no {' or '.join(FORMATS)}"
            raise wrong(f"The picture cannot be decoded ({reason}).") from e
        return self.keep(pixels[None])

    def keep(self, images: torch.Tensor) -> dict[str, Any]:
        names = content_ids(images)
        self.contents.put_images(names, images)
        return {"ids": names}

    # ------------------------------------------------------------------ questions

    async def answer(self, what: str, account: Account, name: str, body: bytes) -> bytes:
        """The answer to a question, as a body.

        Args:
            what: `query`, `images` (their features) or `texts` (theirs).
            account: of the client.
            name: of the request, by its client; empty: it has none, and counts by itself.
            body: of the request.
        """
        job, cost, digest = await self.on_disk(self.look_at, what, account, body)
        if self.replica.waiting >= self.limits.waiting:
            raise Refusal(503, "busy", "Too many requests wait.", {"Retry-After": "1"})
        charged = await self.on_disk(self.ledger.charge, account, name, f"{what} {digest}", cost)
        try:
            found = await asyncio.wrap_future(self.replica.submit(job))
            answer = await self.on_disk(self.write, what, account, job, found)
        except Exception:
            # what failed is not charged; what a client did not wait for is
            await self.on_disk(self.ledger.refund, account, name)
            raise
        if charged:
            self.counters.charged(*cost)
        return answer

    def look_at(self, what: str, account: Account, body: bytes) -> tuple[Job, tuple[int, int], str]:
        """(what is asked, its cost, the digest of the body), where it may be asked.

        Raises:
            Refusal: it may not.
        """
        account.require("logits" if what == QUERY else "features")
        asked, prompt = read_question(body, self.description, self.limits)
        account.require(*prompt.grants)
        job = self.job(what, asked, prompt)
        cost, numbers = self.cost(what, job)
        if numbers * NUMBER_BYTES > self.limits.body:
            raise Refusal(
                413,
                "answer_too_large",
                f"The answer would have {numbers * NUMBER_BYTES:,} bytes, and "
                f"{self.limits.body:,} may be (the server's --max-mb). Ask about fewer images or "
                f"candidates at once: lower DATALOADER.TRAIN_X.BATCH_SIZE or "
                f"DATALOADER.TEST.BATCH_SIZE, or, where a step is about all training images, "
                f"DATASET.NUM_SHOTS.",
            )
        seen = len(prompt) * len(job.images) if prompt.image_tokens is not None else 0
        if seen > self.limits.encoded:
            raise wrong(
                f"{seen:,} images would be encoded; {self.limits.encoded:,} may be at once."
            )
        return job, cost, hashlib.sha256(body).hexdigest()

    def write(self, what: str, account: Account, job: Job, answer: torch.Tensor) -> bytes:
        """What is let out of an answer, as a body."""
        if what == QUERY and account.top_k:
            answer = let_out(answer, len(job.texts[0]), account.top_k)
        return pack({"answer": answer})

    def job(self, what: str, asked: Asked, prompt: Prompt) -> Job:
        """What is asked, with names replaced by what they name.

        Raises:
            Refusal: 404 where a name is not known, 422 where it cannot be asked.
        """
        if what == IMAGE_FEATURES:
            if not asked.images or asked.classes or asked.texts or prompt.lengths():
                raise wrong("'images' are expected, and nothing else.")
        elif asked.classes is None:
            raise wrong("'classes' is expected: the name of a list of texts.")
        elif what == QUERY and not asked.images and prompt.pictures is None:
            raise wrong("'images' are expected, or the tensor 'pictures'.")
        elif what == TEXT_FEATURES and (
            asked.images or prompt.pictures is not None or prompt.image_tokens is not None
        ):
            raise wrong("Features of texts depend on contexts alone.")
        wanted = [name for name in (asked.classes, asked.texts) if name]
        found = [self.contents.texts(name) for name in wanted]
        features = self.replica.oracle.store if prompt.image_tokens is None else None
        lost = missing(asked.images, self.contents, features)
        texts = [texts for texts in found if texts is not None]
        if lost or len(texts) < len(found):
            names = [name for name, texts in zip(wanted, found, strict=True) if texts is None]
            raise unknown(images=lost, texts=list(dict.fromkeys(names)))
        if texts:
            self.check_texts(texts, prompt)
        return Job(asked.images, texts, prompt.contexts, prompt.image_tokens, prompt.pictures)

    def check_texts(self, texts: Sequence[Texts], prompt: Prompt) -> None:
        encoded = len(prompt) * len(texts[0]) + sum(map(len, texts[1:]))
        if encoded > self.limits.encoded:
            raise wrong(
                f"{encoded:,} texts would be encoded; {self.limits.encoded:,} may be at once."
            )
        with refused():
            self.replica.path(texts[0]).check(prompt.tokens)

    def cost(self, what: str, job: Job) -> tuple[tuple[int, int], int]:
        """((queries, image queries), numbers of the answer)."""
        prompt = Prompt(job.contexts, job.image_tokens, job.pictures, *job.texts[1:])
        images = len(job.images) if job.pictures is None else job.pictures.shape[1]
        texts = sum(map(len, job.texts))
        if what == IMAGE_FEATURES:
            return price(None, 0, images), images * self.description.embed_dim
        classes = len(job.texts[0])
        if what == TEXT_FEATURES:
            numbers = len(prompt) * texts * self.description.embed_dim
            return price(prompt, classes, None), numbers
        return price(prompt, classes, images), len(prompt) * images * texts

    async def embedding(self, account: Account, words: str) -> bytes:
        """Token embeddings `[n, D]`, which contexts are made of."""
        account.require("contexts")
        if len(words) > self.limits.characters:
            raise wrong(f"The words have more than {self.limits.characters:,} characters.")
        with refused():
            found = await self.slowly(self.replica.embed, words)
        return pack({"answer": found})
