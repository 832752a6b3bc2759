"""The signals that end a run do it between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..errors import Interrupted

# a terminal's, and what schedulers send some time before they kill
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
    signal.SIGQUIT,
)
# seconds in which another signal is no second one: a closed terminal and `timeout` send two, and a
# script passes on what its group got as well
TOGETHER = 2.0


def handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Have the signals that end a run handled so; returns what `restore` takes.

    One that is ignored stays so, as `nohup` wants it, save SIGINT, which a shell ignores for all
    that a script starts in the background.
    """
    if threading.current_thread() is not threading.main_thread():  # others cannot set handlers
        return {}
    return {
        number: signal.signal(number, handler)
        for number in SIGNALS
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
    }


def restore(former: dict[int, Any]) -> None:
    for number, handler in former.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The same within this context."""
    former = handle(handler)
    try:
        yield
    finally:
        restore(former)


class StopRequest:
    """Within this context the first of the signals is remembered; a second one, some time after it,
    does what it did before.

    Attributes:
        signum: the signal that came, or 0.
        active: whether the context is entered.
    """

    def __init__(self) -> None:
        self.signum, self.active, self.since = 0, False, 0.0

    def __enter__(self) -> StopRequest:
        self.signum, self.active, self.process = 0, True, os.getpid()
        self.former = handle(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        self.active = False
        restore(self.former)

    def note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a loader's worker, which a terminal interrupts too: its parent decides
        if self.signum:
            if time.monotonic() > self.since + TOGETHER:
                restore(self.former)
                os.kill(self.process, signum)
            return
        self.signum, self.since = signum, time.monotonic()
        # not `print`: the signal may have come in the middle of one
        text = (
            f"\n{signal.Signals(signum).name}: the step is finished and saved; once more ends at "
            "once\n"
        )
        with suppress(OSError):  # the terminal that was closed
            os.write(2, text.encode())

    def leave(self, state: str) -> None:
        """End the run if a signal came; `state` says how things stand and how to go on."""
        if self.signum:
            ended = Interrupted(self.signum)
            print(f"Stopped by {ended.name}: {state}")
            raise ended
