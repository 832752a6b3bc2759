"""What crosses the wall between a method and a model, and the bill of it. No model is in here."""

from __future__ import annotations

from typing import Any

from .http import Http
from .interface import GRANTS, QUERY_IMAGES, AccessDenied, Description, Images, Oracle
from .meter import Meter
from .prompt import Prompt
from .remote import RemoteOracle
from .texts import Texts
from .topk import TopK

__all__ = [
    "GRANTS",
    "QUERY_IMAGES",
    "AccessDenied",
    "Description",
    "Images",
    "Meter",
    "Oracle",
    "Prompt",
    "Texts",
    "TopK",
    "build_oracle",
]


def build_oracle(cfg: Any, device: Any, client: str) -> Oracle:
    """The oracle that a configuration names, unmetered.

    Only here does open_clip come into the process, and with `ORACLE.URL` it does not.

    Args:
        cfg: Dassl configuration with our nodes (`MODEL.BACKBONE.NAME`, `ORACLE`).
        device: where the model runs, or where its answers are put.
        client: name of the method that asks, for error messages.
    """
    if cfg.ORACLE.URL:
        return remote_oracle(cfg, device, client)
    from ..openclip.local import LocalOracle
    from ..openclip.models import load_model

    model = load_model(cfg.MODEL.BACKBONE.NAME, cfg.ORACLE.PREC, device)
    oracle = LocalOracle(model, grants=cfg.ORACLE.GRANTS, client=client)
    return TopK(oracle, cfg.ORACLE.TOP_K) if cfg.ORACLE.TOP_K else oracle


def remote_oracle(cfg: Any, device: Any, client: str) -> Oracle:
    """The oracle over a service: our own server, or one that speaks otherwise."""
    line = Http(cfg.ORACLE.URL, cfg.ORACLE.TIMEOUT, cfg.ORACLE.PATIENCE)
    if cfg.ORACLE.API == "blackbox":
        return RemoteOracle(line, device, cfg.MODEL.BACKBONE.NAME, client)
    from .services import build_service

    return build_service(cfg, line, device, client)
