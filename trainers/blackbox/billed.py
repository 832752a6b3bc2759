"""What a run costs, and what it has cost: its plan, its budget and its bill."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .learner import PromptLearner
from .oracle import QUERY_IMAGES, Description, Meter, build_oracle
from .oracle.bill import UNITS
from .plan import Cost, Plan, batches_of
from .recipe import Recipe
from .run.errors import BlackBoxError, BudgetSpent
from .run.trainer import ResumableTrainer

LOST_UNMARKED = 0.1  # share of the training queries that may be lost without a line about it


class Billed(ResumableTrainer):
    """The part of a trainer that knows its oracle, what steps cost and what was paid.

    Attributes:
        oracle: metered.
        plan: set by `build_model`, as `recipe` and `learner` are.
    """

    unit = "query"
    recipe: Recipe
    learner: PromptLearner
    plan: Plan

    def open_model(self) -> None:
        cfg = self.cfg
        self.oracle = Meter(
            build_oracle(cfg, self.device, client=cfg.TRAINER.NAME),
            cfg.ORACLE.MAX_QUERIES,
            cfg.ORACLE.MAX_IMAGE_QUERIES,
            record=f"{cfg.OUTPUT_DIR}/queries.json" if self.lock else None,
            holds=self.lock.check if self.lock else None,
        )

    @property
    def description(self) -> Description:
        return self.oracle.description

    def batch_sizes(self) -> list[int]:
        """Images of each batch of an epoch of Dassl's train loader."""
        size = min(self.train_loader_x.batch_size, len(self.dm.dataset.train_x))
        return [size] * len(self.train_loader_x)

    def make_plan(self) -> Plan:
        """What the steps cost, from the recipe and the sizes of the batches."""
        recipe, images = self.recipe, len(self.dm.dataset.train_x)
        sizes = self.batch_sizes()
        if recipe.whole_set:
            sizes = [images]
        elif recipe.views is not None:
            sizes = batches_of(images, QUERY_IMAGES)
        head = recipe.teacher.loader if recipe.teacher else None
        pixels = torch.zeros(1, 3, *self.description.image_size, device=self.device)
        with torch.no_grad():
            tested = self.learner.eval()(pixels if self.space.changes_pictures else None)
            prompt = tested if self.space.changes_pictures else self.learner.train()()
        return Plan(
            sizes,
            self.max_epoch,
            self.optim.population,
            queries_each=prompt.candidates(self.num_classes),
            images_each=len(prompt),
            features=recipe.features,
            text_once=not self.optim.searches,
            head=batches_of(images, head.batch_size or images) if head else (),
            tests_features=self.head is not None and recipe.head_reads == "features",
            tests_each=tested.candidates(self.num_classes),
        )

    def steps_total(self) -> int:
        """Steps that the whole budget pays for, or that the epochs hold, whichever are fewer."""
        return self.plan.steps(self.oracle.limits) if self.recipe.trains else 0

    def describe_cost(self) -> str:
        """What the whole run would ask of the model, as a line; `--no-train` prints it."""
        steps, line = self.steps_total(), "no training queries"
        queries, images = self.plan.until(steps)
        if self.recipe.trains:
            most = max(cost.queries for cost in self.plan.epoch)
            line = (
                f"{steps:,} steps of {most:,} queries: {queries:,} training queries, "
                f"{images:,} image queries"
            )
        passes = self.passes()
        tested = self.evaluation(passes)
        line += f"; {tested.queries:,} evaluation queries, {tested.image_queries:,} image queries"
        # what a service keeps no answers of is sent again for every candidate and pass
        pictures, shown = images, tested.image_queries
        if not self.space.changes_pictures:
            pictures = self.plan.images(steps)
            shown = sum(sum(self.test_batches(split)) for split in set(passes))
        if quote := self.oracle.quote(pictures, self.num_classes):
            test = self.oracle.quote(shown, 0)
            line += f". Of the service, where it has no answers yet: {quote}; evaluation {test}"
        for unit, left in self.oracle.allowance().items():
            line += f". The budget of this key has {left:,} {unit.replace('_', ' ')} left"
        return line

    def passes(self, done: int = 0) -> list[str]:
        """The splits that are still evaluated on after so many steps, each as often as it is."""
        cfg, total, epoch = self.cfg, self.steps_total(), len(self.plan.epoch)
        best = cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST and self.recipe.trains
        every, views = cfg.ORACLE.VAL_EVERY, self.recipe.views is not None

        def looks(steps: int) -> int:
            """At val within the first so many steps."""
            asked = self.plan.until(steps).queries
            curve = min(steps, asked // every) if every and not views else 0
            return curve + (steps // epoch if best else 0)

        # one more where the budget ends an epoch, and one where a head was fitted
        val = looks(total) - looks(done) + (best and total < self.max_epoch * epoch)
        return ["val"] * (val + bool(every and views)) + [cfg.TEST.SPLIT] * (not cfg.TEST.NO_TEST)

    def test_batches(self, split: str) -> list[int]:
        """Sizes of the batches that a split is evaluated in."""
        items = (split == "val" and self.dm.dataset.val) or self.dm.dataset.test
        return batches_of(len(items), self.cfg.DATALOADER.TEST.BATCH_SIZE)

    def evaluation(self, passes: Sequence[str]) -> Cost:
        return self.plan.tested([self.test_batches(split) for split in passes])

    def check_allowance(self, training: Cost, tested: Cost) -> None:
        """Raise unless the owner's budget pays for both, without which there is no result."""
        for unit, left in self.oracle.allowance().items():
            first, then = getattr(training, unit), getattr(tested, unit)
            if first + then > left:
                less = f", or lower ORACLE.MAX_{unit.upper()}, which bounds training"
                raise BlackBoxError(
                    f"{first + then:,} {unit.replace('_', ' ')} are needed ({first:,} for training,"
                    f" {then:,} for evaluation), and the budget of this key has {left:,} left. Ask "
                    f"the model's owner for more{less if first else ''}."
                )

    def check_rest(self) -> None:
        """The same of all that the run still asks for."""
        done, rest = self.steps_done, []
        whole, made = self.plan.until(self.steps_total()), self.plan.until(done)
        for unit, total, before in zip(UNITS, whole, made, strict=True):
            left = self.oracle.left(unit)  # less than the steps cost where some were lost
            rest.append(max(0, total - before if left is None else min(total - before, left)))
        self.check_allowance(Cost(*rest), self.evaluation(self.passes(done)))

    def test(self, split: str | None = None) -> float:
        self.check_allowance(Cost(), self.evaluation([split or self.cfg.TEST.SPLIT]))
        return super().test(split)

    def spent(self) -> int:
        return self.oracle.counts["training"]["queries"]

    def clock(self) -> int:
        return self.spent()

    def position(self) -> str:
        return f"{self.spent():,} queries"

    def progress_note(self) -> str:
        return f"queries {self.spent():,} "

    def counts(self) -> dict:
        return self.oracle.counts

    def take_over(self, counts: dict | None, directory: str) -> None:
        assert counts is not None  # a black-box run has a bill
        self.oracle.at_least(counts)
        self.oracle.take_over(f"{directory}/queries.json")  # what was spent after it, too

    def check_training(self) -> None:
        """Raise unless the budget pays for one step, and no training image is tested on."""
        if not self.recipe.trains:
            return
        super().check_training()
        limits = zip(UNITS, self.plan.step(0), self.oracle.limits.values(), strict=True)
        for unit, cost, limit in limits:
            if limit and cost > limit:
                raise BlackBoxError(
                    f"One step of {self.cfg.TRAINER.NAME} costs {cost:,} {unit.replace('_', ' ')}, "
                    f"but the budget (ORACLE.MAX_{unit.upper()}) is {limit:,}. Raise it, or set it "
                    f"to 0 for no limit."
                )

    def note_lost(self) -> None:
        """Tell what earlier lives of this run paid for without a trace in its parameters.

        Raises:
            BlackBoxError: nothing trained, and what is left of the budget does not pay for a step.
        """
        spent = self.oracle.counts["training"].values()
        made = self.plan.until(self.steps_done)
        lost = [total - cost for total, cost in zip(spent, made, strict=True)]
        self.oracle.set_lost(*lost)
        if lost[0]:
            print(
                f"Lost: {lost[0]:,} of {self.spent():,} training queries, which were asked after "
                f"the last checkpoint of a run that was ended in this folder; they stay on the bill"
            )
        try:
            self.oracle.afford(*self.plan.step(self.steps_done))
        except BudgetSpent as e:
            if not self.steps_done:
                raise BlackBoxError(
                    f"{e}, and no step was saved: there is nothing to evaluate. Raise the budget, "
                    f"or choose another --output-dir."
                ) from e

    def before_step(self) -> None:
        # a step is made whole or not at all
        self.oracle.afford(*self.plan.step(self.steps_done))

    def due(self) -> bool:
        every = self.cfg.ORACLE.SAVE_EVERY
        return super().due() or (bool(every) and self.spent() - self.saved_at[1] >= every)

    def after_train(self) -> None:
        self.note_left()
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

    def note_left(self) -> None:
        """Tell that the epochs ended before the budget did, where more of them would help."""
        left, more = self.oracle.left(), self.plan.step(self.steps_done).queries
        if left is None or left < more or not self.recipe.trains or self.recipe.views is not None:
            return
        print(
            f"OPTIM.MAX_EPOCH {self.max_epoch} ended training with {left:,} of "
            f"{self.oracle.limits['queries']:,} queries left; raise it to spend them."
        )
