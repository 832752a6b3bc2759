"""A connection whose client has a bounded time for what it owes, and of which there are so many."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512  # at once; each holds a file descriptor, of which a process often has 1,024


class Connection(H11Protocol):
    """uvicorn's own, which waits without end for the first byte of a request, for the last one of
    its head, for the body of a request that was refused, and for a client that does not read.

    Here each of them ends the connection after `seconds`, or twice that.
    """

    seconds = 60.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.answered, self.owed, self.unsent = 0, -1, 0
        self.clock: asyncio.TimerHandle = self.loop.call_later(self.seconds, self.tick)
        if len(self.connections) > CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.clock.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.answered += 1
        super().on_response_complete()

    def owes(self) -> bool:
        """Whether the next byte is the client's, and no limit of uvicorn's waits for it."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        return self.conn.their_state is h11.SEND_BODY or self.timeout_keep_alive_task is None

    def tick(self) -> None:
        """End it where nothing has come, or gone, since the last tick."""
        owed = self.answered if self.owes() else -1
        unsent = self.transport.get_write_buffer_size()
        if (owed >= 0 and owed == self.owed) or (unsent and unsent >= self.unsent > 0):
            self.transport.abort()
            return
        self.owed, self.unsent = owed, unsent
        self.clock = self.loop.call_later(self.seconds, self.tick)

    def send_400_response(self, msg: str) -> None:
        """Where an answer has begun, or was given, there is no room for another."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
