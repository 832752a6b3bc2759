"""The hand-written template of each data set, by registry name.

CoOp's, then those of the later papers, then our own sets'.
"""

from __future__ import annotations

from typing import Any

from .keys import Key, Rule, is_text, make
from .registry import node_of, ours

TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "StanfordCars": "a photo of a {}.",
    "Food101": "a photo of {}, a type of food.",
    "SUN397": "a photo of a {}.",
    "Caltech101": "a photo of a {}.",
    "UCF101": "a photo of a person doing {}.",
    "ImageNet": "a photo of a {}.",
    "ImageNetV2": "a photo of a {}.",
    "ImageNetSketch": "a photo of a {}.",
    "ImageNetA": "a photo of a {}.",
    "ImageNetR": "a photo of a {}.",
    "Svhn": "This is a photo of a {}.",
    "Resisc45": "This is a photo of a {}.",
    "CLEVR": "This is a photo of {} objects.",
    "Digits": "a scan of a handwritten {}.",
    "Letters": "a photo of the letter {}.",
    "Shapes": "a photo of a {}.",
}


PLAIN = "a photo of a {}."


def template_of(name: str) -> str:
    """The template of a data set, CoOp's plain one where it has none of its own."""
    return TEMPLATES.get(name, PLAIN)


def template_rule() -> Rule:
    """A text with one slot for a class's name, or none of one's own."""

    def fits(value: Any) -> bool:
        rest = value.replace("{}", "", 1) if isinstance(value, str) else ""
        return value == "" or (is_text(value) and value != rest and not set(rest) & set("{}"))

    return make(
        "text with exactly one slot {} for the class name (or nothing: the data set's own)",
        fits,
        ("", "a photo of a {}.", "{}"),
        ("a photo of it", "{} {}", "{} {", "{0}", "}{"),
    )


def template_keys() -> dict[str, Key]:
    """The key of a method that reads class texts without a context."""
    text = "text with a slot {} for the class name; empty: the set's"
    return {"TEMPLATE": Key("", template_rule(), text, inferred_with=True)}


def template_for(cfg: Any) -> str:
    """The template of a run: the trainer's key `TEMPLATE`, where it has one and it is given, else
    the data set's own, else CoOp's plain one.

    The text of a class is `template.replace("{}", name)`.
    """
    own = cfg.TRAINER.get(node_of(ours()[cfg.TRAINER.NAME]), {})
    return own.get("TEMPLATE") or template_of(cfg.DATASET.NAME)
