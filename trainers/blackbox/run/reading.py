"""YAML files, read so that what is wrong with them is a sentence with the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import BlackBoxError, first_line
from .files import read_text

LIMIT = 2**20  # characters of a configuration
VALUES, DEPTH = 10_000, 20  # of a configuration, aliases unfolded


class StrictLoader(yaml.SafeLoader):
    """YAML's plain values; a key that is given twice is an error, and so are merged mappings."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "mappings are not merged (<<) here", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def bounded(content: Any) -> bool:
    """Whether a page of aliases does not unfold to millions of values, or without end."""
    seen, todo = 0, [(content, 0)]
    while todo:
        value, depth = todo.pop()
        seen += 1
        if seen > VALUES or depth > DEPTH:
            return False
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple, set)):
            todo += [(item, depth + 1) for item in value]
    return True


def parse_yaml(text: str, path: str | Path, cure: str) -> Any:
    """What the text of a YAML file holds.

    Raises:
        BlackBoxError: it is no YAML; ends with `cure`.
    """
    try:
        return yaml.load(text, StrictLoader)
    except yaml.YAMLError as e:  # whose text quotes the line, which may hold a password
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = " ".join(
            str(getattr(e, "problem", None) or "characters that it cannot hold").split()
        )
        raise BlackBoxError(f"{path} is not YAML ({what}{where}). {cure}") from e
    except Exception as e:  # what PyYAML's constructors raise on odd numbers, dates and nesting
        raise BlackBoxError(f"{path} is not YAML ({first_line(e)}). {cure}") from e


def read_yaml(path: str | Path, cure: str) -> dict[Any, Any]:
    """The mapping in a YAML file, as it is nested there.

    Raises:
        BlackBoxError: the file cannot be read, is no YAML, or no mapping; ends with `cure`.
    """
    text = read_text(path, cure)
    if len(text) > LIMIT:
        raise BlackBoxError(f"{path} is larger than a configuration ever is. {cure}")
    content = parse_yaml(text, path, cure)
    if not isinstance(content, dict) or not content:
        kind = f"a {type(content).__name__}" if content else "empty"
        raise BlackBoxError(f"{path} is {kind}, where sections of keys are expected. {cure}")
    if not bounded(content):
        raise BlackBoxError(f"{path} unfolds to more than a configuration ever holds. {cure}")
    return content
