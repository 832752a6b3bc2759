"""What the server does with a request that was let in: it is looked at, charged, then done."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from ..trainers.blackbox.data import to_rgb
from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.files import digest
from ..trainers.blackbox.openclip.models import load_model
from ..trainers.blackbox.oracle import Prompt, Texts
from ..trainers.blackbox.oracle.bill import UNITS, price
from ..trainers.blackbox.oracle.interface import let_out
from ..trainers.blackbox.oracle.wire import pack
from .access import Account, Accounts
from .contents import Contents
from .ledger import Ledger
from .replica import Job, Lane, Replica
from .requests import (
    Asked,
    Bodies,
    Limits,
    Refusal,
    read_images,
    read_question,
    read_texts,
    unknown,
    wrong,
)

QUERY, IMAGE_FEATURES, TEXT_FEATURES = "query", "images", "texts"
NUMBER_BYTES = 4
FORMATS = ("PNG", "JPEG")  # Pillow's others are many, and one of them runs a program
SCAN = b"\xff\xda"  # what a scan of a JPEG begins with, and no other part of its data has
WORDS = 256  # texts that are made to tokens at a time, between which others have their turn
DISK_THREADS = 2  # that read bodies, and write to the ledger and to what is kept


@dataclass
class Service:
    """A model, those who may ask it, and what they have used."""

    replica: Replica
    accounts: Accounts
    ledger: Ledger
    contents: Contents
    limits: Limits

    def __post_init__(self) -> None:
        self.description = self.replica.description
        self.disk = Lane("disk", DISK_THREADS)
        # what may take seconds and much memory, one at a time: pictures, words
        self.slow = Lane("slow", 1)
        self.bodies = Bodies(self.limits, len(self.accounts.accounts))
        self.charged = Counter[str]()  # since the start, of all keys

    async def on(self, lane: Lane, account: Account, call: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.wrap_future(lane.submit(account.name, call, *given))

    def close(self) -> None:
        self.replica.stop()
        for lane in (self.slow, self.disk):
            lane.close()
        self.ledger.close()
        self.contents.close()

    def describe(self, account: Account) -> dict[str, Any]:
        return {
            "model": asdict(self.description),
            "grants": sorted(account.grants),
            "top_k": account.top_k,
            "max_bytes": self.limits.body,
        }

    async def usage(self, account: Account) -> dict[str, int]:
        return await self.on(self.disk, account, self.ledger.usage, account)

    async def embedding(self, account: Account, words: str) -> bytes:
        """Token embeddings `[n, D]`, which contexts are made of."""
        account.require("contexts")
        if len(words) > self.limits.characters:
            raise wrong(f"The words have more than {self.limits.characters:,} characters.")
        return pack({"answer": await self.on(self.slow, account, self.replica.embed, words)})

    # ------------------------------------------------------------------ what is sent once

    async def take_texts(self, account: Account, body: bytes) -> dict[str, Any]:
        """Keep a list of texts; tells its name, and how many context tokens fit in front."""
        account.require_any()
        given = await self.on(self.disk, account, read_texts, body, self.limits)
        room = self.description.context_length
        for start in range(0, len(given.names), WORDS):  # the first that does not fit ends it
            part = given.names[start : start + WORDS]
            left = await self.on(self.slow, account, self.replica.room, part, given.template)
            room = min(room, left)
        texts = Texts.of(given.names, given.template)
        await self.on(self.disk, account, self.contents.put_texts, account.name, texts, room)
        return {"id": texts.id, "room": room}

    async def take_images(self, account: Account, body: bytes, picture: bool) -> dict[str, Any]:
        """Keep images: one PNG or JPEG, or a tensor of many."""
        account.require_any()
        lane, read = (self.slow, self.decoded) if picture else (self.disk, self.tensor)
        return await self.on(lane, account, self.keep, account, read, body)

    def keep(
        self, account: Account, read: Callable[[bytes], torch.Tensor], body: bytes
    ) -> dict[str, Any]:
        images = read(body)
        names = [digest(image) for image in images]
        self.contents.put_images(account.name, names, images)
        return {"ids": names}

    def tensor(self, body: bytes) -> torch.Tensor:
        return read_images(body, self.description)

    def decoded(self, body: bytes) -> torch.Tensor:
        """A picture of any size `[1, 3, H, W]`: its short side is resized, the centre cut out."""
        size, limits = self.description.image_size, self.limits
        mode = InterpolationMode(self.description.interpolation)
        prepare = Compose([Resize(min(size), mode), CenterCrop(size), PILToTensor()])
        try:
            with Image.open(io.BytesIO(body), formats=FORMATS) as opened:
                (width, height), scans = opened.size, max(1, body.count(SCAN))
                if max(width, height) > 50 * min(width, height):
                    raise ValueError("it is more than 50 times as long as it is wide")
                if width * height > limits.pixels or width * height * scans > limits.decoded:
                    raise ValueError(
                        f"it has {width * height:,} pixels in {scans:,} scans; {limits.pixels:,} "
                        f"may be, {limits.decoded:,} in all scans"
                    )
                return prepare(to_rgb(opened))[None]
        # Pillow raises errors of many kinds on damaged data
        except (Exception, Image.DecompressionBombError) as e:
            reason = first_line(e)
            if isinstance(e, UnidentifiedImageError):  # its own words hold an address in memory
                reason = f"it is no {' or '.join(FORMATS)}"
            raise wrong(f"The picture cannot be decoded ({reason}).") from e

    # ------------------------------------------------------------------ questions

    async def answer(
        self, what: str, account: Account, name: str, body: bytes
    ) -> tuple[bytes, int]:
        """The answer to a question, as a body; and its room, to be given back when it is sent.

        Args:
            what: `query`, `images` (their features) or `texts` (theirs).
            account: of the client.
            name: of the request, by its client; empty: it has none, and counts by itself.
            body: of the request.
        """
        looked = await self.on(self.disk, account, self.look_at, what, account, body)
        job, content, cost, room = looked
        self.bodies.hold(account.name, room)  # before it is charged
        try:
            request = account, name, content, cost
            charged = await self.on(self.disk, account, self.ledger.charge, *request)
            try:
                found = await asyncio.wrap_future(self.replica.submit(job))
                answer = await self.on(self.disk, account, self.write, what, account, job, found)
            except asyncio.CancelledError:
                job.left = True
                raise
            except Exception:
                # what failed is not charged; what a client did not wait for is
                await self.on(self.disk, account, self.ledger.refund, account, name)
                raise
        except BaseException:
            self.bodies.hold(account.name, -room)
            raise
        if charged:
            self.charged.update(dict(zip(UNITS, cost, strict=True)))
        return answer, room

    def look_at(
        self, what: str, account: Account, body: bytes
    ) -> tuple[Job, str, tuple[int, int], int]:
        """(what is asked, its content's name, its cost, the bytes that it will hold), where it may
        be asked.

        Raises:
            Refusal: it may not.
        """
        account.require("logits" if what == QUERY else "features")
        asked, prompt = read_question(body, self.description, self.limits)
        account.require(*prompt.grants)
        job = self.job(what, account, asked, prompt)
        images = len(job.images) if job.pictures is None else job.pictures.shape[1]
        classes, further = [*map(len, job.texts), 0, 0][:2]
        texts, width = classes + further, self.description.embed_dim
        if what == IMAGE_FEATURES:
            cost, numbers = price(None, 0, images), images * width
        elif what == TEXT_FEATURES:
            cost, numbers = price(prompt, classes, None), len(prompt) * texts * width
        else:
            full = Prompt(prompt.contexts, prompt.image_tokens, prompt.pictures, *job.texts[1:])
            cost, numbers = price(full, classes, images), len(prompt) * images * texts
        held = numbers
        if prompt.image_tokens is not None:
            held = max(held, len(prompt) * images * width)
        if held * NUMBER_BYTES > self.limits.body:
            raise Refusal(
                413,
                "answer_too_large",
                f"The answer would have {held * NUMBER_BYTES:,} bytes, and {self.limits.body:,} "
                f"may be (the server's --max-mb). Ask about fewer images or candidates at once: "
                f"lower DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE, or, where a "
                f"step is about all training images, DATASET.NUM_SHOTS.",
            )
        seen = len(prompt) * len(job.images) if prompt.image_tokens is not None else 0
        encoded = len(prompt) * classes + further
        for count, things in ((seen, "images"), (encoded, "texts")):
            if count > self.limits.encoded:
                most = self.limits.encoded
                raise wrong(f"{count:,} {things} would be encoded; {most:,} may be at once.")
        content = f"{what} {hashlib.sha256(body).hexdigest()}"
        return job, content, cost, held * NUMBER_BYTES

    def write(self, what: str, account: Account, job: Job, answer: torch.Tensor) -> bytes:
        """What is let out of an answer, as a body."""
        if what == QUERY and account.top_k:
            answer = let_out(answer, len(job.texts[0]), account.top_k)
        return pack({"answer": answer})

    def job(self, what: str, account: Account, asked: Asked, prompt: Prompt) -> Job:
        """What is asked, with names replaced by what they name.

        Raises:
            Refusal: 404 where a name is not known, 422 where it cannot be asked.
        """
        if what == IMAGE_FEATURES:
            if not asked.images or asked.classes or asked.texts or prompt.tensors():
                raise wrong("'images' are expected, and nothing else.")
        elif asked.classes is None:
            raise wrong("'classes' is expected: the name of a list of texts.")
        elif what == QUERY and not asked.images and prompt.pictures is None:
            raise wrong("'images' are expected, or the tensor 'pictures'.")
        elif what == TEXT_FEATURES and (
            asked.images or prompt.pictures is not None or prompt.image_tokens is not None
        ):
            raise wrong("Features of texts depend on contexts alone.")
        owner = account.name
        wanted = [name for name in (asked.classes, asked.texts) if name]
        found = [self.contents.texts(owner, name) for name in wanted]
        lost = self.contents.missing(owner, asked.images)
        lists = [kept for kept in found if kept is not None]
        if lost or len(lists) < len(found):
            gone = [name for name, kept in zip(wanted, found, strict=True) if kept is None]
            raise unknown(images=lost, texts=list(dict.fromkeys(gone)))
        if asked.classes and prompt.tokens > lists[0][1]:
            raise wrong(
                f"The context has {prompt.tokens:,} tokens, and with the longest of these texts "
                f"{lists[0][1]:,} fit. Shorten the context or the text."
            )
        parts = prompt.contexts, prompt.image_tokens, prompt.pictures
        return Job(owner, asked.images, [texts for texts, _ in lists], *parts)


# ---------------------------------------------------------------------- building


@dataclass(frozen=True)
class Options:
    """What a server is started with.

    Attributes:
        backbone: the model, as `MODEL.BACKBONE.NAME` names it.
        name: under which clients know it; empty: the same.
        precision: fp32, fp16, bf16 or amp.
        device: cpu, cuda, cuda:1, …; empty: cuda where there is one.
        grants: of keys that name none of their own.
        top_k: log-probabilities that are let out of an image; 0: logits.
        keys: path of the YAML file of keys; empty: those of the environment.
        state: folder of the ledger and of what was sent; empty: the user's.
        store_mb: bound of what was sent, in 2^20 bytes.
        max_mb: bound of a body and of an answer, in 2^20 bytes.
        seconds: within which a request must have come.
    """

    backbone: str
    name: str = ""
    precision: str = "fp32"
    device: str = ""
    grants: Sequence[str] = ("contexts", "logits")
    top_k: int = 0
    keys: str = ""
    state: str = ""
    store_mb: int = 8192
    max_mb: int = 256
    seconds: int = 60

    @property
    def folder(self) -> Path:
        """Where the state is."""
        home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        folder = os.path.expanduser(self.state or f"{home}/dassl-blackbox")
        if folder.startswith("~"):
            raise BlackBoxError(f"There is no home folder for {folder}. Give --state, a folder.")
        return Path(folder)


def usable(device: str) -> str:
    """The device that is asked for, or cuda where there is one.

    Raises:
        BlackBoxError: it is not here.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except Exception as e:  # torch raises errors of many kinds
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        no_cuda = device.startswith("cuda") and len(here) == 1
        reason = "there is no CUDA device here" if no_cuda else first_line(e)
        raise BlackBoxError(
            f"--device is {device}, which cannot be used: {reason}. Give one of {', '.join(here)}."
        ) from e
    return device


def build_service(options: Options, accounts: Sequence[Account]) -> Service:
    """The service, for those who may ask it.

    Raises:
        BlackBoxError: the model or the folder cannot be used.
    """
    try:
        options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = options.folder.stat()
    except OSError as e:
        raise BlackBoxError(
            f"The folder {options.folder} cannot be made ({first_line(e)}). Choose another --state."
        ) from e
    # who may write there may put on any bill what they like
    if os.name == "posix" and (
        found.st_mode & 0o022 or (found.st_uid != os.getuid() and os.getuid())
    ):
        raise BlackBoxError(
            f"Others may write to the folder {options.folder}, where bills and images would be "
            f"kept: chmod 700 {options.folder}, or choose a --state of your own."
        )
    # each of another text is printed, and remembered to be printed once
    warnings.filterwarnings("ignore", module="PIL")
    loaded = load_model(options.backbone, options.precision, usable(options.device))
    if options.name:
        loaded.description = replace(loaded.description, name=options.name)
    names = [account.name for account in accounts]
    room, about = 2**20 * options.store_mb, loaded.description
    contents = Contents(options.folder / "contents", room, about, names)
    replica = Replica(loaded, contents)
    ledger = Ledger(options.folder / "ledger.sqlite")
    limits = Limits(body=2**20 * options.max_mb, seconds=options.seconds)
    return Service(replica, Accounts(accounts), ledger, contents, limits)
