"""The loop that every method shares: ask, query, tell; budget and bill."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from .data.loaders import ordered_loader
from .losses import cross_entropies
from .oracle import Description, Images, Meter, build_oracle
from .oracle.meter import UNITS, query_cost
from .prompts import Prompt
from .run.errors import BlackBoxError, BudgetSpent
from .run.files import append
from .run.rng import child_seed, seeded_generator
from .run.trainer import ResumableTrainer

LOST_UNMARKED = 0.1  # share of the training queries that may be lost without a line about it


class PromptLearner(nn.Module):
    """A prompt space, the vector in use and perhaps a head: all that evaluation needs.

    `forward()` gives the prompt, P = 1.
    """

    def __init__(self, space: nn.Module, theta: torch.Tensor, head: nn.Module | None = None):
        super().__init__()
        self.space, self.head = space, head
        self.register_buffer("theta", theta.clone())

    def forward(self) -> Prompt:
        return self.space(self.theta[None])


class BlackBoxTrainer(ResumableTrainer):
    """A recipe fills in `needs` and `build_recipe`; the rest is the same for every method.

    An epoch is one pass over Dassl's train loader, or, with `whole_set`, one step on the whole
    un-augmented training set. Training ends with the budget (`ORACLE.MAX_QUERIES`,
    `ORACLE.MAX_IMAGE_QUERIES`) or with `OPTIM.MAX_EPOCH`, whichever comes first.
    """

    needs: tuple[str, ...] = ("logits",)  # grants that the method cannot do without
    whole_set = False  # whether `tell` waits for the whole training set
    unit = "query"

    def build_recipe(self, generator: torch.Generator) -> tuple[nn.Module, Any]:
        """Returns (prompt space, optimiser); its `solution` is the vector to start from."""
        raise NotImplementedError

    def build_head(self) -> tuple[nn.Module | None, Any]:
        """Returns (head, its optimiser), for methods that train one."""
        return None, None

    def build_sched(self) -> Any:
        """Returns the schedule of the optimiser's learning rate, one step an epoch, if any."""
        return None

    # ------------------------------------------------------------------ building

    def open_model(self) -> None:
        cfg = self.cfg
        oracle = build_oracle(cfg, self.device, client=cfg.TRAINER.NAME)
        oracle.require(*self.needs)
        self.oracle = Meter(
            oracle,
            cfg.ORACLE.MAX_QUERIES,
            cfg.ORACLE.MAX_IMAGE_QUERIES,
            record=f"{cfg.OUTPUT_DIR}/queries.json" if self.lock else None,
            holds=self.lock.check if self.lock else None,
        )

    @property
    def description(self) -> Description:
        return self.oracle.description

    def name_classes(self) -> None:
        self.oracle.set_classes(self.dm.dataset.classnames)

    def build_model(self) -> None:
        generator = seeded_generator(self.cfg.SEED)
        space, self.optim = self.build_recipe(generator)
        self.space = space.to(self.device)
        # a head's first weights come from the run's seed, and leave the loaders' draws alone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(generator))
            self.head, self.head_optim = self.build_head()
        self.learner = PromptLearner(self.space, self.optim.solution, self.head).to(self.device)
        self.sched = self.build_sched()
        self.register_model(self.model_name, self.learner, self.optim, self.sched)
        context = self.learner().contexts.shape[1:]
        self.oracle.check(context[0])  # one that does not fit is an error now, not in evaluation
        print(
            f"{self.cfg.TRAINER.NAME}: {len(self.learner.theta):,} tuned numbers, "
            f"context {tuple(context)}"
        )

    # ------------------------------------------------------------------ budget and bill

    def step_cost(self) -> tuple[int, int]:
        """(queries, image queries) of one step."""
        return query_cost(self.optim.population, self.step_images())

    def step_images(self) -> int:
        images = len(self.dm.dataset.train_x)
        return images if self.whole_set else min(self.train_loader_x.batch_size, images)

    def feature_cost(self) -> tuple[int, int]:
        """`step_cost` where the texts' features of every candidate come back, the images' once."""
        queries, images = query_cost(1, self.step_images())
        return self.optim.population + queries, images

    def steps_total(self) -> int:
        """Steps that the whole budget pays for, or that the epochs hold, whichever are fewer."""
        steps = [self.max_epoch * (1 if self.whole_set else len(self.train_loader_x))]
        limits = zip(self.oracle.limits.values(), self.step_cost(), strict=True)
        return min(steps + [limit // cost for limit, cost in limits if limit and cost])

    def describe_cost(self) -> str:
        """What the whole run would ask of the model, as a line; `--no-train` prints it."""
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
        self.oracle.at_least(counts)
        self.oracle.take_over(f"{directory}/queries.json")  # what was spent after it, too

    def check_training(self) -> None:
        """Raise unless the budget pays for one step and no image is trained on that is tested on."""
        super().check_training()
        limits = zip(UNITS, self.step_cost(), self.oracle.limits.values(), strict=True)
        for unit, cost, limit in limits:
            if limit and cost > limit:
                raise BlackBoxError(
                    f"One step of {self.cfg.TRAINER.NAME} costs {cost:,} {unit.replace('_', ' ')}, "
                    f"but the budget (ORACLE.MAX_{unit.upper()}) is {limit:,}. Raise it, or set it to "
                    f"0 for no limit."
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
                f"Lost: {lost[0]:,} of {self.spent():,} training queries, which were asked after the "
                f"last checkpoint of a run that was ended in this folder; they stay on the bill"
            )
        try:
            self.oracle.afford(*self.step_cost())
        except BudgetSpent as e:
            if not self.steps_done:
                raise BlackBoxError(
                    f"{e}, and no step was saved: there is nothing to evaluate. Raise the budget, or "
                    f"choose another --output-dir."
                ) from e

    # ------------------------------------------------------------------ training

    def train_to_the_end(self) -> None:
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
        if self.whole_set:
            self.batches = [self.upload_set()]
        self.saved_at = self.steps_done, self.spent()
        self.open_bar(self.steps_total() * self.step_cost()[0])

    def upload_set(self) -> tuple[Images, torch.Tensor]:
        """The training images, in order and un-augmented, and their labels `[N]`; no query."""
        items = self.dm.dataset.train_x
        labels = torch.tensor([item.label for item in items], device=self.device)
        # one by one into their place: there may be gigabytes
        pixels = torch.empty(len(labels), 3, *self.description.image_size)
        for batch in ordered_loader(self.cfg, items, self.pictures):
            pixels[batch["index"]] = batch["img"]
        return self.oracle.upload(pixels), labels

    def before_step(self) -> None:
        self.oracle.afford(*self.step_cost())  # a step is made whole or not at all

    def due(self) -> bool:
        every = self.cfg.ORACLE.SAVE_EVERY
        return super().due() or bool(every) and self.spent() - self.saved_at[1] >= every

    def after_step(self) -> None:
        """With `ORACLE.VAL_EVERY`, a line of `val_curve.csv` whenever so many queries more are spent.

        It decides nothing.
        """
        every, counts = self.cfg.ORACLE.VAL_EVERY, self.oracle.counts["training"]
        before = counts["queries"] - self.step_cost()[0]
        if every and counts["queries"] // every > before // every:
            accuracy = self.test(split="val")
            self.set_model_mode("train")
            line = f"{counts['queries']},{counts['image_queries']},{accuracy}\n"
            append(f"{self.output_dir}/val_curve.csv", line)

    def examples(self, batch: Any) -> tuple[Images, torch.Tensor]:
        """(`Images`, labels `[B]`) of what an epoch iterates over."""
        if self.whole_set:
            return batch
        images, labels = self.parse_batch_train(batch)
        return self.oracle.upload(images), labels

    def forward_backward(self, batch: Any) -> dict[str, float]:
        """One step; it draws nothing from the global random sources, save with `whole_set`.

        (A resumed epoch replays its loader alone.) Returns the means over the last round's
        candidates of loss and accuracy.
        """
        images, labels = self.examples(batch)
        for _ in range(self.optim.rounds):
            candidates = self.optim.ask()
            summary = self.tell(self.answer(images, self.space(candidates)), labels)
        return summary

    def answer(self, images: Images, prompt: Prompt) -> torch.Tensor:
        """The candidates' logits `[P, B, C]`."""
        return self.oracle.query(images, *prompt)

    def tell(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Tell the optimiser the candidates' logits `[P, B, C]`, or what they are worth.

        Its solution is put to use. Returns the step's summary.
        """
        losses = self.fitness(logits, labels)
        self.inform(logits, losses, labels)
        self.learner.theta.copy_(self.optim.solution)
        right = (logits.argmax(-1) == labels).float().mean().item()
        return {"loss": losses.mean().item(), "acc": 100 * right}

    def inform(self, logits: torch.Tensor, losses: torch.Tensor, labels: torch.Tensor) -> None:
        """What the optimiser wants to be told."""
        told = (logits, labels) if self.optim.told == "logits" else (losses,)
        self.optim.tell(*told)

    def fitness(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of every candidate: logits `[P, B, C]`, labels `[B]` -> `[P]`."""
        return cross_entropies(logits, labels).mean(1)

    def after_train(self) -> None:
        left, lost = self.oracle.left(), self.oracle.lost["queries"]
        if left is not None and left >= self.step_cost()[0]:
            print(
                f"OPTIM.MAX_EPOCH {self.max_epoch} ended training with {left:,} of "
                f"{self.oracle.limits['queries']:,} queries left; raise it to spend them."
            )
        if lost > LOST_UNMARKED * self.spent():
            print(
                f"Note: {lost:,} of the {self.spent():,} training queries were lost, more than a "
                f"tenth: {self.steps_done:,} steps were made, and the budget pays for "
                f"{self.steps_total():,}. To compare this run with others, begin it anew in another "
                f"folder."
            )
        super().after_train()
        print(self.oracle.summary())

    # ------------------------------------------------------------------ evaluation

    def evaluating(self) -> AbstractContextManager:
        return self.oracle.evaluation()

    def model_inference(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.oracle.query(self.oracle.upload(images), *self.learner())[0]
        return logits if self.head is None else self.head(logits)
