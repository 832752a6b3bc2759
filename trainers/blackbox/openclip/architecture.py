"""Architectures of open_clip's that a user brings as a JSON file."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip

from ..run.errors import BlackBoxError
from .weights import reason


def own_arch(path: Path) -> str:
    """Make an architecture of the user's known to open_clip; returns the name it has there.

    Raises:
        BlackBoxError: the file is no configuration of open_clip's, or is named like one of its own.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
            raise ValueError("embed_dim, vision_cfg and text_cfg are expected in it")
    except (OSError, ValueError, TypeError) as e:
        raise BlackBoxError(
            f"The architecture {path} cannot be read ({reason(e)}). MODEL.BACKBONE.NAME takes "
            f"path/to/config.json:path/to/weights with a model configuration of open_clip's."
        ) from e
    if open_clip.get_model_config(path.stem) not in (None, config):
        raise BlackBoxError(
            f"{path} has the name of another architecture of open_clip's, {path.stem}. Rename the "
            f"file."
        )
    open_clip.add_model_config(path)
    return path.stem
