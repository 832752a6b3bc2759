"""Models behind services that exist: words and pictures go in, features or scores come out.

A service of one's own is a class in a file of one's own, `ORACLE.API my_module:MyService`:

    class MyService(FeatureService):
        def embed_texts(self, texts):
            return self.post("/words", {"words": texts}, lambda body: torch.tensor(body["rows"]))

        def embed_images(self, pictures):
            coded = [base64.b64encode(png).decode() for png in pictures]
            return self.post("/png", {"png": coded}, lambda body: torch.tensor(body["rows"]))
"""

from __future__ import annotations

import importlib
from typing import Any

from ...run.errors import BlackBoxError, first_line
from ..http import Http
from .base import ServiceOracle
from .features import FeatureService
from .hf import HuggingFaceService
from .openai import OpenAIService
from .scores import ScoreService

__all__ = [
    "FeatureService",
    "HuggingFaceService",
    "OpenAIService",
    "ScoreService",
    "ServiceOracle",
    "build_service",
]

SERVICES: dict[str, type[ServiceOracle]] = {"openai": OpenAIService, "hf": HuggingFaceService}


def build_service(cfg: Any, line: Http, device: Any, client: str) -> ServiceOracle:
    """The oracle over a service that speaks `ORACLE.API`.

    Args:
        cfg: Dassl configuration with our nodes.
        line: the connection to `ORACLE.URL`.
        device: where answers are put.
        client: name of the method that asks, for error messages.

    Raises:
        BlackBoxError: a class of one's own is not found, or is no service; or the service cannot be
            reached.
    """
    kind = SERVICES.get(cfg.ORACLE.API) or own_service(cfg.ORACLE.API)
    return kind(cfg, line, device, client)


def own_service(api: str) -> type[ServiceOracle]:
    """The class that `module:Class` names."""
    module, _, name = api.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise BlackBoxError(
            f"ORACLE.API is {api!r}, and the class {name} of the module {module} is not found "
            f"({first_line(e)}). Put the module's folder into PYTHONPATH."
        ) from e
    if not (isinstance(found, type) and issubclass(found, (FeatureService, ScoreService))):
        raise BlackBoxError(
            f"ORACLE.API is {api!r}, which is no subclass of FeatureService or ScoreService (of "
            f"dassl_blackbox.trainers.blackbox.oracle.services)."
        )
    return found
