"""What every request passes: the look at its key, and the count of answers."""

from __future__ import annotations

import time
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import Account, Accounts
from .answers import answer_refusal
from .counters import Counters
from .errors import Refusal

ACCOUNT = "dassl_blackbox.account"  # of a request's scope
HEALTH = "/health"  # the one path that needs no key


def account_of(request: Request) -> Account:
    """Whose key the request has, which the guard has looked at."""
    return request.scope[ACCOUNT]


class Guard:
    """Lets requests in that have a known key, and tells the others nothing, not even of paths."""

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self.app, self.accounts = app, accounts
        self.met: set[str] = set()  # names of the accounts that have asked something

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != HEALTH:
            try:
                account = self.accounts.of(Headers(scope=scope).get("authorization"))
                self.accounts.spend(account)
            except Refusal as refusal:
                await answer_refusal(refusal)(scope, receive, send)
                return
            if account.name not in self.met:
                self.met.add(account.name)
                with suppress(OSError):  # of a terminal that is gone
                    print(f"{account.name} asks for the first time", flush=True)
            scope[ACCOUNT] = account
        await self.app(scope, receive, send)


class Watched:
    """Counts answers and the time that they took."""

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self.app, self.counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            # other paths are one, so that nobody fills the metrics
            path = getattr(scope.get("route"), "path", "other")
            self.counters.done(path, status, time.perf_counter() - start)
