"""The classes that the tiny CLIP is trained on, and what its captions say of them."""

import random

from dassl_blackbox.datasets import render

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHARACTER_TEMPLATES = (
    "a photo of the {k} {n}.",
    "the {k} {n}.",
    "a picture of the {k} {n}.",
    "a drawing of the {k} {n}.",
    "a {k} {n}.",
    "a low resolution photo of the {k} {n}.",
    "an image of the handwritten {k} {n}.",
    "a photo of a {k} {n}.",
    "{k} {n}.",
    "a photo of the character {n}.",
    "a photo of a {n}.",
)
THING_TEMPLATES = (
    "a photo of a {n}.",
    "a {n}.",
    "a picture of a {n}.",
    "a drawing of a {n}.",
    "{n}.",
    "an image of the {n}.",
    "a low resolution photo of a {n}.",
    "a photo of the {n}.",
    "a photo of a small {n}.",
    "a photo of a large {n}.",
)


def build_classes(photo_names: list[str]) -> list[dict]:
    """All captioned classes, in order: dicts of kind, synonyms and, for drawings, what to draw."""
    classes = [
        {"kind": "digit", "names": [w, str(i)], "glyphs": str(i)} for i, w in enumerate(DIGITS)
    ]
    classes += [
        {"kind": "letter", "names": [c], "glyphs": c.upper() + c}
        for c in "abcdefghijklmnopqrstuvwxyz"
    ]
    classes += [
        {"kind": "drawing", "names": [f"{colour} {what}"], "colour": colour, "what": what}
        for what in render.SHAPES + render.PATTERNS
        for colour in render.COLOURS
    ]
    classes += [
        {"kind": "photo", "names": [s.strip().lower() for s in name.split(",")]}
        for name in photo_names
    ]
    return classes


def caption(cls: dict, rng: random.Random) -> str:
    """One of a class's names in one of the templates of its kind."""
    name = rng.choice(cls["names"])
    if cls["kind"] in ("digit", "letter"):
        return rng.choice(CHARACTER_TEMPLATES).format(
            k="number" if cls["kind"] == "digit" and rng.random() < 0.25 else cls["kind"], n=name
        )
    return rng.choice(THING_TEMPLATES).format(n=name)
