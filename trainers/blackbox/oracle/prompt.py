"""What is asked of a model: P candidates, and the texts that they are about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..files import digest


@dataclass(frozen=True)
class Texts:
    """A list of texts: classes, or further texts beside them."""

    names: tuple[str, ...]  # one a text; `_` stands for a space
    template: str = "{}."  # a text is the template with a name in the slot

    @classmethod
    def of(cls, names: Iterable[str], template: str = "{}.") -> Texts:
        return cls(tuple(names), template)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def id(self) -> str:
        """SHA-256 of the content, in hexadecimal digits: the same on either side of the wall."""
        return digest([self.template, self.names])


@dataclass(frozen=True)
class Prompt:
    """What P candidates change about the question; a part that is None changes nothing.

    Without any part it is the class texts alone, and P is 1. Further texts are read without a
    context; their scores follow those of the C classes, so that logits have C + M columns.
    """

    # token embeddings in front of every class's text [P, n, D] (grant contexts unless n is 0)
    contexts: torch.Tensor | None = None
    # behind the image tower's own tokens [P, n_V, W] (grant image_tokens)
    image_tokens: torch.Tensor | None = None
    # normalised pixels in place of the images' own [P, B, 3, H, W]
    pictures: torch.Tensor | None = None
    texts: Texts | None = None  # M further ones beside the classes', the same for all candidates

    def __post_init__(self) -> None:
        sizes = set(map(len, self.tensors().values()))
        if len(sizes) > 1:
            raise ValueError(f"The parts of a prompt are of {sorted(sizes)} candidates.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """The parts that are there and are each candidate's own, by name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, torch.Tensor)}

    def __len__(self) -> int:
        return next(map(len, self.tensors().values()), 1)

    def split(self, size: int) -> Iterator[Prompt]:
        """Prompts of so many candidates each; the last may have fewer."""
        for i in range(0, len(self), size):
            parts: dict[str, Any] = self.tensors()
            yield replace(self, **{name: part[i : i + size] for name, part in parts.items()})

    @property
    def tokens(self) -> int:
        """Context tokens n."""
        return 0 if self.contexts is None else self.contexts.shape[1]

    def candidates(self, classes: int) -> int:
        """What it counts as: P, and one more for every C further texts, or a part of them."""
        further = 0 if self.texts is None else len(self.texts)
        return len(self) + -(-further // classes)

    @property
    def grants(self) -> list[str]:
        """What must be let in for it."""
        let_in = {"contexts": self.tokens > 0, "image_tokens": self.image_tokens is not None}
        return [name for name, needed in let_in.items() if needed]
