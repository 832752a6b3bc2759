"""Answers about a prompt that does not change are gathered, then a head is fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from .recipe import Answer, Batch, Teacher, side_by_side


@dataclass(frozen=True)
class Gathered:
    """What came back about all views that the budget paid for, view by view.

    Attributes:
        rows: scores `[N, A]`, or image features `[N, E]`.
        labels: `[N]`.
        index: numbers of the training images `[N]`; every view of an image has its number.
        text: features of the class texts `[C, E]`, where features are read.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    text: torch.Tensor | None = None

    @cached_property
    def views(self) -> torch.Tensor:
        """Which view of its image a row is of, from 0, the un-augmented one: `[N]`."""
        order = self.index.argsort(stable=True)
        sorted_index = self.index[order]
        first = torch.searchsorted(sorted_index, sorted_index)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - first
        return rank

    def part(self, rows: torch.Tensor) -> Gathered:
        """Some of the rows: numbers, or true and false `[N]`."""
        return replace(self, rows=self.rows[rows], labels=self.labels[rows], index=self.index[rows])


class Collector(Teacher):
    """Keeps the answers, and hands them to `solve` when training ends.

    Args:
        solve: fits the head, in place; returns a line for the log.
        classes: C; with None, the rows are image features, and else scores.
    """

    def __init__(self, solve: Callable[[Gathered], str], classes: int | None = None) -> None:
        self.solve, self.classes = solve, classes
        self.kept: list[tuple[torch.Tensor, ...]] = []

    def through(self, answer: Answer, batch: Batch) -> torch.Tensor:
        """Logits of the classes `[1, B, C]`."""
        return answer.logits[:1, :, : self.classes]

    def see(self, answer: Answer, number: int, batch: Batch) -> None:
        rows = side_by_side(answer.logits) if self.classes else answer.image
        assert rows is not None  # the recipe reads features
        self.text = answer.text
        self.kept.append((rows, batch.labels, batch.index))

    def finish(self) -> str:
        if not self.kept:
            return ""
        rows, labels, index = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        text = None if self.text is None else self.text[0]
        gathered = Gathered(rows, labels, index, text)
        # a view's images were asked about in another order than theirs, for the budget's sake
        order = (gathered.views * (index.max() + 1) + index).argsort()
        return self.solve(gathered.part(order))

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [list(parts) for parts in self.kept], "text": self.text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = [tuple(part.to(self.device) for part in parts) for parts in state["kept"]]
        self.text = None if state["text"] is None else state["text"].to(self.device)
