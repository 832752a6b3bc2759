"""From the options of the command line to a service that is ready."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.openclip.models import load_model
from .access import Account, Accounts
from .contents import Contents
from .counters import Counters
from .ledger import Ledger
from .limits import Limits
from .replica import Replica
from .service import Service


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
    contents = Contents(options.folder / "contents", 2**20 * options.store_mb, loaded.description)
    counters = Counters()
    replica = Replica(loaded, contents, counters)
    ledger = Ledger(options.folder / "ledger.sqlite")
    limits = Limits(body=2**20 * options.max_mb, seconds=options.seconds)
    return Service(replica, Accounts(accounts), ledger, contents, counters, limits)
