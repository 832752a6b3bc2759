"""What crosses the wall between a method and a model, and the bill of it. No model is in here."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import BlackBoxError, first_line
from .interface import GRANTS, QUERY_IMAGES, AccessDenied, Description, Images, Oracle
from .meter import Meter
from .prompt import Prompt
from .texts import Texts
from .topk import TopK


def build_oracle(cfg: Any, device: Any, client: str) -> Oracle:
    """The oracle that a configuration names, unmetered.

    Only here does open_clip come into the process, and with `ORACLE.URL` it does not.

    Args:
        cfg: Dassl configuration with our nodes (`MODEL.BACKBONE.NAME`, `ORACLE`).
        device: where the model runs, or where its answers are put.
        client: name of the method that asks, for error messages.
    """
    node = cfg.ORACLE
    if ":" in node.API:
        return own_class(node.API)(cfg, device, client)
    if not node.URL:
        from ..openclip.local import LocalOracle
        from ..openclip.models import load_model

        model = load_model(cfg.MODEL.BACKBONE.NAME, node.PREC, device)
        oracle = LocalOracle(model, grants=node.GRANTS, client=client)
        return TopK(oracle, node.TOP_K) if node.TOP_K else oracle
    try:
        from .remote import Http, RemoteOracle
        from .services import HuggingFaceService, OpenAIService
    except ImportError as e:
        raise BlackBoxError(
            f"A model behind HTTP needs the package {e.name}. In a clone of dassl-blackbox: "
            f"pip install -e '.[remote]'"
        ) from e
    if node.API == "openai":
        return OpenAIService(cfg, device, client)
    if node.API == "hf":
        return HuggingFaceService(cfg, device, client)
    line = Http(node.URL, node.TIMEOUT, node.PATIENCE)
    return RemoteOracle(line, device, cfg.MODEL.BACKBONE.NAME, client, node.TOP_K)


def own_class(api: str) -> type[Any]:
    """The subclass of `Oracle` that `module:Class` names, made of (cfg, device, client)."""
    module, _, name = api.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise BlackBoxError(
            f"ORACLE.API is {api!r}, and the class {name} of the module {module} is not found "
            f"({first_line(e)}). Put the module's folder into PYTHONPATH."
        ) from e
    if not (isinstance(found, type) and issubclass(found, Oracle)):
        raise BlackBoxError(f"ORACLE.API is {api!r}, which is no subclass of Oracle.")
    return found
