"""What every black-box method shares: an oracle, a budget, a bill, the order of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

from threadpoolctl import ThreadpoolController

from .errors import BlackBoxError, BudgetSpent
from .oracle import Description, Meter, build_oracle
from .oracle.bill import UNITS
from .plan import NONE, Plan, Price, batches_of, total
from .run.trainer import ResumableTrainer

LOST_UNMARKED = 0.1  # share of the training queries that may be lost without a line about it


class BlackBoxTrainer(ResumableTrainer):
    """A trainer whose model answers queries, each of which is counted.

    Two shapes of method follow from it: `SearchTrainer` asks, queries and tells an optimiser;
    `ProbeTrainer` reads every view of the training images once and fits a head. Training ends with
    the budget (`ORACLE.MAX_QUERIES`, `ORACLE.MAX_IMAGE_QUERIES`) or with its epochs, whichever
    comes first.

    A shape gives `build_model`, `forward_backward`, `model_inference`, and what they cost.

    Attributes:
        oracle: metered.
        template: of a class's text.
        trains: whether there is anything to learn.
        step_images: images of each step of an epoch.
    """

    unit = "queries"
    trains = True
    looks_between_steps = True  # at val, with ORACLE.VAL_EVERY
    changes_pictures = False  # for every candidate, so that all of them are sent
    oracle: Meter
    template: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Grants that the method cannot do without."""
        raise NotImplementedError

    @property
    def step_images(self) -> Sequence[int]:
        raise NotImplementedError

    def price(self, images: int) -> Price:
        """Of a step on so many images."""
        raise NotImplementedError

    def first_price(self) -> Price:
        """What the first step costs beyond that."""
        return NONE

    def test_price(self, images: int) -> Price:
        """Of evaluation on a batch."""
        raise NotImplementedError

    def texts_price(self, passes: int) -> Price:
        """What so many evaluations cost beyond their batches, at most."""
        return NONE

    def images(self, steps: int) -> int:
        """Training images of the first so many steps, each step's counted once."""
        whole, rest = divmod(steps, len(self.step_images))
        return whole * sum(self.step_images) + sum(self.step_images[:rest])

    # ------------------------------------------------------------------ building

    def open_model(self) -> None:
        cfg = self.cfg
        self.oracle = Meter(
            build_oracle(cfg, self.device, client=cfg.TRAINER.NAME),
            cfg.ORACLE.MAX_QUERIES,
            cfg.ORACLE.MAX_IMAGE_QUERIES,
            record=f"{cfg.OUTPUT_DIR}/queries.json" if self.lock else None,
            holds=self.lock.check if self.lock else None,
        )
        self.pools = ThreadpoolController()

    def name_classes(self) -> None:
        """Tell the oracle what it will be asked about, if it grants what the method needs."""
        self.oracle.require(*self.needs)
        behind = " behind the context" if "contexts" in self.needs else ""
        print(f'Template: "{self.template}"{behind}')
        self.oracle.set_classes(self.dm.dataset.classnames, self.template)

    @property
    def description(self) -> Description:
        return self.oracle.description

    def one_thread(self) -> AbstractContextManager:
        """For small matrices: where other processes share the cores, threads wait for each other
        longer than they compute. A user's own OMP_NUM_THREADS stays.
        """
        own = "OMP_NUM_THREADS" in os.environ
        return nullcontext() if own else self.pools.limit(limits=1)

    # ------------------------------------------------------------------ costs

    @cached_property
    def plan(self) -> Plan:
        prices = {size: self.price(size) for size in set(self.step_images)}
        return Plan([prices[size] for size in self.step_images], self.max_epoch, self.first_price())

    def steps_total(self) -> int:
        """Steps that the whole budget pays for, or that the epochs hold, whichever are fewer."""
        return self.plan.steps(self.oracle.limits) if self.trains else 0

    def describe_cost(self) -> str:
        """What the whole run would ask of the model, as a line; `--no-train` prints it."""
        steps, line = self.steps_total(), "no training queries"
        pictures = 0
        if self.trains:
            most = max(queries for queries, _ in self.plan.epoch)
            queries, pictures = self.plan.until(steps)
            line = (
                f"{steps:,} steps of {most:,} queries: {queries:,} training queries, "
                f"{pictures:,} image queries"
            )
        passes = self.passes()
        queries, shown = self.evaluation(passes)
        line += f"; {queries:,} evaluation queries, {shown:,} image queries"
        if not self.changes_pictures:  # a service keeps its answers about those that it has seen
            pictures = self.images(steps)
            shown = sum(sum(self.test_batches(split)) for split in set(passes))
        if quote := self.oracle.quote(pictures, self.num_classes):
            test = self.oracle.quote(shown, 0)
            line += f". Of the service, where it has no answers yet: {quote}; evaluation {test}"
        for unit, left in self.oracle.allowance().items():
            line += f". The budget of this key has {left:,} {unit.replace('_', ' ')} left"
        return line

    def passes(self, done: int = 0) -> list[str]:
        """The splits that are still evaluated on after so many steps, each as often as it is."""
        cfg, steps, epoch = self.cfg, self.steps_total(), len(self.step_images)
        best = cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST and self.trains
        every = cfg.ORACLE.VAL_EVERY

        def looks(steps: int) -> int:
            """At val within the first so many steps."""
            asked, _ = self.plan.until(steps)
            curve = min(steps, asked // every) if every and self.looks_between_steps else 0
            return curve + (steps // epoch if best else 0)

        val = 0
        if self.trains:
            # one more where the budget ends an epoch, and one where a head was fitted
            val = looks(steps) - looks(done) + (best and steps < self.max_epoch * epoch)
            val += bool(every and not self.looks_between_steps)
        return ["val"] * val + [cfg.TEST.SPLIT] * (not cfg.TEST.NO_TEST)

    def test_batches(self, split: str) -> list[int]:
        """Sizes of the batches that a split is evaluated in."""
        items = (split == "val" and self.dm.dataset.val) or self.dm.dataset.test
        return batches_of(len(items), self.cfg.DATALOADER.TEST.BATCH_SIZE)

    def evaluation(self, passes: Sequence[str]) -> Price:
        """Of evaluations on these splits."""
        sizes = [size for split in passes for size in self.test_batches(split)]
        return total([*map(self.test_price, sizes), self.texts_price(len(passes))])

    def check_allowance(self, training: Price, tested: Price) -> None:
        """Raise unless the owner's budget pays for both, without which there is no result."""
        allowed = self.oracle.allowance()
        for unit, first, then in zip(UNITS, training, tested, strict=True):
            left = allowed.get(unit, first + then)
            if first + then > left:
                less = f", or lower ORACLE.MAX_{unit.upper()}, which bounds training"
                raise BlackBoxError(
                    f"{first + then:,} {unit.replace('_', ' ')} are needed ({first:,} for training,"
                    f" {then:,} for evaluation), and the budget of this key has {left:,} left. Ask "
                    f"the model's owner for more{less if first else ''}."
                )

    # ------------------------------------------------------------------ training

    def check_training(self) -> None:
        """Raise unless the budget pays for one step, and no training image is tested on."""
        if not self.trains:
            return
        super().check_training()
        for unit, cost in zip(UNITS, self.plan.step(0), strict=True):
            limit = self.oracle.limits[unit]
            if limit and cost > limit:
                raise BlackBoxError(
                    f"One step of {self.cfg.TRAINER.NAME} costs {cost:,} {unit.replace('_', ' ')}, "
                    f"but the budget (ORACLE.MAX_{unit.upper()}) is {limit:,}. Raise it, or set it "
                    f"to 0 for no limit."
                )

    def train_to_the_end(self) -> None:
        if not self.trains:
            print("Nothing to train")
            self.time_start = time.time()
            self.after_train()
            return
        try:
            super().train_to_the_end()
        except BudgetSpent as spent:
            self.bar.close()
            print(
                f"{spent}. Training ends after {self.batches_done} batches of epoch "
                f"{self.epoch + 1}."
            )
            self.finish()
            self.select_best()
            self.save_model(self.max_epoch - 1, self.output_dir)
            self.after_train()

    def before_train(self) -> None:
        super().before_train()
        self.note_lost()
        training, done, run = [], self.steps_done, self.plan.until(self.steps_total())
        for unit, whole, made in zip(UNITS, run, self.plan.until(done), strict=True):
            left = self.oracle.left(unit)  # less than the steps cost where some were lost
            training.append(whole - made if left is None else max(0, min(whole - made, left)))
        self.check_allowance((training[0], training[1]), self.evaluation(self.passes(done)))
        print(f"The whole run: {self.describe_cost()}")
        self.prepare()
        self.open_bar(run[0])

    def prepare(self) -> None:
        """Do what comes before the first step of this process."""

    def note_lost(self) -> None:
        """Tell what was paid for in this folder without a trace in the parameters.

        Raises:
            BlackBoxError: nothing trained, and what is left of the budget does not pay for a step.
        """
        spent = self.oracle.counts["training"].values()
        made = self.plan.until(self.steps_done)
        lost = [paid - cost for paid, cost in zip(spent, made, strict=True)]
        self.oracle.set_lost(*lost)
        if lost[0]:
            print(
                f"Lost: {lost[0]:,} of {self.spent():,} training queries, which were asked after "
                f"the last checkpoint of a run that was ended in this folder; they stay on the bill"
            )
        try:
            self.before_step()
        except BudgetSpent as e:
            if not self.steps_done:
                raise BlackBoxError(
                    f"{e}, and no step was saved: there is nothing to evaluate. Raise the budget, "
                    f"or choose another --output-dir."
                ) from e

    def before_step(self) -> None:
        # a step is made whole or not at all
        self.oracle.afford(*self.plan.step(self.steps_done))

    def after_step(self) -> None:
        """With `ORACLE.VAL_EVERY`, look at val after so many queries more."""
        every, asked = self.cfg.ORACLE.VAL_EVERY, self.spent()
        before = asked - self.plan.step(self.steps_done - 1)[0]
        if every and asked // every > before // every and self.looks_between_steps:
            self.look_at_val()

    def look_at_val(self) -> None:
        """Write a line of `val_curve.csv`; it decides nothing."""
        counts, accuracy = self.oracle.counts["training"], self.test(split="val")
        self.set_model_mode("train")
        line = f"{counts['queries']},{counts['image_queries']},{accuracy}\n"
        with open(f"{self.output_dir}/val_curve.csv", "a") as f:
            f.write(line)

    def after_epoch(self) -> None:
        if self.epoch + 1 == self.max_epoch:
            self.finish()
        super().after_epoch()

    def finish(self) -> None:
        """Training ends, with the epochs or with the budget."""

    def due(self) -> bool:
        every = self.cfg.ORACLE.SAVE_EVERY
        return super().due() or (bool(every) and self.spent() - self.saved_at[1] >= every)

    def after_train(self) -> None:
        left, more = self.oracle.left(), self.plan.step(self.steps_done)[0] if self.trains else 0
        if left is not None and left >= more > 0 and self.looks_between_steps:
            print(
                f"OPTIM.MAX_EPOCH {self.max_epoch} ended training with {left:,} of "
                f"{self.oracle.limits['queries']:,} queries left; raise it to spend them."
            )
        lost = self.oracle.lost["queries"]
        if lost > LOST_UNMARKED * self.spent():
            print(
                f"Note: {lost:,} of the {self.spent():,} training queries were lost, more than a "
                f"tenth: {self.steps_done:,} steps were made, and the budget pays for "
                f"{self.steps_total():,}. To compare this run with others, begin it anew in "
                f"another folder."
            )
        super().after_train()
        print(self.oracle.summary())

    # ------------------------------------------------------------------ bill

    def spent(self) -> int:
        """Training queries."""
        return self.oracle.counts["training"]["queries"]

    def clock(self) -> int:
        return self.spent()

    def counts(self) -> dict:
        return self.oracle.counts

    def take_over(self, counts: dict | None, directory: str) -> None:
        assert counts is not None  # a black-box run has a bill
        self.oracle.at_least(counts)
        self.oracle.take_over(f"{directory}/queries.json")  # what was spent after it, too

    # ------------------------------------------------------------------ evaluation

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        # without anything to load, a folder that is named and not there is an error all the same
        if self.trains or (directory and not os.path.isdir(directory)):
            super().load_model(directory, epoch)

    def evaluating(self) -> AbstractContextManager:
        return self.oracle.evaluation()

    def test(self, split: str | None = None) -> float:
        self.check_allowance(NONE, self.evaluation([split or self.cfg.TEST.SPLIT]))
        return super().test(split)
