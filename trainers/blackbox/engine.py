"""What every black-box method shares: an oracle, a budget, a bill, the order of a run."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController

from .errors import BlackBoxError, BudgetSpent
from .files import digest, newest
from .oracle import Meter, Prompt, Texts, build_oracle
from .oracle.bill import UNITS, Plan, Price, batches_of, query_cost, total
from .run.trainer import ResumableTrainer


class BlackBoxTrainer(ResumableTrainer):
    """A trainer whose model answers queries, each of which is counted.

    Two shapes of method follow from it: `SearchTrainer` asks, queries and tells an optimiser;
    `ProbeTrainer` reads every view of the training images once and fits a head. Training ends with
    the budget (`ORACLE.MAX_QUERIES`, `ORACLE.MAX_IMAGE_QUERIES`) or with its epochs, whichever
    comes first. A shape gives `build_model`, `prices`, `forward_backward` and `asked`.
    """

    unit = "queries"
    trains = True  # there is something to learn
    learns_by_steps = True  # the model changes before training ends
    reads_features = False  # the head reads features of images and class texts, not logits
    template: str  # of a class's text
    needs: tuple[str, ...]  # grants that the method cannot do without
    prices: Callable[[], list[Price]]  # of the steps of an epoch
    asked: Callable[[torch.Tensor], Prompt]  # in evaluation, about pictures `[B, 3, H, W]`
    text = "", torch.empty(0)  # the last prompt's digest, and its texts' features `[C, E]`

    def price(self, images: int) -> Price:
        """Of evaluation on a batch."""
        return query_cost(1, images)

    def prepare(self) -> None:
        """Do what comes before the first step of this process."""

    def finish(self) -> None:
        """Training ends, with the epochs or with the budget."""

    def open_model(self) -> None:
        cfg, lock = self.cfg, self.lock
        self.oracle = Meter(
            build_oracle(cfg, self.device, client=cfg.TRAINER.NAME),
            cfg.ORACLE.MAX_QUERIES,
            cfg.ORACLE.MAX_IMAGE_QUERIES,
            record=f"{cfg.OUTPUT_DIR}/queries.json" if lock else None,
            holds=lock.check if lock else None,
        )
        self.description, self.pools = self.oracle.description, ThreadpoolController()

    def name_classes(self, template: str, *needs: str) -> None:
        """Tell the oracle what it will be asked about, if it grants what the method needs."""
        self.template, self.needs = template, needs
        self.oracle.require(*needs)
        print(f'Template: "{template}"{" behind the context" if "contexts" in needs else ""}')
        self.oracle.set_classes(self.dm.dataset.classnames, template)

    def one_thread(self) -> AbstractContextManager:
        """For small matrices, where threads wait for each other; a user's OMP_NUM_THREADS stays."""
        own = "OMP_NUM_THREADS" in os.environ
        return nullcontext() if own else self.pools.limit(limits=1)

    @cached_property
    def plan(self) -> Plan:
        # what is fitted to features is fitted to those of the class texts too
        texts = int(self.reads_features and not self.learns_by_steps)
        return Plan(self.prices(), self.max_epoch if self.trains else 0, (texts, 0))

    def steps_total(self) -> int:
        """Steps that the whole budget pays for, or that the epochs hold, whichever are fewer."""
        return self.plan.steps(self.oracle.limits)

    def passes(self, done: int = 0) -> list[str]:
        """The splits that are still evaluated on after so many steps, each as often as it is."""
        plan, steps, every = self.plan, self.steps_total(), self.cfg.ORACLE.VAL_EVERY
        tested, epoch = not self.cfg.TEST.NO_TEST, len(plan.epoch)
        best = tested and self.cfg.TEST.FINAL_MODEL == "best_val"

        def looks(steps: int) -> int:
            """At val within the first so many steps."""
            curve = min(steps, plan.until(steps)[0] // every) if every else 0
            return curve * self.learns_by_steps + best * (steps // epoch)

        # one more where the budget ends an epoch, and one where a head was fitted
        val = looks(steps) - looks(done) + (best and steps < plan.epochs * epoch)
        val += bool(every and self.trains and not self.learns_by_steps)
        return ["val"] * val + [self.cfg.TEST.SPLIT] * tested

    def evaluation(self, passes: Sequence[str]) -> Price:
        """Of evaluations on these splits, at most."""
        texts = len(passes if self.learns_by_steps else passes[:1]) * self.reads_features
        prices: list[Price] = [(texts, 0)]
        for split in passes:
            items = (split == "val" and self.dm.dataset.val) or self.dm.dataset.test
            sizes = batches_of(len(items), self.cfg.DATALOADER.TEST.BATCH_SIZE)
            prices += map(self.price, sizes)
        return total(prices)

    def describe_cost(self) -> str:
        """What the whole run would ask of the model, as a line; `--no-train` prints it."""
        steps, most = self.steps_total(), max(self.plan.epoch)[0]
        (queries, images), (tested, shown) = self.plan.until(steps), self.evaluation(self.passes())
        line = f"{steps:,} steps of {most:,} queries: {queries:,} training queries, {images:,} "
        line += f"image queries; {tested:,} evaluation queries, {shown:,} image queries"
        lists, head = [Texts.of(self.dm.dataset.classnames, self.template)], vars(self.head or self)
        if further := head.get("texts"):
            lists.append(Texts.of(further, head["template"]))
        if quote := self.oracle.quote([([images], lists)]):
            quotes = quote, self.oracle.quote([([shown], [])])
            parts = [", ".join(f"{n:,} {unit}" for unit, n in of.items()) for of in quotes]
            line += ". Of the service, where it has no answers yet: about "
            line += "; evaluation ".join(parts)
        for unit, left in self.oracle.allowance().items():
            line += f". The budget of this key has {left:,} {unit.replace('_', ' ')} left"
        return line

    def check_allowance(self, training: Price, tested: Price) -> None:
        """Raise unless the owner's budget pays for both, without which there is no result."""
        allowed = self.oracle.allowance()
        for unit, first, then in zip(UNITS, training, tested, strict=True):
            if first + then > allowed.get(unit, first + then):
                raise BlackBoxError(
                    f"{first + then:,} {unit.replace('_', ' ')} are needed ({first:,} for training,"
                    f" {then:,} for evaluation), and the budget of this key has {allowed[unit]:,} "
                    f"left. Ask its owner for more, or lower ORACLE.MAX_{unit.upper()}."
                )

    def check_training(self) -> None:
        if self.trains:
            super().check_training()
            if not (self.cfg.RESUME or newest(Path(self.output_dir, self.model_name))):
                self.oracle.afford(*self.plan.step(0))

    def train_to_the_end(self) -> None:
        if not self.trains:
            print("Nothing to train")
            self.time_start = time.time()
            self.after_train()
            return
        try:
            super().train_to_the_end()
        except BudgetSpent as spent:
            if self.stage != "training":
                raise
            self.bar.close()
            print(f"{spent} Training ends in epoch {self.epoch + 1}, batch {self.batches_done}.")
            self.finish()
            self.select_best()
            self.save_model(self.max_epoch - 1, self.output_dir)
            self.after_train()

    def before_train(self) -> None:
        super().before_train()
        done, run = self.plan.until(self.steps_done), self.plan.until(self.steps_total())
        # what was paid for in this folder without a trace in the parameters
        paid = self.oracle.counts["training"].values()
        self.oracle.set_lost(*(spent - cost for spent, cost in zip(paid, done, strict=True)))
        if lost := self.oracle.lost["queries"]:
            print(
                f"Lost: {lost:,} of {self.clock():,} training queries, asked after the last "
                f"checkpoint of a run that was ended in this folder; they stay on the bill"
            )
        still = max(0, run[0] - done[0]), max(0, run[1] - done[1])
        self.check_allowance(still, self.evaluation(self.passes(self.steps_done)))
        print(f"The whole run: {self.describe_cost()}")
        self.prepare()
        self.open_bar(run[0])

    def before_step(self) -> None:
        # a step is made whole or not at all
        self.oracle.afford(*self.plan.step(self.steps_done))

    def after_step(self) -> None:
        """With `ORACLE.VAL_EVERY`, look at val after so many queries more."""
        every, asked = self.cfg.ORACLE.VAL_EVERY, self.clock()
        before = asked - self.plan.step(self.steps_done - 1)[0]
        if every and asked // every > before // every and self.learns_by_steps:
            self.look_at_val()

    def look_at_val(self) -> None:
        """Write a line of `val_curve.csv`; it decides nothing."""
        counts, accuracy = self.oracle.counts["training"], self.test(split="val")
        self.set_model_mode("train")
        with open(Path(self.output_dir, "val_curve.csv"), "a") as f:
            f.write(f"{counts['queries']},{counts['image_queries']},{accuracy}\n")

    def after_epoch(self) -> None:
        if self.epoch + 1 == self.max_epoch:
            self.finish()
        super().after_epoch()

    def due(self) -> bool:
        every = self.cfg.ORACLE.SAVE_EVERY
        return super().due() or (bool(every) and self.clock() - self.saved_at[1] >= every)

    def after_train(self) -> None:
        left = self.oracle.left() or 0
        ended = self.learns_by_steps and self.epoch_rng is None  # by the epochs
        if self.trains and ended and left >= self.plan.step(self.steps_done)[0]:
            print(
                f"OPTIM.MAX_EPOCH {self.max_epoch} ended training with {left:,} of "
                f"{self.oracle.limits['queries']:,} queries left; raise it to spend them."
            )
        super().after_train()
        print(self.oracle.summary())

    def clock(self) -> int:
        """Training queries."""
        return self.oracle.counts["training"]["queries"]

    def counts(self) -> dict:
        return self.oracle.counts

    def take_over(self, counts: dict | None, directory: str) -> None:
        self.oracle.at_least(counts or {})
        self.oracle.take_over(f"{directory}/queries.json")  # what was spent after it, too

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        # without anything to load, a folder that is named and not there is an error all the same
        if self.trains or (directory and not os.path.isdir(directory)):
            super().load_model(directory, epoch)

    def evaluating(self) -> AbstractContextManager:
        return self.oracle.evaluation()

    def test(self, split: str | None = None) -> float:
        self.check_allowance((0, 0), self.evaluation([split or self.cfg.TEST.SPLIT]))
        return super().test(split)

    def model_inference(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]`."""
        images, prompt = self.oracle.upload(pixels), self.asked(pixels)
        if self.head is None:
            return self.oracle.query(images, prompt)[0]
        if not self.reads_features:
            return self.head(self.oracle.query(images, prompt)[0])
        key = digest(prompt.contexts)
        if self.text[0] != key:  # the texts of a prompt are asked for once while it is in use
            self.text = key, self.oracle.text_features(prompt)[0]
        return self.head(self.oracle.image_features(images), self.text[1])
