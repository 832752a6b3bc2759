"""What the steps of a run cost, and how many a budget pays for: known before the first query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .oracle.bill import query_cost


@dataclass(frozen=True)
class Cost:
    """Queries and image queries (candidates x images)."""

    queries: int = 0
    image_queries: int = 0

    def __add__(self, other: Cost) -> Cost:
        queries = self.queries + other.queries
        return Cost(queries, self.image_queries + other.image_queries)

    def __mul__(self, times: int) -> Cost:
        return Cost(times * self.queries, times * self.image_queries)

    def __iter__(self) -> Iterator[int]:
        return iter((self.queries, self.image_queries))


@dataclass(frozen=True)
class Plan:
    """The costs of a run.

    Attributes:
        sizes: images of each step of an epoch.
        epochs: their number.
        candidates: that a step asks about.
        queries_each: what one of them counts as on a batch; more than 1 with further texts.
        images_each: images that one of them is scored on, per image of the batch.
        features: whether features are read: the texts' of every candidate, the images' once.
        text_once: whether the texts' features are read in the first step alone.
        head: sizes of the batches that are read for the head alone after every step.
        tests_features: whether evaluation reads the images' features.
        tests_each: `queries_each` of evaluation, where that is another number.
    """

    sizes: Sequence[int]
    epochs: int
    candidates: int
    queries_each: int = 1
    images_each: int = 1
    features: bool = False
    text_once: bool = False
    head: Sequence[int] = ()
    tests_features: bool = False
    tests_each: int | None = None

    def asked(self, candidates: int, images: int) -> Cost:
        """Of scoring so many candidates on a batch."""
        queries, _ = query_cost(candidates * self.queries_each, images)
        return Cost(queries, candidates * self.images_each * images)

    def on(self, images: int) -> Cost:
        """Of a step on so many images, the first step's texts apart."""
        cost = self.asked(self.candidates, images)
        if self.features:
            texts = 0 if self.text_once else self.candidates * self.queries_each
            cost = Cost(*query_cost(1, images)) + Cost(texts)
        for size in self.head:
            cost = cost + self.asked(1, size)
        return cost

    @cached_property
    def first(self) -> Cost:
        """What the first step costs beyond its images."""
        once = self.features and self.text_once
        return Cost(self.candidates * self.queries_each if once else 0)

    @cached_property
    def epoch(self) -> list[Cost]:
        """Of every step of an epoch."""
        by_size = {size: self.on(size) for size in set(self.sizes)}
        return [by_size[size] for size in self.sizes]

    def step(self, number: int) -> Cost:
        """Of step `number`, from 0."""
        cost = self.epoch[number % len(self.epoch)]
        return cost if number else cost + self.first

    def until(self, steps: int) -> Cost:
        """Of the first so many steps."""
        whole, rest = divmod(steps, len(self.epoch))
        total = sum(self.epoch, Cost()) * whole + sum(self.epoch[:rest], Cost())
        return total + self.first if steps else total

    def tested(self, passes: Sequence[Sequence[int]]) -> Cost:
        """Of evaluations on batches of these sizes, each with a new prompt where one is searched.

        At most that: texts of a prompt that is still in use are not asked about again.
        """
        each, cost = self.tests_each or self.queries_each, Cost()
        for size in (size for sizes in passes for size in sizes):
            cost += Cost(query_cost(1 if self.tests_features else each, size)[0])
            cost += Cost(0, size if self.tests_features else self.images_each * size)
        texts = len(passes[:1] if self.text_once else passes) if self.tests_features else 0
        return cost + Cost(texts * each)

    def images(self, steps: int) -> int:
        """Images of the first so many steps, each step's counted once."""
        whole, rest = divmod(steps, len(self.sizes))
        return whole * sum(self.sizes) + sum(self.sizes[:rest])

    def steps(self, limits: Mapping[str, int]) -> int:
        """Steps that the limits pay for, 0 meaning none; at most those of all epochs."""
        return min(
            self.affordable(unit, limit) if limit else self.epochs * len(self.epoch)
            for unit, limit in limits.items()
        )

    def affordable(self, unit: str, limit: int) -> int:
        """Steps that so much of one unit pays for."""
        costs = [getattr(cost, unit) for cost in self.epoch]
        left = limit - getattr(self.first, unit)
        whole = min(self.epochs, left // sum(costs)) if sum(costs) else self.epochs
        steps, left = max(0, whole) * len(costs), left - whole * sum(costs)
        if 0 <= whole < self.epochs:
            for cost in costs:
                if cost > left:
                    break
                steps, left = steps + 1, left - cost
        return steps


def batches_of(images: int, size: int) -> list[int]:
    """Sizes of the batches of a loader that keeps its last one."""
    return [min(size, images - first) for first in range(0, images, size)]
