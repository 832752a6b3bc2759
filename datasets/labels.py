"""Labels and class names: what Dassl, which numbers the classes that it finds, takes on trust."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from .listing import DatasetError, Item, Row, composed, few, note

WNID = re.compile(r"n\d{8}")  # WordNet's ids, ImageNet's folders
# no word is in it: "0", "c3", "class_12", "cls-a", "A"
CODE = re.compile(
    r"((class|cls|label|id)[\W_]+)?[a-z]|(class|cls|label|id|[^\W\d_])?[\W\d_]*\d[\W\d_]*",
    re.IGNORECASE,
)
NUMBERED = re.compile(r"\d+[._-]")  # "001.Black_footed_Albatross"; of one class: "707-jet"
SIGNS = 20  # classes from which on single letters and digits may be what is to be told apart


def by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """The items of every label, in the order in which the labels first appear."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item[1], []).append(item)
    return groups


def text_of(name: str) -> str:
    """What CLIP's tokenizer makes of a class name: underscores are spaces, capitals are small."""
    plain = html.unescape(html.unescape(name.replace("_", " ")))
    return " ".join(composed(plain).lower().split())


def need_items(row: Row, which: str, train: Sequence[Item], test: Sequence[Item]) -> None:
    """Raise where nothing is left to train or to test on, or to tell apart."""
    among = "" if which == "all" else f" among the {which} half of its classes"
    cure = ", or set DATASET.SUBSAMPLE_CLASSES to all" if among else ""
    for part, items in (("training", train), ("test", test)):
        if not items:
            raise DatasetError(
                f"{row.name} has no {part} image{among}. Complete the data set{cure}."
            )
    if len({label for _, label, _ in train}) == 1:
        raise DatasetError(
            f'{row.name} has one class only{among}, "{train[0][2]}": every answer would be right. '
            f"Add another class, perhaps one of pictures that are none of it{cure}."
        )


def check_labels(row: Row, folder: str, train: list[Item], *others: list[Item] | None) -> None:
    """Raise unless labels and class names mean one thing.

    The training images have the labels 0 to C - 1, each with one name that is a text; the other
    parts have no more, and the same names.
    """

    def refuse(problem: str) -> None:
        raise DatasetError(f"{row.name} in {folder}: {problem}")

    names: dict[int, str] = {}
    for image, label, name in train:
        if names.setdefault(label, name) != name:
            refuse(
                f'class {label} is called "{names[label]}" and, for {image}, "{name}". Give every '
                f"label one name."
            )
    for label, name in names.items():
        if any("\ud800" <= c <= "\udfff" for c in name):
            refuse(f'the name of class {label}, "{name}", is not UTF-8. Rename it.')
        if not any(c.isprintable() and not c.isspace() for c in text_of(name)):
            refuse(
                f'the name of class {label} is "{name}", which is no text for the model. Give it '
                f"a name."
            )
    absent = next((label for label in range(len(names)) if label not in names), None)
    if absent is not None:
        refuse(
            f"class {absent} of {max(names) + 1} (counted from 0) has no training image, and those "
            f"behind it would be misnumbered. Complete the data set, or take the class away."
        )
    for image, label, name in (item for items in others for item in items or ()):
        if label not in names:
            refuse(
                f'{image} is of class {label}, "{name}", which has no training image. Complete the '
                f"data set, or take the class away."
            )
        if name != names[label] and text_of(name) != text_of(names[label]):
            refuse(
                f'class {label} is called "{names[label]}" in training and, for {image}, "{name}". '
                f"Number the classes of all parts alike."
            )


def note_names(row: Row, names: Sequence[str]) -> None:
    """Print which classes have the same text, or none that says what they are.

    The model tells classes apart by their texts. Names of published data sets may be numbers.
    """
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(text_of(name), []).append(label)
    alike = [f'"{text}" ({", ".join(map(str, of))})' for text, of in labels.items() if len(of) > 1]
    if alike:
        note(row, f" has classes of the same text, which the model cannot tell apart: {few(alike)}")
    codes = [
        name
        for name in names
        if WNID.match(name)
        or (not row.sizes and CODE.fullmatch(name) and (len(name) > 1 or len(names) < SIGNS))
    ]
    if not row.sizes and all(map(NUMBERED.match, names)):
        codes = list(names)
    if codes:
        note(
            row,
            f" has classes that are called by ids or numbers, which tell a model little: "
            f"{few(codes)}. Name their folders by words, or write a file classnames.txt into the "
            f'data set\'s folder, with lines such as "{codes[0]} red fox"',
        )
