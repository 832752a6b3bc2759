"""A list of texts that a model is asked about, named by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Texts:
    """Names and the template that they stand in: classes, or further texts beside them.

    Attributes:
        names: one a text; `_` stands for a space.
        template: with a slot `{}`; a text is the template with a name in the slot.
    """

    names: tuple[str, ...]
    template: str = "{}."

    @classmethod
    def of(cls, names: Iterable[str], template: str = "{}.") -> Texts:
        return cls(tuple(names), template)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def id(self) -> str:
        """SHA-256 of the content, in hexadecimal digits: the same on either side of the wall."""
        content = json.dumps([self.template, self.names], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()
