"""Architectures of open_clip's that a user brings as a JSON file."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from ..run.errors import BlackBoxError
from .weights import reason

NAMED = re.compile(r"(?P<file>.+?\.json):(?P<weights>.+)", re.IGNORECASE | re.DOTALL)
TOWERS: dict[str, type] = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}
# how many whole numbers a size is: of an image or a patch one, or height and width
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "vision_cfg": {
        "image_size": (1, 2),
        "patch_size": (1, 2),
        "width": (1,),
        "head_width": (1,),
        "layers": (1, 4),
    },
    "text_cfg": {
        "context_length": (1,),
        "vocab_size": (1,),
        "width": (1,),
        "heads": (1,),
        "layers": (1,),
    },
}


def split_name(name: str) -> tuple[Path, str] | None:
    """The two paths of `config.json:weights`, in which colons may stand; None for other names.

    Raises:
        BlackBoxError: the weights are not named.
    """
    if name.lower().endswith(".json"):
        raise BlackBoxError(
            f"{name} is an architecture. Name the weights behind it: MODEL.BACKBONE.NAME "
            f"{name}:path/to/weights."
        )
    found = NAMED.fullmatch(name)
    return None if found is None else (Path(found["file"]), found["weights"])


def own_arch(path: Path) -> str:
    """Make an architecture of the user's known to open_clip; returns the name it has there.

    Raises:
        BlackBoxError: the file is no configuration of open_clip's, or has a name that means another
            model.
    """
    try:
        config = read_config(path)
        check_config(config)
    except (OSError, ValueError, RecursionError) as e:
        raise BlackBoxError(
            f"The architecture {path} cannot be read ({reason(e)}). MODEL.BACKBONE.NAME takes "
            f"path/to/config.json:path/to/weights with a model configuration of open_clip's."
        ) from e
    if open_clip.get_model_config(path.stem) not in (None, config):
        raise BlackBoxError(
            f"{path} has the name of another architecture of open_clip's, {path.stem}. Rename the "
            f"file."
        )
    if "siglip" in path.stem.lower():
        raise BlackBoxError(
            f"open_clip gives a model with 'siglip' in its name another tokenizer than CLIP's. "
            f"Rename {path}."
        )
    open_clip.add_model_config(path)
    return path.stem


def read_config(path: Path) -> Any:
    """The content of a JSON file, where open_clip would read it too; else a ValueError."""
    if path.suffix != ".json":
        raise ValueError("open_clip reads files that end in .json: rename it")
    text = path.read_text(encoding="utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark: save it as UTF-8 without one")
    return json.loads(text)


def check_config(config: Any) -> None:
    """Raise a ValueError unless open_clip can read a model's sizes out of this."""
    if isinstance(config, dict) and isinstance(config.get("model_cfg"), dict):
        raise ValueError("the part 'model_cfg' of it is meant: save that as a file of its own")
    if not isinstance(config, dict) or not {"embed_dim", *TOWERS} <= config.keys():
        raise ValueError("embed_dim, vision_cfg and text_cfg are expected in it")
    check_size("embed_dim", config["embed_dim"], (1,))
    for tower, kind in TOWERS.items():
        part = config[tower]
        if not isinstance(part, dict):
            raise ValueError(f"{tower} is {json.dumps(part)}, and an object was expected")
        unknown = part.keys() - {field.name for field in fields(kind)}
        if unknown:
            raise ValueError(
                f"open_clip {open_clip.__version__} knows no {', '.join(sorted(unknown))} in "
                f"{tower}"
            )
        for name, lengths in SIZES[tower].items():
            if name in part:
                check_size(f"{name} in {tower}", part[name], lengths)


def check_size(name: str, value: Any, lengths: tuple[int, ...]) -> None:
    """Raise a ValueError unless these are as many whole numbers of 1 or more as may be."""
    numbers = value if isinstance(value, list) else [value]
    whole = all(type(number) is int and number > 0 for number in numbers)
    if not whole or len(numbers) not in lengths or (isinstance(value, list) and len(value) == 1):
        counts = " or ".join(map(str, lengths))
        raise ValueError(f"{name} is {json.dumps(value)}; {counts} whole numbers above 0 expected")
