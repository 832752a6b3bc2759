"""What the server does with a request that was let in: it is looked at, charged, then done."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import math
import os
import sqlite3
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image, UnidentifiedImageError
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator
from starlette.requests import Request
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from ..trainers.blackbox.data import to_rgb
from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.files import digest
from ..trainers.blackbox.openclip.models import load_model
from ..trainers.blackbox.oracle import Prompt, Texts
from ..trainers.blackbox.oracle.bill import price
from ..trainers.blackbox.oracle.wire import HEADER_BYTES, MEDIA, REQUEST, pack, unpack
from .access import Account, Accounts, Ledger, Refusal, Visit, wrong
from .replica import Contents, Job, Lane, Replica, Task, unknown

QUERY, IMAGE_FEATURES, TEXT_FEATURES = "query", "images", "texts"
# what a question needs, and what may be beside it; a query is about images or about pictures
PARTS: dict[str, tuple[set[str], set[str]]] = {
    QUERY: ({"images", "classes"}, {"texts", "contexts", "image_tokens"}),
    "pictures": ({"pictures", "classes"}, {"texts", "contexts"}),
    IMAGE_FEATURES: ({"images"}, set()),
    TEXT_FEATURES: ({"classes"}, {"texts", "contexts"}),
}
PICTURES, FORMATS = ("image/png", "image/jpeg"), ("PNG", "JPEG")  # of Pillow's, one runs a program
SCAN = b"\xff\xda"  # what a scan of a JPEG begins with, and no other part of its data has
PIXELS, DECODED = 2**25, 2**27  # of a picture; times its scans, each of which decodes all of it
HEADER = 2**23  # bytes of a body's JSON, which takes 30 times as many when it is read
ENCODED = 2**20  # candidates x texts, or x images where each goes through the image tower
IMAGES, TOKENS = 2**16, 1024  # of a question; image tokens of a candidate
TEXTS, CHARACTERS, ALL_CHARACTERS = 2**15, 1000, 2**21  # of a list: texts, of one, of all
WORDS = 256  # texts that are made to tokens at a time, between which others have their turn
Name = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Short = Annotated[str, Field(max_length=CHARACTERS)]
Shapes = Mapping[str, tuple[int, ...]]  # of tensors by name; -1: any size


class TextList(BaseModel):
    """A list of texts: the template with a name in its slots."""

    model_config = ConfigDict(extra="forbid", strict=True)
    names: Annotated[list[Short], FailFast(), Field(min_length=1, max_length=TEXTS)]
    template: Short = "{}."

    @model_validator(mode="after")
    def bounded(self) -> TextList:
        slots = self.template.count("{}")
        lengths = [len(self.template) + slots * (len(name) - 2) for name in self.names]
        if max(lengths) > CHARACTERS or sum(lengths) > ALL_CHARACTERS:
            raise ValueError(f"{CHARACTERS:,} characters may be, {ALL_CHARACTERS:,} in all texts")
        return self


class Asked(BaseModel):
    """What is said beside the tensors of a question."""

    model_config = ConfigDict(extra="forbid", strict=True)
    images: Annotated[list[Name], FailFast(), Field(max_length=IMAGES)] = []
    classes: Name | None = None
    texts: Name | None = None


def read_tensors(
    body: bytes, shapes: Shapes, kinds: Sequence[torch.dtype]
) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors of a body, which are of these shapes and finite, and what is said about them."""
    length = int.from_bytes(body[:HEADER_BYTES], "little")
    if HEADER < length <= len(body):
        raise wrong(f"The header of the body has {length:,} bytes; {HEADER:,} may be.")
    tensors, about = unpack(body)
    for name, tensor in tensors.items():
        shape, given = shapes.get(name, ()), tuple(tensor.shape)
        sizes = [own if size < 0 else size for size, own in zip(shape, given, strict=False)]
        fits = len(given) == len(shape) > 0 and given == tuple(sizes)
        some = all(given if name == "pictures" else given[:1])
        if not fits or not some or tensor.dtype not in kinds:
            wanted = f"{dict(shapes)} of {' or '.join(map(str, kinds))}, where -1 is any size"
            raise wrong(f"'{name[:40]}' is {tensor.dtype} {given[:9]}; there may be {wanted}.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise wrong(f"'{name}' has numbers that are not finite.")
    return tensors, about


class Service:
    """A model, those who may ask it, and what they have used."""

    def __init__(self, replica: Replica, accounts: Accounts, ledger: Ledger) -> None:
        self.replica, self.accounts, self.ledger = replica, accounts, ledger
        self.description, self.contents = replica.description, replica.contents
        self.most, self.registry = accounts.most, CollectorRegistry()
        self.disk = Lane("disk", threads=2)  # bodies, the ledger, what is kept
        self.slow = Lane("slow")  # pictures and words: seconds and much memory, one at a time

    async def on(self, lane: Lane, account: Account, call: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.wrap_future(lane.submit(Task(account.name, partial(call, *given))))

    def close(self) -> None:
        for lane in (self.replica, self.slow, self.disk):
            lane.close()
        self.ledger.db.close()

    async def health(self, request: Request, visit: None) -> dict[str, Any]:
        return {"status": "ok"}

    async def metrics(self, request: Request, visit: Visit) -> str:
        if not visit.account.metrics:
            raise Refusal(403, "not_granted", "The server's metrics are not granted to this key.")
        return generate_latest(self.registry).decode()

    async def describe(self, request: Request, visit: Visit) -> dict[str, Any]:
        return {
            "model": asdict(self.description),
            "grants": sorted(visit.account.grants),
            "top_k": visit.account.top_k,
            "max_bytes": self.most,
        }

    async def usage(self, request: Request, visit: Visit) -> dict[str, int]:
        return await self.on(self.disk, visit.account, self.ledger.usage, visit.account)

    async def embedding(self, request: Request, visit: Visit) -> bytes:
        """Token embeddings `[n, D]` of words, which contexts are made of."""
        visit.account.require("contexts")
        words = request.query_params.get("words", "")
        found = await self.on(self.slow, visit.account, self.replica.embed, words)
        return pack({"answer": found})

    async def texts(self, request: Request, visit: Visit) -> dict[str, Any]:
        """Keep a list of texts; tells its name, and how many context tokens fit in front."""
        account, body = visit.account, await visit.body(request)
        account.require()
        given = await self.on(self.disk, account, TextList.model_validate_json, body)
        room = self.description.context_length
        for start in range(0, len(given.names), WORDS):  # the first that does not fit ends it
            part = given.names[start : start + WORDS]
            left = await self.on(self.slow, account, self.replica.room, part, given.template)
            room = min(room, left)
        texts = Texts.of(given.names, given.template)
        await self.on(self.disk, account, self.contents.put_texts, account.name, texts, room)
        return {"id": texts.id, "room": room}

    async def images(self, request: Request, visit: Visit) -> dict[str, Any]:
        """Keep images: one PNG or JPEG, or a tensor of many `[B, 3, H, W]`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (MEDIA, *PICTURES):
            raise Refusal(415, "media_type", f"{MEDIA}, {' or '.join(PICTURES)} is expected.")
        account, body = visit.account, await visit.body(request)
        account.require()
        lane, picture = (self.slow, True) if kind in PICTURES else (self.disk, False)
        return {"ids": await self.on(lane, account, self.keep, account.name, body, picture)}

    def keep(self, owner: str, body: bytes, picture: bool) -> list[str]:
        if picture:
            images = self.decoded(body)
        else:  # of 8 bits, or normalised
            shapes = {"images": (-1, *self.contents.shape)}
            tensors, _ = read_tensors(body, shapes, (torch.uint8, torch.float32))
            if not tensors:
                raise wrong("A tensor 'images' is expected.")
            images = tensors["images"]
        names = [digest(image) for image in images]
        self.contents.put_images(owner, names, images)
        return names

    def decoded(self, body: bytes) -> torch.Tensor:
        """A picture of any size `[1, 3, H, W]`: its short side is resized, the centre cut out."""
        size = self.description.image_size
        mode = InterpolationMode(self.description.interpolation)
        prepare = Compose([Resize(min(size), mode), CenterCrop(size), PILToTensor()])
        try:
            with Image.open(io.BytesIO(body), formats=FORMATS) as opened:
                (width, height), scans = opened.size, max(1, body.count(SCAN))
                if max(width, height) > 50 * min(width, height):
                    raise ValueError("it is more than 50 times as long as it is wide")
                if width * height > PIXELS or width * height * scans > DECODED:
                    raise ValueError(f"{PIXELS:,} pixels may be, {DECODED:,} in all scans")
                return prepare(to_rgb(opened))[None]
        except Exception as e:  # of many kinds; of one the words hold an address in memory
            reason = "unknown" if isinstance(e, UnidentifiedImageError) else first_line(e)
            raise wrong(f"The picture is no {' or '.join(FORMATS)} to decode ({reason}).") from e

    async def question(self, what: str, request: Request, visit: Visit) -> bytes:
        """The answer to a question, which ends where the client leaves."""
        # of any length, and kept for a day
        name = digest(request.headers.get(REQUEST, "") or uuid.uuid4().hex)
        body = await visit.body(request)
        answer = asyncio.ensure_future(self.answer(what, visit, name, body))
        left = asyncio.ensure_future(request.receive())  # nothing is left to come but the end
        try:
            await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Refusal(400, "left", "The client has left.")
            return await answer
        finally:
            left.cancel()
            answer.cancel()

    async def answer(self, what: str, visit: Visit, name: str, body: bytes) -> bytes:
        """A question is charged before it is asked: what fails is not, what nobody awaits is."""
        account = visit.account
        job = await self.on(self.disk, account, self.look_at, what, account, body)
        visit.hold(job.size)
        charge = account, name, job.digest, job.cost
        await self.on(self.disk, account, self.ledger.charge, *charge)
        try:
            found = await asyncio.wrap_future(self.replica.submit(job))
            return await self.on(self.disk, account, pack, {"answer": found})
        except Exception:
            await self.on(self.disk, account, self.ledger.refund, account, name)
            raise

    def look_at(self, what: str, account: Account, body: bytes) -> Job:
        """What is asked, with names replaced by what they name, its price and its room."""
        account.require("logits" if what == QUERY else "features")
        about, owner, pictures = self.description, account.name, (-1, -1, *self.contents.shape)
        wanted = {"contexts": (-1, -1, about.width), "pictures": pictures}
        if about.image_width is not None:
            wanted["image_tokens"] = (-1, -1, about.image_width)
        tensors, said = read_tensors(body, wanted, (torch.float32,))
        asked = Asked.model_validate(said or {})
        given = {name for name, value in asked if value} | {*tensors}
        needed, allowed = PARTS["pictures" if what == QUERY and "pictures" in given else what]
        if needed - given or given - needed - allowed:
            raise wrong(
                f"{' and '.join(sorted(needed))} must be given, and beside them may be "
                f"{' and '.join(sorted(allowed)) or 'nothing'}; there are {sorted(given)}."
            )
        if len({len(tensor) for tensor in tensors.values()}) > 1:
            raise wrong("The tensors are of different numbers of candidates.")
        if "image_tokens" in given and tensors["image_tokens"].shape[1] > TOKENS:
            raise wrong(f"There are too many image tokens; {TOKENS:,} may be.")
        prompt = Prompt(**tensors)
        account.require(*prompt.grants)
        named = asked.classes, asked.texts
        lists = {name: self.contents.texts(owner, name) if name else None for name in named}
        lost = self.contents.missing(owner, asked.images)
        gone = [name for name, kept in lists.items() if name and kept is None]
        if lost or gone:
            raise unknown(lost, gone)
        classes, room = lists[asked.classes] or (None, 0)
        further, _ = lists[asked.texts] or (None, 0)
        if prompt.tokens > room:
            words = f"{prompt.tokens:,} tokens, and with the longest of these texts {room:,} fit"
            raise wrong(f"The context has {words}. Shorten the context or the text.")
        prompt = replace(prompt, texts=further)
        job, P, E = Job(owner, asked.images, classes, prompt), len(prompt), about.embed_dim
        job.top_k = account.top_k if what == QUERY else 0
        job.digest = f"{what} {hashlib.sha256(body).hexdigest()}"
        B = len(job.images) if prompt.pictures is None else prompt.pictures.shape[1]
        C, M = len(job.classes or ()), len(prompt.texts or ())
        shapes = {QUERY: (P, B, C + M), IMAGE_FEATURES: (B, E), TEXT_FEATURES: (P, C + M, E)}
        priced = None if what == IMAGE_FEATURES else prompt
        job.cost = price(priced, C, None if what == TEXT_FEATURES else B)
        numbers, encoded = math.prod(shapes[what]), P * C + M
        if prompt.image_tokens is not None:
            numbers, encoded = max(numbers, P * B * E), max(encoded, P * B)
        job.size = numbers * torch.float32.itemsize
        if job.size > self.most:
            words = (
                f"The answer would have {job.size:,} bytes, and {self.most:,} may be (the server's "
                f"--max-mb). Ask about fewer images or candidates at once: lower "
                f"DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE, or, where a step is "
                f"about all training images, DATASET.NUM_SHOTS."
            )
            raise Refusal(413, "answer_too_large", words)
        if encoded > ENCODED:
            raise wrong(f"{encoded:,} texts or images would be encoded; {ENCODED:,} may be.")
        return job


def build_service(args: argparse.Namespace, accounts: Sequence[Account]) -> Service:
    """The service, for those who may ask it; `args` as the command line has them."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    state = os.path.expanduser(args.state or f"{home}/dassl-blackbox")
    if state.startswith("~"):
        raise BlackBoxError(f"There is no home folder for {state}. Give --state, a folder.")
    # each of another text is printed, and remembered to be printed once
    warnings.filterwarnings("ignore", module="PIL")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except Exception as e:  # torch raises errors of many kinds
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        why = f"cannot be used: {first_line(e)}. Give one of {', '.join(here)}."
        raise BlackBoxError(f"--device is {device}, which {why}") from e
    folder = Path(state)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        # who may write there may put on any bill what they like
        if os.name == "posix" and (found.st_mode & 0o022 or os.getuid() not in (0, found.st_uid)):
            raise OSError(f"others may write to it: chmod 700 {folder}")
        ledger = Ledger(folder / "ledger.sqlite")
        loaded = load_model(args.backbone, args.prec, device)
        loaded.description = replace(loaded.description, name=args.name or args.backbone)
        limit, about = 2**20 * args.store_mb, loaded.description
        contents = Contents(folder / "contents", limit, about, [each.name for each in accounts])
    except (OSError, sqlite3.Error) as e:
        why = f"cannot be used ({first_line(e)}). Choose a --state of your own."
        raise BlackBoxError(f"The folder {folder}, of bills and images, {why}") from e
    room = Accounts(accounts, 2**20 * args.max_mb, args.seconds)
    return Service(Replica(loaded, contents), room, ledger)
