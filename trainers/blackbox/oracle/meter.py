"""Counts what a model is asked, enforces the budget, and keeps the bill on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import BlackBoxError, BudgetSpent, first_line
from ..files import read_text, write_atomically
from .bill import LOST, PURPOSES, SERVICE, UNITS, Counts, counts_in, larger, price, usage_in
from .interface import Images, Oracle, Refused, Wrapper
from .prompt import Prompt


class Meter(Wrapper):
    """Wraps any oracle. A request is atomic: charged whole before the call, or refused whole.

    Args:
        inner: the oracle.
        max_queries, max_image_queries: training budgets; 0 means no limit. Evaluation is counted,
            never limited.
        record: path of the bill (JSON), written ahead of every call. A bill that is there already
            is continued, and what in it has another name is kept. None keeps no bill.
        holds: called before the bill is written; raises where it is no longer this run's to write.

    Raises:
        BlackBoxError: the bill is damaged.
    """

    def __init__(
        self,
        inner: Oracle,
        max_queries: int = 0,
        max_image_queries: int = 0,
        record: str | Path | None = None,
        holds: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(inner)
        self.limits = dict(zip(UNITS, (max_queries, max_image_queries), strict=True))
        self.record, self.holds = record, holds
        self.purpose = "training"
        self.counts = {purpose: dict.fromkeys(UNITS, 0) for purpose in PURPOSES}
        self.lost = dict.fromkeys(UNITS, 0)
        self.classes = 1
        self.earlier: dict[str, int | float] = {}  # what earlier processes sent to a service
        self.others: dict[str, Any] = {}  # a newer version's sections, and keys in ours
        if record is not None:
            self.take_over(record)

    def take_over(self, record: str | Path) -> None:
        """Raise the counts to those of a bill on disk, if there is one.

        Raises:
            BlackBoxError: it is damaged.
        """
        if not os.path.lexists(record):
            return
        cure = "Mend it, or move it away to start counting from 0."
        text = read_text(record, cure)
        try:
            bill = json.loads(text)
            made = {purpose: counts_in(bill, purpose) for purpose in PURPOSES}
            lost = counts_in(bill, LOST) if LOST in bill else self.lost
            earlier = usage_in(bill)
        except (BlackBoxError, ValueError, RecursionError) as e:
            raise BlackBoxError(
                f"The bill {record} cannot be read ({first_line(e)}). {cure}"
            ) from e
        self.at_least(made)
        self.lost, self.earlier = larger(self.lost, lost), larger(self.earlier, earlier)
        self.others = {**bill, **self.others}

    def at_least(self, counts: Mapping[str, Any]) -> None:
        """Raise the counts to those given: a resumed run takes over its former bill."""
        made = {purpose: counts_in(counts, purpose) for purpose in PURPOSES}
        self.counts = {purpose: larger(self.counts[purpose], made[purpose]) for purpose in made}

    def set_lost(self, queries: int, image_queries: int) -> None:
        """Raise to these numbers what the training queries hold that trained nothing: queries that
        were made after the last checkpoint of a process that was ended.

        Raises:
            BlackBoxError: the bill cannot be written; nothing is raised then.
        """
        lost = larger(self.lost, dict(zip(UNITS, (queries, image_queries), strict=True)))
        self.write(self.counts, lost)
        self.lost = lost

    def write(self, counts: Mapping[str, Counts], lost: Counts) -> None:
        """Put the bill on disk."""
        if self.holds is not None:
            self.holds()
        if self.record is None:
            return
        ours: dict[str, Mapping[str, int | float]] = {**counts}
        if any(lost.values()) or LOST in self.others:
            ours[LOST] = lost
        if sent := self.sent():
            ours[SERVICE] = sent
        kept = {name: {**self.others.get(name, {}), **section} for name, section in ours.items()}
        write_atomically(self.record, json.dumps({**self.others, **kept}, indent=1).encode())

    def sent(self) -> dict[str, int | float]:
        """What a service was sent, by this process and those before; empty where there is none."""
        return {name: n + self.earlier.get(name, 0) for name, n in self.inner.usage().items()}

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Within this context, calls are counted as evaluation."""
        before, self.purpose = self.purpose, "evaluation"
        try:
            yield
        finally:
            self.purpose = before

    def left(self, unit: str = "queries") -> int | None:
        """What the training budget still allows; None where there is no limit."""
        limit = self.limits[unit]
        return max(0, limit - self.counts["training"][unit]) if limit else None

    def afford(self, *cost: int) -> None:
        """Raise BudgetSpent unless the training budget allows (queries, image queries)."""
        for unit, amount in zip(UNITS, cost, strict=True):
            left = self.left(unit)
            if left is not None and amount > left:
                raise BudgetSpent(
                    f"The budget is spent: {self.counts['training'][unit]:,} of "
                    f"{self.limits[unit]:,} {unit.replace('_', ' ')} are used, the next request "
                    f"costs {amount:,}"
                )

    @contextmanager
    def billed(self, prompt: Prompt | None, images: int | None) -> Iterator[None]:
        """Charge for a question (`bill.price`), and take it back where the model's owner refuses
        all of what is asked within.

        Raises:
            BudgetSpent: the training budget does not allow it; nothing is charged.
            BlackBoxError: the bill cannot be written; nothing is charged.
        """
        cost, before, sent = price(prompt, self.classes, images), self.counts, self.sent()
        if self.purpose == "training":
            self.afford(*cost)
        spent = before[self.purpose]
        spent = {unit: spent[unit] + more for unit, more in zip(UNITS, cost, strict=True)}
        counts = {**before, self.purpose: spent}
        self.write(counts, self.lost)
        self.counts = counts
        try:
            yield
        except Refused:
            if self.sent() == sent:  # no part was answered
                self.write(before, self.lost)
                self.counts = before
            raise
        finally:
            if self.sent() != sent:
                self.write(self.counts, self.lost)

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        super().set_classes(names, template)
        self.classes = max(1, len(names))

    def checked(self, answer: torch.Tensor, what: str) -> torch.Tensor:
        if not torch.isfinite(answer).all():
            raise BlackBoxError(
                f"The model's {what} of {self.purpose} query "
                f"{self.counts[self.purpose]['queries']:,} are not finite. In half precision a "
                f"context can overflow: try ORACLE.PREC fp32, or check the model's weights."
            )
        return answer

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        self.require("logits", *prompt.grants)
        with self.billed(prompt, len(images)):
            return self.checked(self.inner.query(images, prompt), "logits")

    def image_features(self, images: Images) -> torch.Tensor:
        self.require("features")
        with self.billed(None, len(images)):
            return self.checked(self.inner.image_features(images), "image features")

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        self.require("features", *prompt.grants)
        with self.billed(prompt, None):
            return self.checked(self.inner.text_features(prompt), "text features")

    def summary(self) -> str:
        """The lines that close a log; `parse_test_res.py` reads them."""
        counts = {**self.counts, **({LOST: self.lost} if any(self.lost.values()) else {})}
        lines = ["=> queries"] + [
            f"* {name} queries: {c['queries']:,} (image queries: {c['image_queries']:,})"
            for name, c in counts.items()
        ]
        if sent := self.sent():
            parts = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in sent.items())
            lines.append(f"* sent to the service: {parts}")
        return "\n".join(lines)
