"""The texts that a service is sent, and sums of money and numbers of things in words."""

from __future__ import annotations

from collections.abc import Sequence

from ...run.errors import BlackBoxError


def class_texts(names: Sequence[str], template: str) -> list[str]:
    """The text of every name: the template with the name in the slot, `_` read as a space.

    Raises:
        BlackBoxError: no name, one that is no text, a template without a slot.
    """
    if not len(names):
        raise BlackBoxError("There are no classes: at least one name is needed.")
    if "{}" not in template:
        raise BlackBoxError(f"The template {template!a} has no slot {{}} for the class name.")
    texts = []
    for name in names:
        if not isinstance(name, str) or not is_utf8(template + name):
            raise BlackBoxError(
                f"{name!a} is not a text that can be sent (a number, or a name in another encoding "
                f"than UTF-8, perhaps). Rename it."
            )
        words = name.replace("_", " ")
        if not words.strip():
            raise BlackBoxError(f"The class name {name!a} has no words. Give it a name.")
        texts.append(template.replace("{}", words))
    return texts


def is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeError:
        return False
    return True


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def money(amount: float) -> str:
    """Two digits behind the point, or two that are not zero."""
    return f"{amount:,.2f}" if amount >= 0.1 or not amount else f"{amount:.2g}"
