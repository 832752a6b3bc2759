"""Texts to score images on: class templates; generic names, a file of one's own, or phrases."""

from collections.abc import Sequence

import torch

from .files import read_text
from .oracle import Texts

NAMES, PHRASES = "names", "phrases"
WORDS_BEFORE = 4  # of a phrase, before the class name
PLAIN = "a photo of a {}."
# the hand-written templates: CoOp's, then those of the later papers, then our own sets'
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


def generic_names() -> list[str]:
    """The 1,000 categories of ImageNet, as torchvision lists them."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"])


def further_texts(
    bank: str, count: int, classes: Sequence[str], template: str, generator: torch.Generator
) -> Texts | None:
    """So many texts beside those of the classes, drawn from `generator`, or all that there are.

    Args:
        bank: `names` (generic ones, as "a photo of a …."), `phrases` (the class names behind random
            words of generic names), or the path of a file with a name a line (in the template).
        template: of the class texts.
    """
    if not count:
        return None
    if bank == PHRASES:
        return Texts.of(phrases(count, classes, generator))
    names = generic_names()
    if bank != NAMES:
        cure = "TRAINER.SONAR.BANK takes 'names', 'phrases' or a text file with a name a line."
        lines = map(str.strip, read_text(bank, cure).splitlines())
        names = list(dict.fromkeys(filter(None, lines)))
    known = {name.replace("_", " ").lower() for name in classes}
    others = [name for name in names if name.replace("_", " ").lower() not in known]
    chosen = torch.randperm(len(others), generator=generator)[:count].tolist()
    in_template = PLAIN if bank == NAMES else template
    return Texts.of((others[i] for i in chosen), in_template) if chosen else None


def phrases(count: int, classes: Sequence[str], generator: torch.Generator) -> list[str]:
    """The class names in turn, each behind random words."""
    words = sorted({word for name in generic_names() for word in name.split()})
    found: list[str] = []
    while len(found) < count:
        drawn = torch.randint(len(words), (WORDS_BEFORE,), generator=generator).tolist()
        before = " ".join(words[j] for j in drawn)
        found += [f"{before} {name}." for name in classes]
    return found[:count]
