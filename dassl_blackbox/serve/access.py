"""Who may ask, for what, how much and how fast."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..trainers.blackbox.config import StrictLoader
from ..trainers.blackbox.errors import BlackBoxError
from ..trainers.blackbox.files import read_text
from ..trainers.blackbox.oracle.interface import GRANTS
from .requests import Refusal

KEYS = "BLACKBOX_KEYS"  # environment variable: name=key,name=key
MINUTE = 60.0
Number = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True)
class Account:
    """What one key is good for.

    Attributes:
        name: under which usage is kept; it stays when the key is changed.
        digest: SHA-256 of the key.
        grants: what is let in (contexts, image_tokens) and out (logits, features).
        top_k: log-probabilities that are let out of an image; 0: logits.
        max_queries, max_image_queries: budgets; 0: no limit.
        rate: requests a minute; 0: no limit.
        metrics: whether it may read the server's, which sum over all keys.
    """

    name: str
    digest: bytes = field(repr=False)
    grants: frozenset[str]
    top_k: int = 0
    max_queries: int = 0
    max_image_queries: int = 0
    rate: int = 0
    metrics: bool = False

    def require_any(self) -> None:
        """Nothing is kept for a key that may ask nothing."""
        if not self.grants:
            raise Refusal(403, "not_granted", "Nothing is granted to this key.")

    def require(self, *grants: str) -> None:
        for grant in grants:
            if grant not in self.grants:
                given = ", ".join(sorted(self.grants)) or "nothing"
                raise Refusal(
                    403, "not_granted", f"'{grant}' is not granted to this key (granted: {given})."
                )


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Accounts:
    """The keys of a server, and how many requests each may still make in this minute."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self.accounts = tuple(accounts)
        self.lock = threading.Lock()
        self.left: dict[str, tuple[float, float]] = {}  # name: (requests that are left, when)

    def of(self, authorization: str | None) -> Account:
        """The account of the header `Authorization: Bearer KEY`.

        All keys are compared, each in a time that does not depend on the key.

        Raises:
            Refusal: 401.
        """
        scheme, _, key = (authorization or "").partition(" ")
        found, given = None, digest_of(key.strip())
        for account in self.accounts:
            if hmac.compare_digest(account.digest, given):
                found = account
        if found is None or scheme.lower() != "bearer":
            raise Refusal(
                401,
                "unknown_key",
                "A known key is needed, in the header 'Authorization: Bearer KEY'.",
                {"WWW-Authenticate": "Bearer", "Connection": "close"},
            )
        return found

    def spend(self, account: Account) -> None:
        """Count a request against the account's rate.

        Raises:
            Refusal: 429, with the seconds after which there is room.
        """
        if not account.rate:
            return
        each = MINUTE / account.rate
        with self.lock:
            now = time.monotonic()
            left, before = self.left.get(account.name, (float(account.rate), now))
            left = min(account.rate, left + (now - before) / each)
            enough = left >= 1
            self.left[account.name] = (left - enough, now)
        if not enough:
            wait = (1 - left) * each
            raise Refusal(
                429,
                "too_fast",
                f"This key may make {account.rate:,} requests a minute.",
                {"Retry-After": f"{wait:.2f}"},
            )


def read_accounts(path: str, grants: Sequence[str], top_k: int) -> tuple[list[Account], str]:
    """The accounts of a YAML file and of the environment, and a key that was made where none is.

    The file is a list of `Entry`; what one does not say is given here, or no limit. `metrics` is
    true for the only key there is, since they tell of all. The environment variable `BLACKBOX_KEYS`
    holds `name=key,name=key`.
    """
    entries = read_entries(path) if path else []
    for i, pair in enumerate(filter(None, os.environ.get(KEYS, "").split(",")), 1):
        name, _, key = pair.partition("=")
        entries.append((f"Entry {i} of {KEYS}", {"name": name.strip(), "key": key.strip()}))
    made = ""
    if not entries:
        made = secrets.token_urlsafe(24)
        entries = [("The key", {"name": "default", "key": made})]
    accounts = [account_of(entry, grants, top_k, where) for where, entry in entries]
    for part in ("name", "digest"):
        if len({getattr(account, part) for account in accounts}) < len(accounts):
            raise BlackBoxError("Two keys have the same name, or are the same key.")
    if len(accounts) == 1 and "metrics" not in entries[0][1]:
        accounts = [replace(accounts[0], metrics=True)]
    return accounts, made


def read_entries(path: str) -> list[tuple[str, Any]]:
    """The entries of a key file, each with the place where it stands.

    Any text of the file may be a key, wherever it stands: no error quotes it.

    Raises:
        BlackBoxError: it cannot be read, is no list, or others may read it.
    """
    cure = "A list is expected, each entry with 'name' and 'key'."
    text = read_text(path, cure)
    if os.name == "posix" and os.stat(path).st_mode & 0o077:
        raise BlackBoxError(f"Others may read {path}, which holds keys: chmod 600 {path}")
    try:
        content, node = yaml.load(text, StrictLoader), yaml.compose(text)
    except Exception as e:  # PyYAML's own, and what its constructors raise
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        raise BlackBoxError(
            f"{path}{line} is not YAML, or has an entry that is given twice. {cure}"
        ) from None
    if content is not None and not isinstance(content, list):
        raise BlackBoxError(f"{path} is no list of keys. {cure}")
    lines = [f"{path}, line {p.start_mark.line + 1}" for p in getattr(node, "value", [])]
    return list(zip(lines, content or [], strict=True))


class Entry(BaseModel):
    """One key of the list, as it is written."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, StringConstraints(pattern=r"^\S(.*\S)?$")]
    key: Annotated[str, StringConstraints(pattern=r"^[!-~]{8,}$")]
    grants: list[Literal[GRANTS]] | None = None  # type: ignore[valid-type]  # texts of a tuple
    top_k: Number | None = None
    max_queries: Number = 0
    max_image_queries: Number = 0
    rate: Number = 0
    metrics: bool = False


def account_of(entry: Any, grants: Sequence[str], top_k: int, where: str = "A key") -> Account:
    """One entry of the list, looked at; `where` it stands begins the errors, which quote nothing
    of it.
    """
    try:
        given = Entry.model_validate(entry)
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        part = next((part for part in first["loc"] if part in Entry.model_fields), "an entry")
        raise BlackBoxError(
            f"{where}: {part}: {first['msg']}. A key has 'name' and 'key' (8 or more characters of "
            f"ASCII without a space, in quotation marks in a file), and perhaps "
            f"{', '.join([*Entry.model_fields][2:])}."
        ) from None
    top_k = top_k if given.top_k is None else given.top_k
    granted = frozenset(grants if given.grants is None else given.grants)
    return Account(
        given.name,
        digest_of(given.key),
        granted - {"features"} if top_k else granted,
        top_k,
        given.max_queries,
        given.max_image_queries,
        given.rate,
        given.metrics,
    )
