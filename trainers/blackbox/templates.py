"""The hand-written template of each data set, by registry name; for others it is CoOp's plain one.

CoOp's, then those of the later papers, then our own sets'.
"""

from __future__ import annotations

import re
from typing import Any

from .keys import Key, Validator, is_text
from .registry import node_of, ours

TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
    "Svhn": "This is a photo of a {}.",
    "Resisc45": "This is a photo of a {}.",
    "CLEVR": "This is a photo of {} objects.",
    "Digits": "a scan of a handwritten {}.",
    "Letters": "a photo of the letter {}.",
}
PLAIN = "a photo of a {}."
TEMPLATE = Validator(
    "text with exactly one slot {} for the class name (or nothing: the data set's own)",
    lambda value: is_text(value) and bool(re.fullmatch(r"([^{}]*\{\}[^{}]*)?", value)),
)


def template_of(name: str) -> str:
    """The template of a data set, CoOp's plain one where it has none of its own."""
    return TEMPLATES.get(name, PLAIN)


def template_keys() -> dict[str, Key]:
    """The key of a method that reads class texts without a context."""
    about = "text with a slot {} for the class name; empty: the set's"
    return {"TEMPLATE": Key("", TEMPLATE, about, inferred_with=True)}


def template_for(cfg: Any) -> str:
    """The template of a run: the trainer's key `TEMPLATE`, where it has one and it is given, else
    the data set's. The text of a class is `template.replace("{}", name)`.
    """
    own = cfg.TRAINER.get(node_of(ours()[cfg.TRAINER.NAME]), {})
    return own.get("TEMPLATE") or template_of(cfg.DATASET.NAME)
