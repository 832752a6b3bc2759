"""Who may ask, for what, how fast, how much at once, and how much in all."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from starlette.requests import Request

from ..trainers.blackbox.config import StrictLoader
from ..trainers.blackbox.errors import BlackBoxError
from ..trainers.blackbox.files import read_text
from ..trainers.blackbox.oracle.bill import UNITS, Price
from ..trainers.blackbox.oracle.interface import GRANTS
from ..trainers.blackbox.oracle.wire import DAMAGED, DIGEST, digest_of

KEYS = "BLACKBOX_KEYS"  # environment variable: name=key,name=key
MINUTE = 60.0
TOGETHER = 4  # bodies of the largest size that are held at once
WAITING = 128  # requests of an account that are on their way
LONGEST = 800  # characters of a message, which may quote what was sent
REMEMBERED = 24 * 3600.0  # seconds for which a request's name is kept
TABLES = """
CREATE TABLE IF NOT EXISTS usage
    (key TEXT PRIMARY KEY, queries INTEGER, image_queries INTEGER, requests INTEGER);
CREATE TABLE IF NOT EXISTS charges (
    key TEXT, name TEXT, digest TEXT, queries INT, image_queries INT, at REAL, tries INT,
    PRIMARY KEY (key, name)
);
CREATE INDEX IF NOT EXISTS charges_at ON charges (at);
"""
ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    queries = queries + excluded.queries, image_queries = image_queries + excluded.image_queries,
    requests = requests + excluded.requests
"""
Number = Annotated[int, Field(ge=0, lt=2**53)]


class Refusal(Exception):
    """Becomes an answer with this status, a code for programs and a sentence for people."""

    def __init__(self, status: int, code: str, words: str, **more: Any) -> None:
        words = " ".join(words.split())
        words = words if len(words) <= LONGEST else f"{words[:LONGEST]}…"
        super().__init__(words)
        self.status, self.headers = status, dict[str, str]()
        self.body = {"error": {"code": code, "message": words}, **more}


def wrong(words: str) -> Refusal:
    return Refusal(422, "invalid", words)


def complaint(error: ValidationError) -> tuple[tuple[int | str, ...], str]:
    """Where pydantic finds something wrong first, and what, without what was given."""
    first = error.errors(include_input=False, include_url=False)[0]
    return first["loc"], first["msg"]


def hashed(key: Any) -> bytes:
    """SHA-256 of a key, which is kept in its place."""
    if not isinstance(key, str) or not re.fullmatch("[!-~]{8,}", key):
        raise ValueError("no such text")
    return hashlib.sha256(key.encode()).digest()


