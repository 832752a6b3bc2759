"""What the steps of a run cost, and how many a budget pays for: known before the first query."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

Price = tuple[int, int]  # queries, and image queries (candidates x images)
NONE: Price = (0, 0)


def total(prices: Iterable[Price]) -> Price:
    """The sum of prices."""
    queries, image_queries = 0, 0
    for more, more_images in prices:
        queries, image_queries = queries + more, image_queries + more_images
    return queries, image_queries


@dataclass(frozen=True)
class Plan:
    """The prices of a run.

    Attributes:
        epoch: of every step of an epoch.
        epochs: their number.
        first: what the first step of all costs beyond that.
    """

    epoch: Sequence[Price]
    epochs: int
    first: Price = NONE

    def step(self, number: int) -> Price:
        """Of step `number`, from 0."""
        price = self.epoch[number % len(self.epoch)]
        return price if number else total([price, self.first])

    @cached_property
    def sums(self) -> list[Price]:
        """Of the first 0, 1, … steps of an epoch: a run asks again at every step."""
        return list(accumulate(self.epoch, lambda *two: total(two), initial=NONE))

    def until(self, steps: int) -> Price:
        """Of the first so many steps."""
        whole, rest = divmod(steps, len(self.epoch))
        queries, image_queries = self.sums[-1]
        made = (whole * queries, whole * image_queries)
        return total([made, self.sums[rest], self.first if steps else NONE])

    def steps(self, limits: Mapping[str, int]) -> int:
        """Steps that (queries, image queries) pay for, 0 meaning no limit; at most all epochs'."""

        def above(steps: int) -> bool:
            prices = zip(self.until(steps), limits.values(), strict=True)
            return any(limit and price > limit for price, limit in prices)

        return bisect_left(range(1, 1 + self.epochs * len(self.epoch)), True, key=above)


def batches_of(images: int, size: int) -> list[int]:
    """Sizes of the batches of a loader that keeps its last one."""
    return [min(size, images - first) for first in range(0, images, size)]
