"""The wall: behind it open_clip, weights, towers, precision and speed; all else before it."""

from __future__ import annotations

from typing import Any

from .interface import GRANTS, QUERY_IMAGES, AccessDenied, Description, Images, Oracle
from .meter import Meter
from .topk import TopK

__all__ = [
    "GRANTS",
    "QUERY_IMAGES",
    "AccessDenied",
    "Description",
    "Images",
    "Meter",
    "Oracle",
    "TopK",
    "build_oracle",
]


def build_oracle(cfg: Any, device: Any, client: str) -> Oracle:
    """The oracle that a configuration names, unmetered.

    Only here does open_clip come into the process.

    Args:
        cfg: Dassl configuration with our nodes (`MODEL.BACKBONE.NAME`, `ORACLE.PREC`, `GRANTS` and
            `TOP_K`).
        device: where the model runs.
        client: name of the method that asks, for error messages.
    """
    from .local import LocalOracle
    from .models import load_model

    model = load_model(cfg.MODEL.BACKBONE.NAME, cfg.ORACLE.PREC, device)
    oracle = LocalOracle(model, grants=cfg.ORACLE.GRANTS, client=client)
    return TopK(oracle, cfg.ORACLE.TOP_K) if cfg.ORACLE.TOP_K else oracle