class Account(BaseModel):
    """What one key is good for; usage is kept under the name, also when the key is changed."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(pattern=r"^\S(.*\S)?$")]
    key: Annotated[bytes, BeforeValidator(hashed), Field(repr=False)]  # its digest
    # let in: contexts, image_tokens; let out: logits, features
    grants: Annotated[frozenset[Literal[GRANTS]], Strict(False)]  # type: ignore[valid-type]
    top_k: Number = 0  # log-probabilities that are let out of an image; 0: logits
    max_queries: Number = 0  # budgets; 0: no limit
    max_image_queries: Number = 0
    rate: Number = 0  # requests a minute; 0: no limit
    metrics: bool = False  # whether it may read the server's, which sum over all keys

    def model_post_init(self, context: Any) -> None:
        if self.top_k:
            self.grants = self.grants - {"features"}

    def require(self, *grants: str) -> None:
        """Raise a Refusal unless all these are granted, and something is."""
        missing = [grant for grant in grants if grant not in self.grants]
        if missing or not self.grants:
            given = ", ".join(sorted(self.grants)) or "nothing"
            words = f"{[*missing, 'this'][0]} is not granted to this key (granted: {given})."
            raise Refusal(403, "not_granted", words)


class Accounts:
    """The accounts of a server, and what each has on its way: whatever the others hold, bodies and
    answers within its share of the room.
    """

    def __init__(self, accounts: Sequence[Account], most: int, seconds: float) -> None:
        self.accounts, self.most, self.seconds = tuple(accounts), most, seconds
        self.room = TOGETHER * most
        self.share = self.room // max(1, len(accounts))
        self.held, self.requests = Counter[str](), Counter[str]()  # by name
        self.left: dict[str, tuple[float, float]] = {}  # name: (requests that are left, when)

    def of(self, authorization: str) -> Account:
        """The account of `Bearer KEY`; each is compared in a time that tells nothing of its key."""
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = [account for account in self.accounts if hmac.compare_digest(account.key, given)]
        if not found or scheme.lower() != "bearer":
            words = "A known key is needed, in the header 'Authorization: Bearer KEY'."
            raise Refusal(401, "unknown_key", words)
        return found[0]

    @contextmanager
    def visit(self, account: Account) -> Iterator[Visit]:
        """A request, until its answer is sent, unless there are too many a minute or at once."""
        name, rate, now, visit = account.name, account.rate, time.monotonic(), Visit(self, account)
        if rate:
            left, before = self.left.get(name, (float(rate), now))
            left = min(rate, left + (now - before) * rate / MINUTE)
            self.left[name] = (left - (left >= 1), now)
            if left < 1:
                refusal = Refusal(429, "too_fast", f"This key may make {rate:,} requests a minute.")
                refusal.headers["Retry-After"] = f"{(1 - left) * MINUTE / rate:.2f}"
                raise refusal
        if self.requests[name] >= WAITING:
            raise Refusal(503, "busy", "Too many requests of this key are on their way.")
        self.requests[name] += 1
        try:
            yield visit
        finally:
            self.requests[name] -= 1
            self.held[name] -= visit.held


@dataclass
class Visit:
    """One request: whose it is, and the bytes that are held for it."""

    accounts: Accounts
    account: Account
    held: int = 0

    def hold(self, size: int) -> None:
        """Count bytes, unless others hold all the room."""
        name, of, held = self.account.name, self.accounts, self.accounts.held
        if held[name] + size > of.share and held.total() + size > of.room:
            raise Refusal(503, "busy", "Too much is on its way at once.")
        held[name] += size
        self.held += size

    async def body(self, request: Request) -> bytes:
        """The body of a request, whose bytes count as they come, not as they are announced."""
        declared, most = request.headers.get("content-length", ""), self.accounts.most
        if not declared.isascii() or not declared.isdigit():
            raise Refusal(411, "length_required", "A Content-Length is needed.")
        length, body = int(declared[:20]), bytearray()
        if length > most:
            raise Refusal(413, "too_large", f"A body may have {most:,} bytes, not {length:,}.")
        with anyio.fail_after(self.accounts.seconds):
            async for chunk in request.stream():
                self.hold(len(chunk))
                body += chunk
                if len(body) > length:
                    break
        if len(body) != length or request.headers.get(DIGEST, "") not in ("", digest_of(body)):
            raise Refusal(400, DAMAGED, f"The body is not what its length and {DIGEST} say.")
        return bytes(body)


def read_accounts(path: str, grants: Sequence[str], top_k: int) -> tuple[list[Account], str]:
    """The accounts of a YAML file and of the environment, and a key that was made where none is.

    `grants` and `top_k` are of those that do not say; `metrics` is true for the only key there is,
    since they tell of all. No error quotes anything: any text may be a key, wherever it stands.
    """
    entries = read_entries(path) if path else []
    for i, pair in enumerate(filter(None, os.environ.get(KEYS, "").split(",")), 1):
        name, _, key = pair.partition("=")
        entries.append((f"Entry {i} of {KEYS}", {"name": name.strip(), "key": key.strip()}))
    made = "" if entries else secrets.token_urlsafe(24)
    if made:
        entries = [("The key", {"name": "default", "key": made})]
    given = {"grants": grants, "top_k": top_k, "metrics": len(entries) == 1}
    whole = [{**given, **said} if isinstance(said, dict) else said for _, said in entries]
    try:
        accounts = TypeAdapter(list[Account]).validate_python(whole)
    except ValidationError as e:
        (place, *parts), words = complaint(e)
        part = next((part for part in parts if part in Account.model_fields), "an entry")
        raise BlackBoxError(
            f"{entries[int(place)][0]}: {part}: {words}. A key has 'name' and 'key' (8 or "
            f"more characters of ASCII without a space, in quotation marks in a file), and perhaps "
            f"{', '.join([*Account.model_fields][2:])}."
        ) from None
    for part in ("name", "key"):
        if len({getattr(account, part) for account in accounts}) < len(accounts):
            raise BlackBoxError("Two keys have the same name, or are the same key.")
    return accounts, made


def read_entries(path: str) -> list[tuple[str, Any]]:
    """The entries of a key file, each with the place where it stands."""
    cure = "A list is expected, each entry with 'name' and 'key'."
    text = read_text(path, cure)
    if os.name == "posix" and os.stat(path).st_mode & 0o077:
        raise BlackBoxError(f"Others may read {path}, which holds keys: chmod 600 {path}")
    try:
        loader = StrictLoader(text)
        nodes = getattr(loader.get_single_node(), "value", [])
        places = [f"{path}, line {node.start_mark.line + 1}" for node in nodes]
        return [(at, loader.construct_document(n)) for at, n in zip(places, nodes, strict=True)]
    except Exception as e:  # PyYAML's own, and what its constructors raise
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        why = "is no list in YAML, or has an entry that is given twice"
        raise BlackBoxError(f"{path}{line} {why}. {cure}") from None


class Ledger:
    """What each key has used, in SQLite: it outlives the server, and several may share it."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.RLock()
        self.charged = Counter[str]()  # by this process, of all keys
        self.db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")  # a charge outlives a power cut
        self.db.executescript(TABLES)

    def charge(self, account: Account, name: str, digest: str, cost: Price) -> None:
        """Put the cost on an account, which must pay for it; once for this name and digest."""
        now, who = time.time(), (account.name, name)
        with self.lock, self.db:
            self.db.execute("BEGIN IMMEDIATE")
            known = self.db.execute(
                "UPDATE charges SET tries = tries + 1 WHERE key = ? AND name = ? RETURNING digest",
                who,
            ).fetchall()
            if known == [(digest,)]:
                return
            if known:
                words = "Another request of this key had the same Idempotency-Key."
                raise Refusal(422, "name_taken", words)
            usage = self.usage(account)
            for unit, more in zip(UNITS, cost, strict=True):
                before, limit = usage[unit], usage[f"max_{unit}"]
                if limit and before + more > limit:
                    words = f"{before:,} of the {limit:,} {unit.replace('_', ' ')} of this key are"
                    words = f"{words} used, and the request costs {more:,}."
                    raise Refusal(402, "budget_spent", words)
            self.add(account, *cost, 1)
            entry = (*who, digest, *cost, now)
            self.db.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, 1)", entry)
            self.db.execute("DELETE FROM charges WHERE at < ?", (now - REMEMBERED,))

    def refund(self, account: Account, name: str) -> None:
        """Take back the charge of a request of which all tries have failed."""
        who = account.name, name
        with self.lock, self.db:
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("UPDATE charges SET tries = tries - 1 WHERE key = ? AND name = ?", who)
            gone = self.db.execute(
                "DELETE FROM charges WHERE key = ? AND name = ? AND tries <= 0 "
                "RETURNING queries, image_queries",
                who,
            ).fetchall()
            for queries, image_queries in gone:
                self.add(account, -queries, -image_queries, -1)

    def add(self, account: Account, *counts: int) -> None:
        self.db.execute(ADD, (account.name, *counts))
        self.charged.update(dict(zip((*UNITS, "requests"), counts, strict=True)))

    def usage(self, account: Account) -> dict[str, int]:
        """What an account has used, and its limits."""
        of = (*UNITS, "requests")
        with self.lock:
            found = self.db.execute(
                f"SELECT {', '.join(of)} FROM usage WHERE key = ?", (account.name,)
            ).fetchone()
        limits = {f"max_{unit}": getattr(account, f"max_{unit}") for unit in UNITS}
        return {**dict(zip(of, found or (0, 0, 0), strict=True)), **limits}
