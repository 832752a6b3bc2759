"""Values from YAML files and from the command line, put into a configuration."""

from __future__ import annotations

import os
import re
import warnings
from ast import literal_eval
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from .config import leaves, rules
from .keys import is_whole, shown
from .run.errors import BlackBoxError
from .run.reading import read_yaml

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
ITEMS = 1000  # of a list
# keys that there were, and what to give in their place
GONE = {
    "TRAINER.SONAR.PROBES": "TRAINER.SONAR.TEXTS is the number of further texts, whatever that of "
    "the classes; 0 is the head alone."
}
CURE = "A configuration is a YAML file such as those in configs/."


def merge_files(cfg: CfgNode, paths: Iterable[str]) -> None:
    """Put the values of YAML files into a configuration, one after the other; "" is no file.

    Raises:
        BlackBoxError: a file that cannot be read or is no YAML, or what `put` refuses.
    """
    for path in filter(None, paths):
        put_section(cfg, cfg, read_yaml(path, CURE + beside(path)), f"in {path}")


def beside(path: str) -> str:
    """What was meant, perhaps, where this is no file: the same words, case and signs aside, or
    nearly; numbers that are given are the same.
    """
    if os.path.isdir(path):
        inside = ", ".join(sorted(near.name for near in Path(path).glob("*.yaml")))
        return f" Name a file of that folder: {inside}." if inside else ""
    if os.path.lexists(path):
        return ""
    folder = next(parent for parent in Path(path).parents if parent.is_dir())
    there = {
        plain_name(near.relative_to(folder)): str(near)
        for pattern in ("*.yaml", "*/*.yaml")
        for near in folder.glob(pattern)
    }
    close: list[str] = []
    below = Path(path).relative_to(folder)
    for wanted in (plain_name(below), plain_name(Path(below.name))):
        alike = [name for name in there if numbers(wanted) in ([], numbers(name))]
        close = close or get_close_matches(wanted, alike, n=1, cutoff=0.75)
    return did_you_mean([there[name] for name in close])


def plain_name(path: Path) -> str:
    return re.sub(r"\.yaml|[\W_]", "", str(path).lower())


def numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def did_you_mean(names: list[str]) -> str:
    return f" Did you mean {' or '.join(names)}?" if names else ""


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Put `KEY VALUE` pairs of a command line into a configuration.

    Raises:
        BlackBoxError: a key without a value, or what `put` refuses.
    """
    for option in options[::2]:
        if option.startswith("--"):
            raise BlackBoxError(
                f"The flag {option} stands after a KEY VALUE option; flags go before."
            )
    if len(options) % 2:
        raise BlackBoxError(
            f"The options have a key without a value: {shown(options[-1])} is the last of "
            f"{len(options)} words; KEY VALUE pairs are expected."
        )
    for name, value in zip(options[::2], options[1::2], strict=True):
        *sections, key = name.split(".")
        node = cfg
        for part in sections:
            node = node.get(part)
            if not isinstance(node, CfgNode):
                raise unknown(cfg, name, "in the options")
        put(cfg, node, key, name, value, "in the options")


def put_section(
    cfg: CfgNode, node: CfgNode, given: dict[Any, Any], where: str, prefix: str = ""
) -> None:
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(node.get(key), CfgNode) and isinstance(value, dict):
            put_section(cfg, node[key], value, where, f"{name}.")
        else:
            put(cfg, node, key, name, value, where)


def put(cfg: CfgNode, node: CfgNode, key: Any, name: str, value: Any, where: str) -> None:
    """Set `node[key]`, whose full name is `name`; text that is a Python literal is read as one.

    Raises:
        BlackBoxError: no such key, a section, no value, or a value of another type.
    """
    if key not in node:
        raise unknown(cfg, name, where)
    default, given, value = node[key], value, decoded(value)
    if isinstance(default, str) and isinstance(given, str) and isinstance(value, (dict, set)):
        value = given  # braces are the slot of a template
    if isinstance(default, CfgNode):
        raise BlackBoxError(
            f"{name} is a section of keys, not a key; {shown(value)} is given {where}."
        )
    rule = rules(cfg.TRAINER.NAME).get(name)
    if type(default) is float and is_whole(value) and abs(value) < 2**53:
        value = float(value)
    elif isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)) and plain(value):
        value = type(default)(value)
    elif not (type(value) is type(default) or default is None or (rule and rule.fits(value))):
        kind = KINDS.get(type(default), "a list or a tuple of plain values")
        words = f"{name} is {shown(value)}; {kind} is expected."
        raise BlackBoxError(f"{rule.sentence(name, value) if rule else words} It is {where}.")
    node[key] = value


def decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of text that is nearly Python
            return literal_eval(value)
    except Exception:  # ValueError or SyntaxError; and others where text is deep or long
        return value


def plain(items: Sequence[Any], depth: int = 2) -> bool:
    """Whether a list has few items, which are plain values or, down to a depth, such lists."""
    return (
        depth > 0
        and len(items) <= ITEMS
        and all(
            plain(item, depth - 1)
            if isinstance(item, (list, tuple))
            else isinstance(item, (bool, int, float, str, type(None)))
            for item in items
        )
    )


def unknown(cfg: CfgNode, name: str, where: str) -> BlackBoxError:
    if name in GONE:
        return BlackBoxError(f"There is no key {name} any more ({where}). {GONE[name]}")
    close = get_close_matches(name.upper()[:100], list(leaves(cfg)), n=2, cutoff=0.75)
    return BlackBoxError(
        f"There is no key {shown(name)} ({where}).{did_you_mean(close)} Keys are those of "
        f"Dassl, of trainers/blackbox/config.py, and `keys` of the methods in trainers/."
    )
