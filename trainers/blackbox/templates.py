"""The hand-written template of each data set, by registry name.

CoOp's, then those of the later papers, then our own sets'.
"""

from __future__ import annotations

from typing import Any

from .run.errors import BlackBoxError

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


def template_for(cfg: Any) -> str:
    """The zero-shot template: `TRAINER.ZEROSHOT.TEMPLATE`, else the data set's own, else CoOp's.

    The text of a class is `template.replace("{}", name)`.

    Raises:
        BlackBoxError: the given template has no slot, several, other braces, or is not UTF-8.
    """
    template = cfg.TRAINER.ZEROSHOT.TEMPLATE or template_of(cfg.DATASET.NAME)
    outside = template.replace("{}", "", 1)
    if outside == template or "{" in outside or "}" in outside:
        raise BlackBoxError(
            f"TRAINER.ZEROSHOT.TEMPLATE is '{template}', which needs exactly one slot {{}} for the "
            f"class name, and no other braces."
        )
    try:
        template.encode()
    except UnicodeEncodeError as e:
        raise BlackBoxError(
            f"TRAINER.ZEROSHOT.TEMPLATE is {template!a}, which is not UTF-8; the model reads "
            f"nothing else."
        ) from e
    return template
