"""The loop that every method shares: ask, query, tell; budget and bill."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from .billed import Billed
from .data.loaders import ordered_loader
from .learner import PromptLearner
from .oracle import QUERY_IMAGES, Images, Prompt
from .recipe import Answer, Batch, Progress, Recipe, Teacher, side_by_side
from .run.errors import BudgetSpent
from .run.files import append
from .run.rng import seeded_generator

SMALL = 2**20  # images x classes below which a fit is small work


class BlackBoxTrainer(Billed):
    """A method gives its `build_recipe`; grants, costs, steps and evaluation follow from that.

    An epoch is one pass over Dassl's train loader, or, with `Recipe.whole_set`, one step on the
    whole un-augmented training set. Training ends with the budget (`ORACLE.MAX_QUERIES`,
    `ORACLE.MAX_IMAGE_QUERIES`) or with `OPTIM.MAX_EPOCH`, whichever comes first.
    """

    text: tuple[torch.Tensor, torch.Tensor] | None = None  # a prompt's vector and its texts

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        """The parts of the method, their random numbers drawn from `generator`."""
        raise NotImplementedError

    # ------------------------------------------------------------------ building

    def build_model(self) -> None:
        self.recipe = recipe = self.build_recipe(seeded_generator(self.cfg.SEED))
        self.oracle.require(*recipe.needs)
        behind = " behind the context" if "contexts" in recipe.needs else ""
        print(f'Template: "{recipe.template}"{behind}')
        self.oracle.set_classes(self.dm.dataset.classnames, recipe.template)
        self.space, self.optim = recipe.space.to(self.device), recipe.optimizer
        self.head, self.head_optim, self.sched = recipe.head, recipe.teacher, recipe.schedule
        if recipe.teacher is not None:
            recipe.teacher.device = self.device
        if recipe.views is not None:
            self.max_epoch = min(self.max_epoch, 1 + recipe.views)
            if self.augmentation.views:  # which would ask about the same view again
                print(
                    f"Note: {self.cfg.TRAINER.NAME} has views of its own and reads no INPUT.VIEWS"
                )
                self.augmentation.views = 0
        theta = self.optim.solution.to(self.device)
        self.learner = PromptLearner(self.space, theta, self.head).to(self.device)
        self.register_model(self.model_name, self.learner, self.optim, self.sched)
        if "contexts" in self.space.grants:
            # one that does not fit is an error now, not in evaluation
            self.oracle.check(self.learner().tokens)
        self.plan, self.pools = self.make_plan(), ThreadpoolController()
        if len(theta):
            print(f"{self.cfg.TRAINER.NAME}: {len(theta):,} tuned numbers")

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
            self.finish()
            self.select_best()
            self.save_model(self.max_epoch - 1, self.output_dir)
            self.after_train()

    def before_train(self) -> None:
        super().before_train()
        self.note_lost()
        self.check_rest()
        print(f"The whole run: {self.describe_cost()}")
        images = self.plan.images(self.steps_total())
        if self.recipe.views is not None and images < self.num_classes:
            print(
                f"Note: the budget pays for {images:,} images, one of each of so many classes; of "
                f"the other {self.num_classes - images:,} nothing is learnt"
            )
        if self.recipe.whole_set:
            self.batches = [self.upload_set()]
        self.saved_at = self.steps_done, self.spent()
        self.open_bar(self.plan.until(self.steps_total()).queries)

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

    def before_epoch(self) -> None:
        super().before_epoch()
        if self.recipe.views is not None:
            items, augmentation = self.dm.dataset.train_x, self.augmentation
            self.batches = ordered_loader(
                self.cfg,
                items,
                self.pictures,
                augmentation if self.epoch else None,
                QUERY_IMAGES,
                in_turns=True,
            )

    def after_epoch(self) -> None:
        if self.epoch + 1 == self.max_epoch:
            self.finish()
        super().after_epoch()

    def finish(self) -> None:
        if self.recipe.views is not None and self.steps_done:
            tqdm.write(f"{self.cfg.TRAINER.NAME}: fitting the head")  # which may take long
        small = len(self.dm.dataset.train_x) * self.num_classes < SMALL
        with self.one_thread() if small else nullcontext():
            line = self.head_optim.finish() if self.head_optim else ""
        if line:
            tqdm.write(f"{self.cfg.TRAINER.NAME}: {line}")
        if self.recipe.views is not None and self.cfg.ORACLE.VAL_EVERY:
            self.look_at_val()

    def after_step(self) -> None:
        """With `ORACLE.VAL_EVERY`, look at val after so many queries more.

        What is fitted when the answers are there (`Recipe.views`) is looked at then alone.
        """
        every, asked = self.cfg.ORACLE.VAL_EVERY, self.oracle.counts["training"]["queries"]
        before = asked - self.plan.step(self.steps_done - 1).queries
        if every and asked // every > before // every and self.recipe.views is None:
            self.look_at_val()

    def look_at_val(self) -> None:
        """Write a line of `val_curve.csv`; it decides nothing."""
        counts, accuracy = self.oracle.counts["training"], self.test(split="val")
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
            with self.one_thread():
                candidates = self.optim.ask()
            prompt = self.space(candidates, batch.pixels)
            answer = self.ask(batch.images, prompt, image, teacher.text)
            with self.one_thread():
                summary = self.tell(teacher.through(answer, batch), batch.labels)
                if self.optim.in_use is not None:
                    teacher.see(answer, self.optim.in_use, batch)
        for pixels, labels in map(self.parse_batch_train, teacher.loader or ()):
            prompt = self.learner(pixels if self.space.changes_pictures else None)
            answer = self.ask(self.oracle.upload(pixels), prompt)
            with self.one_thread():
                teacher.read(answer.logits[0], labels)
        with self.one_thread():
            return {**summary, **teacher.learn()}

    def one_thread(self) -> AbstractContextManager:
        """For small matrices: where other processes share the cores, threads wait for each other
        longer than they compute. A user's own OMP_NUM_THREADS stays.
        """
        own = "OMP_NUM_THREADS" in os.environ
        return nullcontext() if own else self.pools.limit(limits=1)

    def batch_of(self, batch: Any) -> Batch:
        """A loader's batch, or the whole set, as a step wants it."""
        if isinstance(batch, Batch):
            return batch
        pixels, labels = self.parse_batch_train(batch)
        return self.uploaded(pixels, labels, batch["index"].to(self.device))

    def ask(
        self,
        images: Images,
        prompt: Prompt,
        image: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
    ) -> Answer:
        """What the model says; with the images' features `[B, E]`, the texts' are asked for.

        Unless they are known.
        """
        if image is None:
            return Answer(self.oracle.query(images, prompt))
        text = self.oracle.text_features(prompt) if text is None else text
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

    # ------------------------------------------------------------------ evaluation

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        # without anything to load, a folder that is named and not there is an error all the same
        if self.recipe.trains or (directory and not os.path.isdir(directory)):
            super().load_model(directory, epoch)

    def evaluating(self) -> AbstractContextManager:
        return self.oracle.evaluation()

    def texts(self, prompt: Prompt) -> torch.Tensor:
        """Features `[C, E]` of the texts of the prompt in use; asked for once while it is."""
        theta = self.learner.theta
        if self.text is None or not torch.equal(self.text[0], theta):
            self.text = theta.clone(), self.oracle.text_features(prompt)[0]
        return self.text[1]

    def model_inference(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]`; the head reads the answers about several candidates side by side."""
        images = self.oracle.upload(pixels)
        prompt = self.learner(pixels if self.space.changes_pictures else None)
        if self.head is not None and self.recipe.head_reads == "features":
            return self.head(self.oracle.image_features(images), self.texts(prompt))
        logits = side_by_side(self.oracle.query(images, prompt))
        return logits if self.head is None else self.head(logits)
