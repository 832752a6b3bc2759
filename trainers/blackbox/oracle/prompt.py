"""What is asked of a model for P candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from .texts import Texts


@dataclass(frozen=True)
class Prompt:
    """What P candidates change about the question; a part that is None changes nothing.

    Without any part it is the class texts alone, and P is 1. Further texts are read as they are,
    without a context; their scores follow those of the C classes, so that logits have C + M
    columns.

    Attributes:
        contexts: token embeddings in front of every class's text `[P, n, D]`, n may be 0
            (grant `contexts` unless it is).
        image_tokens: appended to the image tower's tokens `[P, n_V, W]` (grant `image_tokens`).
        pictures: normalised pixels in place of the images' own `[P, B, 3, H, W]`.
        texts: M further texts beside the classes', the same for all candidates.

    Raises:
        ValueError: parts of different P.
    """

    contexts: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    pictures: torch.Tensor | None = None
    texts: Texts | None = None

    def __post_init__(self) -> None:
        if len(self.lengths()) > 1:
            raise ValueError(f"The parts of a prompt are of {sorted(self.lengths())} candidates.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """The parts that are there and are each candidate's own, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}

    def lengths(self) -> set[int]:
        return set(map(len, self.tensors().values()))

    def __len__(self) -> int:
        return next(iter(self.lengths()), 1)

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
    def grants(self) -> tuple[str, ...]:
        """What must be let in for it."""
        needed = {"contexts": self.tokens > 0, "image_tokens": self.image_tokens is not None}
        return tuple(name for name, is_needed in needed.items() if is_needed)
