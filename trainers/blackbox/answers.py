"""Answers about views of the training images, as probes gather them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class Gathered:
    """What came back about all views that the budget paid for, view by view."""

    rows: torch.Tensor  # scores `[N, A]`, or image features `[N, E]`
    labels: torch.Tensor  # `[N]`
    index: torch.Tensor  # `[N]`: every view of a training image has its number
    # features of the class texts `[C, E]`, where features are read
    texts: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @cached_property
    def views(self) -> torch.Tensor:
        """Which view of its image a row is of, from 0, the un-augmented one: `[N]`."""
        order = self.index.argsort(stable=True)
        sorted_index = self.index[order]
        rank = torch.arange(len(order)).to(order) - torch.searchsorted(sorted_index, sorted_index)
        return torch.empty_like(order).scatter(0, order, rank)

    def part(self, rows: torch.Tensor) -> Gathered:
        """Some of the rows: numbers, or true and false `[N]`."""
        return replace(self, rows=self.rows[rows], labels=self.labels[rows], index=self.index[rows])

    def by_view(self) -> list[torch.Tensor]:
        """Numbers of the rows of each view; one that the budget cut short is left out."""
        views = [(self.views == number).nonzero()[:, 0] for number in self.views.unique()]
        return [view for view in views if len(view) == len(views[0])]


class Answers:
    """What came back so far: batches of rows, labels and numbers; the class texts' features."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.batches = device, list[tuple[torch.Tensor, ...]]()
        self.text: torch.Tensor | None = None

    def gathered(self) -> Gathered:
        parts = [torch.cat(parts) for parts in zip(*self.batches, strict=True)]
        found = Gathered(*parts, *([] if self.text is None else [self.text]))
        # a view's images were asked about in another order than theirs, for the budget's sake
        return found.part((found.views * (found.index.max() + 1) + found.index).argsort())

    def state_dict(self) -> dict[str, Any]:
        return {"batches": [list(parts) for parts in self.batches], "text": self.text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = [tuple(p.to(self.device) for p in parts) for parts in state["batches"]]
        self.text = None if state["text"] is None else state["text"].to(self.device)
