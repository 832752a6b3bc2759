"""Counts what a model is asked, enforces the budget, and keeps the bill on disk."""

import json
from contextlib import contextmanager

import torch

from ..run.errors import BlackBoxError, BudgetSpent
from ..run.files import write_atomically
from .interface import QUERY_IMAGES, Wrapper

PURPOSES = ("training", "evaluation")
UNITS = ("queries", "image_queries")


def query_cost(candidates, images):
    """(queries, image queries) of scoring so many candidates on so many images."""
    return candidates * -(-images // QUERY_IMAGES), candidates * images


class Meter(Wrapper):
    """Wraps any oracle. A request is atomic: it is charged whole before the call is made, or refused whole.

    Args:
        inner: the oracle.
        max_queries, max_image_queries: training budgets; 0 means no limit. Evaluation is counted, never limited.
        record: path of the bill (JSON), written ahead of every call. A bill that is there already is continued. None keeps no bill.
    """

    def __init__(self, inner, max_queries=0, max_image_queries=0, record=None):
        super().__init__(inner)
        self.limits = dict(zip(UNITS, (max_queries, max_image_queries)))
        self.record = record
        self.purpose = "training"
        self.counts = {purpose: dict.fromkeys(UNITS, 0) for purpose in PURPOSES}
        if record is not None:
            self.take_over(record)

    def take_over(self, record):
        """Raise the counts to those of a bill on disk, if there is one."""
        try:
            with open(record, encoding="utf-8") as f:
                self.at_least(json.load(f))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise BlackBoxError(
                f"The bill {record} cannot be read ({e}). Mend it, or move it away to start counting from 0."
            ) from e

    def at_least(self, counts):
        """Raise the counts to those given: a resumed run takes over the bill of its first life."""
        for purpose in PURPOSES:
            for unit in UNITS:
                self.counts[purpose][unit] = max(
                    self.counts[purpose][unit], int(counts[purpose][unit])
                )

    @contextmanager
    def evaluation(self):
        """Within this context, calls are counted as evaluation."""
        before, self.purpose = self.purpose, "evaluation"
        try:
            yield
        finally:
            self.purpose = before

    def left(self, unit="queries"):
        """What the training budget still allows; None where there is no limit."""
        limit = self.limits[unit]
        return max(0, limit - self.counts["training"][unit]) if limit else None

    def afford(self, *cost):
        """Raise BudgetSpent unless the training budget allows (queries, image queries); nothing is charged."""
        for unit, amount in zip(UNITS, cost):
            left = self.left(unit)
            if left is not None and amount > left:
                raise BudgetSpent(
                    f"The budget is spent: {self.counts['training'][unit]:,} of {self.limits[unit]:,} {unit.replace('_', ' ')} are used, "
                    f"the next request costs {amount:,}"
                )

    def charge(self, *cost):
        """Put (queries, image queries) on the bill, or raise BudgetSpent and put nothing."""
        if self.purpose == "training":
            self.afford(*cost)
        spent = self.counts[self.purpose]
        for unit, amount in zip(UNITS, cost):
            spent[unit] += amount
        if self.record is not None:
            write_atomically(self.record, json.dumps(self.counts, indent=1).encode())

    def checked(self, answer, what):
        if not torch.isfinite(answer).all():
            raise BlackBoxError(
                f"The model's {what} of {self.purpose} query {self.counts[self.purpose]['queries']:,} are not finite. "
                f"In half precision a context can overflow: try ORACLE.PREC fp32, or check the model's weights."
            )
        return answer

    def query(self, images, contexts, image_tokens=None):
        self.require("logits", *(["image_tokens"] if image_tokens is not None else []))
        self.charge(*query_cost(len(contexts), len(images)))
        return self.checked(self.inner.query(images, contexts, image_tokens), "logits")

    def image_features(self, images):
        """Counts as one candidate on these images."""
        self.require("features")
        self.charge(*query_cost(1, len(images)))
        return self.checked(self.inner.image_features(images), "image features")

    def text_features(self, contexts):
        """Counts as a query a candidate, and no image query."""
        self.require("features")
        self.charge(len(contexts), 0)
        return self.checked(self.inner.text_features(contexts), "text features")

    def summary(self):
        """The lines that close a log; `parse_test_res.py` reads them."""
        lines = [
            f"* {p} queries: {c['queries']:,} (image queries: {c['image_queries']:,})"
            for p, c in self.counts.items()
        ]
        return "=> queries\n" + "\n".join(lines)
