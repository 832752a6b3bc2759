"""TensorBoard's curves, which a full disk ends without ending the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Scalars:
    """The part of a trainer that writes curves, before Dassl's trainer in the order of bases."""

    def init_writer(self, log_dir: str) -> None:
        former = threading.excepthook
        threading.excepthook = quiet_in_tensorboard(former)  # its files are written by a thread
        self.attempt(super().init_writer, log_dir)  # type: ignore[misc]  # Dassl's

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        call = super().write_scalar  # type: ignore[misc]  # Dassl's
        self.attempt(call, tag, scalar_value, global_step)

    def close_writer(self) -> None:
        self.attempt(super().close_writer)  # type: ignore[misc]  # Dassl's

    def attempt(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except OSError as e:
            self._writer = None
            print(f"Note: TensorBoard's curves end here ({e}); the run goes on")


def quiet_in_tensorboard(former: Callable[[Any], Any]) -> Callable[[Any], None]:
    """`threading.excepthook` without the traceback of a full disk in TensorBoard's thread."""

    def hook(args: Any) -> None:
        module = type(args.thread).__module__
        if not (isinstance(args.exc_value, OSError) and module.startswith("tensorboard")):
            former(args)

    return hook
