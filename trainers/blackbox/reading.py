"""YAML files, read so that what is wrong with them is a sentence with the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import BlackBoxError, first_line
from .files import read_text


class StrictLoader(yaml.SafeLoader):
    """YAML's plain values; a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, cure: str) -> dict[Any, Any]:
    """The mapping in a YAML file, as it is nested there.

    Raises:
        BlackBoxError: the file cannot be read, is no YAML, or no mapping; ends with `cure`.
    """
    text = read_text(path, cure)
    try:
        # a page of them unfolds to millions of values, or without end
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("aliases (*) have no place in a configuration")
        content = yaml.load(text, StrictLoader)
    except Exception as e:  # YAML's errors, and what odd numbers, dates and nesting raise
        # the text of the former quotes the line, which may hold a password
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = " ".join(str(problem or first_line(e)).split())
        raise BlackBoxError(f"{path} is not YAML ({what}{line}). {cure}") from e
    if not isinstance(content, dict) or not content:
        kind = f"a {type(content).__name__}" if content else "empty"
        raise BlackBoxError(f"{path} is {kind}, where sections of keys are expected. {cure}")
    return content
