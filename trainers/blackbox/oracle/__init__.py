"""What crosses the wall between a method and a model, and the bill of it. No model is in here."""

from pkgutil import resolve_name
from typing import Any

from ..errors import BlackBoxError, first_line
from .bill import Meter
from .interface import GRANTS, QUERY_IMAGES, AccessDenied, Description, Images, Oracle, TopK
from .prompt import Prompt, Texts


def build_oracle(cfg: Any, device: Any, client: str) -> Oracle:
    """The oracle that a configuration names, unmetered, for the method `client`.

    Only here does open_clip come into the process, and with `ORACLE.URL` it does not. `device` is
    where the model runs, or where its answers are put.
    """
    node, name = cfg.ORACLE, cfg.MODEL.BACKBONE.NAME
    if ":" in node.API:
        try:
            own: Any = resolve_name(node.API)
        except (ImportError, AttributeError) as e:
            raise BlackBoxError(
                f"ORACLE.API {node.API} is not found ({first_line(e)}). Put its folder into "
                f"PYTHONPATH."
            ) from e
        return own(cfg, device, client)
    if not node.URL:
        from ..openclip.local import LocalOracle
        from ..openclip.models import load_model

        loaded = load_model(name, node.PREC, device)
        oracle = LocalOracle(loaded, node.GRANTS, client, node.FEATURES)
        return TopK(oracle, node.TOP_K) if node.TOP_K else oracle
    try:
        from .services import Http, HuggingFaceService, OpenAIService, RemoteOracle
    except ImportError as e:
        raise BlackBoxError(
            f"A model behind HTTP needs the package {e.name}. In a clone of dassl-blackbox: "
            f"pip install -e '.[remote]'"
        ) from e
    if node.API != "blackbox":
        return {"openai": OpenAIService, "hf": HuggingFaceService}[node.API](cfg, device, client)
    line = Http(node.URL, node.TIMEOUT, node.PATIENCE)
    return RemoteOracle(line, device, name, client, node.TOP_K)
