"""What each key has used, in SQLite: it outlives the server, and counts a request once."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.oracle.bill import UNITS
from .access import Account
from .requests import Refusal

REMEMBERED = 24 * 3600.0  # seconds for which a request's name is kept
PRUNE = 1000  # requests after which names that are older are dropped
TABLES = """
CREATE TABLE IF NOT EXISTS usage (
    key TEXT PRIMARY KEY, queries INTEGER, image_queries INTEGER, requests INTEGER
);
CREATE TABLE IF NOT EXISTS charges (
    key TEXT, name TEXT, digest TEXT, queries INTEGER, image_queries INTEGER, at REAL,
    tries INTEGER, PRIMARY KEY (key, name)
);
CREATE INDEX IF NOT EXISTS charges_at ON charges (at);
"""


class Ledger:
    """Charges requests before they are done, whole or not at all.

    Several servers may share the file, on one machine.

    Args:
        path: of the database.

    Raises:
        BlackBoxError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.lock, self.charged = threading.Lock(), 0
        try:
            self.db = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")  # a charge outlives a power cut
            self.db.executescript(TABLES)
        except sqlite3.Error as e:
            raise BlackBoxError(f"The ledger {path} cannot be opened ({first_line(e)}).") from e

    def charge(self, account: Account, name: str, digest: str, cost: tuple[int, int]) -> bool:
        """Put (queries, image queries) on an account; False where this request has been charged.

        Args:
            account: whose.
            name: of the request, by its client.
            digest: of what it asks; a name that comes again must come with the same.
            cost: (queries, image queries).

        Raises:
            Refusal: 402 where a budget does not pay for it, 422 where the name was another's.
        """
        with self.transaction():
            known = self.db.execute(
                "SELECT digest FROM charges WHERE key = ? AND name = ?", (account.name, name)
            ).fetchone()
            if known is None:
                self.enter(account, name, digest, cost)
            elif known[0] == digest:
                self.db.execute(
                    "UPDATE charges SET tries = tries + 1 WHERE key = ? AND name = ?",
                    (account.name, name),
                )
        if known is not None and known[0] != digest:
            raise Refusal(
                422, "name_taken", "Another request of this key had the same Idempotency-Key."
            )
        return known is None

    def enter(self, account: Account, name: str, digest: str, cost: tuple[int, int]) -> None:
        used = self.used(account.name)
        limits = (account.max_queries, account.max_image_queries)
        for unit, before, more, limit in zip(UNITS, used, cost, limits, strict=False):
            if limit and before + more > limit:
                raise Refusal(
                    402,
                    "budget_spent",
                    f"{before:,} of the {limit:,} {unit.replace('_', ' ')} of this key are used, "
                    f"and the request costs {more:,}.",
                )
        self.db.execute(
            "INSERT INTO usage VALUES (?, ?, ?, 1) ON CONFLICT (key) DO UPDATE SET queries = "
            "queries + excluded.queries, image_queries = image_queries + excluded.image_queries, "
            "requests = requests + 1",
            (account.name, *cost),
        )
        now = time.time()
        self.db.execute(
            "INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, 1)",
            (account.name, name, digest, *cost, now),
        )
        self.charged += 1
        if self.charged % PRUNE == 1:
            self.db.execute("DELETE FROM charges WHERE at < ?", (now - REMEMBERED,))

    def refund(self, account: Account, name: str) -> None:
        """Take back the charge of a request that was not done.

        It stays where the request came several times and not all of them have failed.
        """
        with self.transaction():
            found = self.db.execute(
                "UPDATE charges SET tries = tries - 1 WHERE key = ? AND name = ? "
                "RETURNING tries, queries, image_queries",
                (account.name, name),
            ).fetchone()
            if found is not None and found[0] <= 0:
                self.db.execute(
                    "DELETE FROM charges WHERE key = ? AND name = ?", (account.name, name)
                )
                self.db.execute(
                    "UPDATE usage SET queries = queries - ?, image_queries = image_queries - ?, "
                    "requests = requests - 1 WHERE key = ?",
                    (*found[1:], account.name),
                )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written within."""
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:  # SQLite has left it by itself where the disk is full
                    self.db.execute("ROLLBACK")
                raise

    def used(self, name: str) -> tuple[int, int, int]:
        """(queries, image queries, requests) of an account."""
        found = self.db.execute(
            "SELECT queries, image_queries, requests FROM usage WHERE key = ?", (name,)
        ).fetchone()
        return found or (0, 0, 0)

    def usage(self, account: Account) -> dict[str, int]:
        with self.lock:
            queries, image_queries, requests = self.used(account.name)
        return {
            "queries": queries,
            "image_queries": image_queries,
            "requests": requests,
            "max_queries": account.max_queries,
            "max_image_queries": account.max_image_queries,
        }

    def close(self) -> None:
        with self.lock:
            self.db.close()
