"""The loop that every method shares: ask, query, tell; budget and bill."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from .data.loaders import ordered_loader
from .oracle import Description, Images, Meter, Prompt, build_oracle
from .oracle.meter import UNITS, query_cost
from .prompts import Space
from .recipe import Answer, Batch, Progress, Recipe, Teacher
from .run.errors import BlackBoxError, BudgetSpent
from .run.files import append
from .run.rng import seeded_generator
from .run.trainer import ResumableTrainer

LOST_UNMARKED = 0.1  # share of the training queries that may be lost without a line about it


class PromptLearner(nn.Module):
    """A prompt space, the vector in use and perhaps a head: all that evaluation needs.

    `forward()` gives the prompt, P = 1.
    """

    theta: torch.Tensor

    def __init__(self, space: Space, theta: torch.Tensor, head: nn.Module | None = None):
        super().__init__()
        self.space, self.head = space, head
        self.register_buffer("theta", theta.clone())

    def forward(self, pixels: torch.Tensor | None = None) -> Prompt:
        return self.space(self.theta[None], pixels)


class BlackBoxTrainer(ResumableTrainer):
    """A method gives its `build_recipe`; grants, costs, steps and evaluation follow from that.

    An epoch is one pass over Dassl's train loader, or, with `Recipe.whole_set`, one step on the
    whole un-augmented training set. Training ends with the budget (`ORACLE.MAX_QUERIES`,
    `ORACLE.MAX_IMAGE_QUERIES`) or with `OPTIM.MAX_EPOCH`, whichever comes first.
    """

    unit = "query"
    learner: PromptLearner

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        """The parts of the method, their random numbers drawn from `generator`."""
        raise NotImplementedError

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

    @property
    def description(self) -> Description:
        return self.oracle.description

    def build_model(self) -> None:
        self.recipe = recipe = self.build_recipe(seeded_generator(self.cfg.SEED))
        self.oracle.require(*recipe.needs)
        self.oracle.set_classes(self.dm.dataset.classnames, recipe.template)
        self.space, self.optim = recipe.space.to(self.device), recipe.optimizer
        self.head, self.head_optim, self.sched = recipe.head, recipe.teacher, recipe.schedule
        theta = self.optim.solution.to(self.device)
        self.learner = PromptLearner(self.space, theta, self.head).to(self.device)
        self.register_model(self.model_name, self.learner, self.optim, self.sched)
        if "contexts" in self.space.grants:
            # one that does not fit is an error now, not in evaluation
            self.oracle.check(self.learner().tokens)
        if recipe.trains:
            print(f"{self.cfg.TRAINER.NAME}: {len(theta):,} tuned numbers")

    # ------------------------------------------------------------------ budget and bill

    def step_cost(self) -> tuple[int, int]:
        """(queries, image queries) of one step, the head's own reads among them."""
        images = self.step_images()
        queries, image_queries = query_cost(self.optim.population, images)
        if self.recipe.features:  # the texts' of every candidate, and the images' once
            queries, image_queries = query_cost(1, images)
            queries += self.optim.population
        for count in self.head_batches():
            more = query_cost(1, count)
            queries, image_queries = queries + more[0], image_queries + more[1]
        return queries, image_queries

    def head_batches(self) -> list[int]:
        """Sizes of the batches that are read for the head alone after a step."""
        if self.head_optim is None or not self.head_optim.loader:
            return []
        total, size = len(self.dm.dataset.train_x), self.head_optim.loader.batch_size
        return [min(size, total - i) for i in range(0, total, size)]

    def step_images(self) -> int:
        images = len(self.dm.dataset.train_x)
        return images if self.recipe.whole_set else min(self.train_loader_x.batch_size, images)

    def steps_total(self) -> int:
        """Steps that the whole budget pays for, or that the epochs hold, whichever are fewer."""
        if not self.recipe.trains:
            return 0
        steps = [self.max_epoch * (1 if self.recipe.whole_set else len(self.train_loader_x))]
        limits = zip(self.oracle.limits.values(), self.step_cost(), strict=True)
        return min(steps + [limit // cost for limit, cost in limits if limit and cost])

    def describe_cost(self) -> str:
        """What the whole run would ask of the model, as a line; `--no-train` prints it."""
        if not self.recipe.trains:
            return "no training queries"
        steps, (queries, images) = self.steps_total(), self.step_cost()
        return (
            f"{steps:,} steps of {queries:,} queries: {steps * queries:,} training queries, "
            f"{steps * images:,} image queries"
        )

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
        limits = zip(UNITS, self.step_cost(), self.oracle.limits.values(), strict=True)
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
        lost = [
            total - self.steps_done * cost
            for total, cost in zip(spent, self.step_cost(), strict=True)
        ]
        self.oracle.set_lost(*lost)
        if lost[0]:
            print(
                f"Lost: {lost[0]:,} of {self.spent():,} training queries, which were asked after "
                f"the last checkpoint of a run that was ended in this folder; they stay on the bill"
            )
        try:
            self.oracle.afford(*self.step_cost())
        except BudgetSpent as e:
            if not self.steps_done:
                raise BlackBoxError(
                    f"{e}, and no step was saved: there is nothing to evaluate. Raise the budget, "
                    f"or choose another --output-dir."
                ) from e

    # ------------------------------------------------------------------ training

    def train_to_the_end(self) -> None:
        if not self.recipe.trains:
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
            self.select_best()
            self.save_model(self.max_epoch - 1, self.output_dir)
            self.after_train()

    def before_train(self) -> None:
        super().before_train()
        self.note_lost()
        print(f"The whole run: {self.describe_cost()}")
        if self.recipe.whole_set:
            self.batches = [self.upload_set()]
        self.saved_at = self.steps_done, self.spent()
        self.open_bar(self.steps_total() * self.step_cost()[0])

    def upload_set(self) -> Batch:
        """The training images, in order and un-augmented; an upload is no query."""
        items = self.dm.dataset.train_x
        labels = torch.tensor([item.label for item in items], device=self.device)
        # one by one into their place: there may be gigabytes
        pixels = torch.empty(len(labels), 3, *self.description.image_size)
        for batch in ordered_loader(self.cfg, items, self.pictures):
            pixels[batch["index"]] = batch["img"]
        return self.uploaded(pixels, labels, torch.arange(len(labels), device=self.device))

    def uploaded(self, pixels: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> Batch:
        kept = pixels if self.space.changes_pictures else None
        return Batch(self.oracle.upload(pixels), labels, index, kept)

    def before_step(self) -> None:
        self.oracle.afford(*self.step_cost())  # a step is made whole or not at all

    def due(self) -> bool:
        every = self.cfg.ORACLE.SAVE_EVERY
        return super().due() or (bool(every) and self.spent() - self.saved_at[1] >= every)

    def after_step(self) -> None:
        """With `ORACLE.VAL_EVERY`, a line of `val_curve.csv` after so many queries more.

        It decides nothing.
        """
        every, counts = self.cfg.ORACLE.VAL_EVERY, self.oracle.counts["training"]
        before = counts["queries"] - self.step_cost()[0]
        if every and counts["queries"] // every > before // every:
            accuracy = self.test(split="val")
            self.set_model_mode("train")
            line = f"{counts['queries']},{counts['image_queries']},{accuracy}\n"
            append(f"{self.output_dir}/val_curve.csv", line)

    def forward_backward(self, batch: Any) -> dict[str, float]:
        """One step; it draws nothing from the global random sources, save with `whole_set`.

        (A resumed epoch replays its loader alone.) Returns the means over the last round's
        candidates of loss and accuracy, and what the head's teacher tells.
        """
        batch = self.batch_of(batch)
        teacher = self.head_optim or Teacher()
        teacher.begin(Progress(self.epoch, self.steps_done, self.steps_total()))
        image = self.oracle.image_features(batch.images) if self.recipe.features else None
        for _ in range(self.optim.rounds):
            prompt = self.space(self.optim.ask(), batch.pixels)
            answer = self.ask(batch.images, prompt, image)
            summary = self.tell(teacher.through(answer, batch), batch.labels)
            if self.optim.in_use is not None:
                teacher.see(answer, self.optim.in_use, batch)
        for pixels, labels in map(self.parse_batch_train, teacher.loader):
            prompt = self.learner(pixels if self.space.changes_pictures else None)
            teacher.read(self.ask(self.oracle.upload(pixels), prompt).logits[0], labels)
        return {**summary, **teacher.learn()}

    def batch_of(self, batch: Any) -> Batch:
        """A loader's batch, or the whole set, as a step wants it."""
        if isinstance(batch, Batch):
            return batch
        pixels, labels = self.parse_batch_train(batch)
        return self.uploaded(pixels, labels, batch["index"].to(self.device))

    def ask(self, images: Images, prompt: Prompt, image: torch.Tensor | None = None) -> Answer:
        """What the model says; with the images' features `[B, E]`, the texts' are asked for."""
        if image is None:
            return Answer(self.oracle.query(images, prompt))
        text = self.oracle.text_features(prompt)
        return Answer(self.description.logit_scale * image @ text.mT, image, text)

    def tell(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Tell the optimiser about its candidates' logits `[P, B, C]`; returns the step's summary.

        Its solution is put to use.
        """
        losses = self.recipe.fitness(logits, labels)
        told = (logits, labels) if self.optim.told == "logits" else (losses,)
        self.optim.tell(*told)
        self.learner.theta.copy_(self.optim.solution)
        right = (logits.argmax(-1) == labels).float().mean().item()
        return {"loss": losses.mean().item(), "acc": 100 * right}

    def after_train(self) -> None:
        left, lost = self.oracle.left(), self.oracle.lost["queries"]
        if self.recipe.trains and left is not None and left >= self.step_cost()[0]:
            print(
                f"OPTIM.MAX_EPOCH {self.max_epoch} ended training with {left:,} of "
                f"{self.oracle.limits['queries']:,} queries left; raise it to spend them."
            )
        if lost > LOST_UNMARKED * self.spent():
            print(
                f"Note: {lost:,} of the {self.spent():,} training queries were lost, more than a "
                f"tenth: {self.steps_done:,} steps were made, and the budget pays for "
                f"{self.steps_total():,}. To compare this run with others, begin it anew in "
                f"another folder."
            )
        super().after_train()
        print(self.oracle.summary())

    # ------------------------------------------------------------------ evaluation

    def evaluating(self) -> AbstractContextManager:
        return self.oracle.evaluation()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        if self.recipe.trains:
            super().load_model(directory, epoch)

    def model_inference(self, pixels: torch.Tensor) -> torch.Tensor:
        images = self.oracle.upload(pixels)
        prompt = self.learner(pixels if self.space.changes_pictures else None)
        if self.head is not None and self.recipe.head_reads == "features":
            image = self.head(self.oracle.image_features(images))
            return self.description.logit_scale * image @ self.oracle.text_features(prompt)[0].T
        logits = self.oracle.query(images, prompt)[0]
        return logits if self.head is None else self.head(logits)
