"""SIGTERM and SIGINT end a run between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from .errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Within this context the first of the signals is remembered; a second one does what it did
    before.

    Attributes:
        signum: the signal that came, or 0.
        active: whether the context is entered.
    """

    def __init__(self) -> None:
        self.signum, self.active = 0, False
        self.former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self.signum, self.active, self.process = 0, True, os.getpid()
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self.former = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self.active = False
        self.restore()

    def restore(self) -> None:
        for number, handler in self.former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.former = {}

    def note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a loader's worker, which a terminal interrupts too: its parent decides
        self.signum = signum
        self.restore()
        # not `print`: the signal may have come in the middle of one
        text = (
            f"\n{signal.Signals(signum).name}: the step is finished and saved; once more ends at "
            "once\n"
        )
        os.write(2, text.encode())

    def leave(self, state: str) -> None:
        """End the run if a signal came; `state` says how things stand and how to go on."""
        if self.signum:
            ended = Interrupted(self.signum)
            print(f"Stopped by {ended.name}: {state}")
            raise ended
