"""What is paid: prices of questions and of a run's steps, and the meter, which keeps the bill."""

import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import BlackBoxError, BudgetSpent, first_line
from ..files import read_text, write_atomically
from .interface import QUERY_IMAGES, Images, Oracle, Refused, Wrapper
from .prompt import Prompt, Texts

PURPOSES = ("training", "evaluation")
LOST, SERVICE = "lost", "service"
UNITS = ("queries", "image_queries")
Counts = dict[str, int]
Price = tuple[int, int]  # queries, and image queries (candidates x images)


def query_cost(candidates: int, images: int) -> Price:
    """The price of scoring so many candidates on so many images."""
    return candidates * -(-images // QUERY_IMAGES), candidates * images


def price(prompt: Prompt | None, classes: int, images: int | None) -> Price:
    """The price of a prompt's scores on images; without one of the two, of the other's features."""
    if prompt is None:
        return query_cost(1, images or 0)
    candidates = prompt.candidates(classes)
    if images is None:
        return candidates, 0
    # further texts see no image again
    return query_cost(candidates, images)[0], len(prompt) * images


def total(prices: Sequence[Price]) -> Price:
    return sum(price[0] for price in prices), sum(price[1] for price in prices)


def batches_of(images: int, size: int) -> list[int]:
    """Sizes of the batches of a loader that keeps its last one."""
    return [min(size, images - first) for first in range(0, images, size)]


@dataclass(frozen=True)
class Plan:
    """The prices of a run's steps, known before its first query."""

    epoch: Sequence[Price]  # of every step of an epoch
    epochs: int
    limits: Mapping[str, int]  # of (queries, image queries); 0 is none
    first: Price = (0, 0)  # what the first step of all costs beyond that

    @cached_property
    def sums(self) -> np.ndarray:
        """Of the first 0, 1, … steps of an epoch, which every step asks for."""
        return np.cumsum([(0, 0), *self.epoch], axis=0)

    def until(self, steps: int) -> Price:
        """Of the first so many steps."""
        whole, rest = divmod(steps, len(self.epoch))
        first = np.array(self.first if steps else (0, 0))
        queries, images = (first + whole * self.sums[-1] + self.sums[rest]).tolist()
        return queries, images

    def step(self, number: int) -> Price:
        """Of step `number`, from 0."""
        (queries, images), then = self.until(number), self.until(number + 1)
        return then[0] - queries, then[1] - images

    @property
    def steps(self) -> int:
        """Steps that the whole budget pays for, or that the epochs hold, whichever are fewer."""

        def above(steps: int) -> bool:
            prices = zip(self.until(steps), self.limits.values(), strict=True)
            return any(limit and price > limit for price, limit in prices)

        return bisect_left(range(1, 1 + self.epochs * len(self.epoch)), True, key=above)


def in_words(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{n:,} {unit.replace('_', ' ')}" for unit, n in counts.items())


def counts_in(bill: Any, name: str) -> Counts:
    """The counts of one section of a bill; BlackBoxError where it has no such section."""
    section = bill.get(name) if isinstance(bill, Mapping) else None
    if not isinstance(section, Mapping):
        raise BlackBoxError(f"the counts have no section '{name}'")
    for unit in UNITS:
        count = section.get(unit)
        if type(count) is not int or not 0 <= count < 2**63:
            words = f"'{unit}' of '{name}' is {repr(count)[:40]}"
            raise BlackBoxError(f"{words}, not a whole number from 0 to 2^63 - 1")
    return {unit: section[unit] for unit in UNITS}


def larger(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Each count where it is larger."""
    return {name: max(0, a.get(name, 0), b.get(name, 0)) for name in {**a, **b}}


class Meter(Wrapper):
    """Wraps any oracle. A request is atomic: charged whole before the call, or refused whole.

    Args:
        max_queries, max_image_queries: training budgets, 0 for none. Evaluation is only counted.
        record: path of the bill (JSON), written ahead of every call, and continued if it is there.
        holds: called before the bill is written; raises where it is no longer this run's to write.
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
        self.limits = {"queries": max_queries, "image_queries": max_image_queries}
        self.record, self.holds, self.purpose, self.classes = record, holds, "training", 1
        self.counts = {purpose: dict.fromkeys(UNITS, 0) for purpose in PURPOSES}
        self.lost = dict.fromkeys(UNITS, 0)
        self.earlier: dict[str, int | float] = {}  # what earlier processes sent to a service
        self.others: dict[str, Any] = {}  # a newer version's sections, and keys in ours
        if record is not None:
            self.take_over(record)

    def take_over(self, record: str | Path) -> None:
        """Raise the counts to those of a bill on disk, if there is one that is sound."""
        if not os.path.lexists(record):
            return
        cure = "Mend it, or move it away to start counting from 0."
        text = read_text(record, cure)
        try:
            bill = json.loads(text)
            self.at_least(bill)
            self.lost = larger(self.lost, counts_in(bill, LOST) if LOST in bill else {})
            self.earlier = larger(self.earlier, bill.get(SERVICE, {}))
        except (BlackBoxError, ValueError, TypeError, RecursionError) as e:
            words = f"The bill {record} cannot be read ({first_line(e)}). {cure}"
            raise BlackBoxError(words) from e
        self.others = {**bill, **self.others}

    def at_least(self, counts: Mapping[str, Any]) -> None:
        """Raise the counts to those given: a resumed run takes over its former bill."""
        made = {purpose: counts_in(counts, purpose) for purpose in PURPOSES}
        self.counts = {purpose: larger(self.counts[purpose], made[purpose]) for purpose in made}

    def set_lost(self, queries: int, image_queries: int) -> None:
        """Raise to these numbers what was paid after the last checkpoint of an ended process."""
        lost = larger(self.lost, {"queries": queries, "image_queries": image_queries})
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
            used, limit = self.counts["training"][unit], self.limits[unit]
            if limit and used + amount > limit:
                raise BudgetSpent(
                    f"ORACLE.MAX_{unit.upper()} does not pay for more: {used:,} of {limit:,} "
                    f"{unit.replace('_', ' ')} are used, the next request costs {amount:,}."
                )

    def describe(self, training: Price, tested: Price, lists: Sequence[Texts]) -> str:
        """What a run with these texts would take, in words: of the model, a service, a key."""
        (queries, images), (asked, shown) = training, tested
        line = f"{queries:,} training queries, {images:,} image queries; "
        line += f"{asked:,} evaluation queries, {shown:,} image queries"
        if quote := self.quote([([images], lists)]):
            both = self.quote([([images], lists), ([shown], lists)])
            quotes = quote, {unit: n - quote[unit] for unit, n in both.items()}
            line += ". Of the service, where it has no answers yet: about "
            line += "; evaluation ".join(map(in_words, quotes))
        for unit, left in self.allowance().items():
            line += f". The budget of this key has {left:,} {unit.replace('_', ' ')} left"
        return line

    def check_allowance(self, training: Price, tested: Price) -> None:
        """Raise unless the owner's budget pays for both, without which there is no result."""
        allowed = self.allowance()
        for unit, first, then in zip(UNITS, training, tested, strict=True):
            if first + then > allowed.get(unit, first + then):
                raise BlackBoxError(
                    f"{first + then:,} {unit.replace('_', ' ')} are needed ({first:,} for training,"
                    f" {then:,} for evaluation), and the budget of this key has {allowed[unit]:,} "
                    f"left. Ask its owner for more, or lower ORACLE.MAX_{unit.upper()}."
                )

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.inner.set_classes(names, template)
        self.classes = max(1, len(names))

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        self.require("logits", *prompt.grants)
        return self.ask("logits", self.inner.query, images, prompt)

    def image_features(self, images: Images) -> torch.Tensor:
        self.require("features")
        return self.ask("image features", self.inner.image_features, images, None)

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        self.require("features", *prompt.grants)
        return self.ask("text features", self.inner.text_features, None, prompt)

    def ask(
        self, what: str, call: Callable[..., Any], images: Images | None, prompt: Prompt | None
    ) -> torch.Tensor:
        """Charge for a question, or raise BudgetSpent and charge nothing; then ask it.

        The charge is taken back where the model's owner refuses all of the question.
        """
        cost = price(prompt, self.classes, None if images is None else len(images))
        if self.purpose == "training":
            self.afford(*cost)
        before, sent, spent = self.counts, self.sent(), self.counts[self.purpose]
        spent = {unit: spent[unit] + more for unit, more in zip(UNITS, cost, strict=True)}
        counts = {**before, self.purpose: spent}
        self.write(counts, self.lost)
        self.counts = counts
        try:
            answer = call(*(part for part in (images, prompt) if part is not None))
        except Refused:
            if self.sent() == sent:  # no part was answered
                self.write(before, self.lost)
                self.counts = before
            raise
        finally:
            if self.sent() != sent:
                self.write(self.counts, self.lost)
        if not torch.isfinite(answer).all():
            raise BlackBoxError(
                f"The model's {what} of {self.purpose} query {spent['queries']:,} are not finite. "
                f"Try ORACLE.PREC fp32, in which no context overflows, or check its weights."
            )
        return answer

    def summary(self) -> str:
        """The lines that close a log; `parse_test_res.py` reads them."""
        sections = {**self.counts, **({LOST: self.lost} if any(self.lost.values()) else {})}
        lines = ["=> queries"]
        for name, counts in sections.items():
            shown = f"{counts['queries']:,} (image queries: {counts['image_queries']:,})"
            lines.append(f"* {name} queries: {shown}")
        if sent := self.sent():
            lines.append(f"* sent to the service: {in_words(sent)}")
        return "\n".join(lines)
