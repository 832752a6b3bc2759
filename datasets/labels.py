"""Labels and class names: what Dassl, which numbers the classes that it finds, takes on trust."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .listing import DatasetError, Item, shown

if TYPE_CHECKING:
    from .base import Row

SHOWN = 3  # texts in a note


def by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """The items of every label, in the order in which the labels first appear."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item[1], []).append(item)
    return groups


def text_of(name: str) -> str:
    """What CLIP's tokenizer makes of a class name: underscores are spaces, capitals are small."""
    plain = html.unescape(html.unescape(name.replace("_", " ")))
    return " ".join(unicodedata.normalize("NFC", plain).lower().split())


def check_labels(
    row: Row, folder: str, train: Sequence[Item], *others: Sequence[Item] | None
) -> None:
    """Raise unless labels and class names mean one thing.

    The training images have the labels 0 to C - 1, each with one name that is a text; the other
    parts have no more, and the same names.
    """
    where = f"{row.name} in {folder}"
    names: dict[int, str] = {}
    for image, label, name in train:
        if names.setdefault(label, name) != name:
            raise DatasetError(
                f'{where}: class {label} is called "{names[label]}" and, for {image}, "{name}". '
                f"Give "
                f"every label one name."
            )
    for label, name in names.items():
        check_name(where, label, name)
    absent = next((label for label in range(len(names)) if label not in names), None)
    if absent is not None:
        raise DatasetError(
            f"{where}: class {absent} of {max(names) + 1} (counted from 0) has no training image, "
            f"and the classes behind it would be misnumbered. Complete the data set, or take the "
            f"class away."
        )
    known = set(names.items())
    for image, label, name in (item for items in others for item in items or ()):
        if (label, name) in known:
            continue
        if label not in names:
            raise DatasetError(
                f'{where}: {image} is of class {label}, "{name}", which has no training image. '
                f"Complete the data set, or take the class away."
            )
        if text_of(name) != text_of(names[label]):
            raise DatasetError(
                f'{where}: class {label} is called "{names[label]}" in training and, for {image}, '
                f'"{name}". Number the classes of all parts alike.'
            )


def check_name(where: str, label: int, name: str) -> None:
    """Raise unless a class name is a text."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f'{where}: the name of class {label}, "{name}", is not UTF-8, and the model reads '
            f"nothing else. Rename it."
        ) from error
    if not any(c.isprintable() and not c.isspace() for c in text_of(name)):
        raise DatasetError(
            f'{where}: the name of class {label} is "{name}", which is no text for the model. Give '
            f"it a name."
        )


def note_names(row: Row, names: Sequence[str]) -> None:
    """Print which classes have the same text, by which the model cannot tell them apart."""
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(text_of(name), []).append(label)
    alike = [f'"{text}" ({", ".join(map(str, of))})' for text, of in labels.items() if len(of) > 1]
    if alike:
        more = f", and {len(alike) - SHOWN} more" if len(alike) > SHOWN else ""
        print(
            shown(
                f"Note: {row.name} has classes of the same text, which the model cannot tell "
                f"apart: {', '.join(alike[:SHOWN])}{more}"
            )
        )
