"""Methods that search a prompt: ask an optimiser, query the model, tell the optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from .losses import mean_cross_entropies
from .optimizers import Optimizer
from .oracle import Prompt
from .oracle.bill import Price, batches_of, query_cost, total
from .prompts import Space
from .trainer import Trainer


@dataclass(frozen=True)
class Answer:
    """What came back about P candidates on B training images."""

    logits: torch.Tensor  # [P, B, C]
    labels: torch.Tensor  # [B]
    index: torch.Tensor  # [B], numbers of the training images
    image: torch.Tensor | None = None  # normalised features [B, E], where a recipe reads features
    text: torch.Tensor | None = None  # the same of the class texts [P, C, E]


class Teacher:
    """Trains a head by ordinary gradients, on what came back; it has a state to save."""

    loader: DataLoader | None = None  # read for the head alone after every step, and billed

    def begin(self, epoch: int, steps_done: int, steps_total: int) -> None:
        """A step begins, after so many of the steps that are paid for."""

    def through(self, answer: Answer) -> torch.Tensor:
        """Logits `[P, B, C]` that the prompt is tuned on."""
        return answer.logits

    def see(self, answer: Answer, number: int) -> None:
        """Candidate `number` of an answer is the prompt in use."""

    def read(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Learn from a batch of `loader` under the prompt in use: logits `[B, C]`, labels `[B]`."""

    def learn(self) -> dict[str, float]:
        """The step ends; returns what the log says of the head."""
        return {}


class Recipe(torch.nn.Module):
    """The parts of a method, and all that evaluation needs; `SearchTrainer` does the rest."""

    def __init__(
        self,
        space: Space,  # vectors `[P, d]` to a `Prompt`; its kind decides what must be let in
        optimizer: Optimizer,  # asks for candidates, is told about them; its `theta` is in use
        # of logits `[B, C]`, or of features `[B, E]` and `[C, E]` where its `reads` is "features"
        head: torch.nn.Module | None = None,
        teacher: Teacher | None = None,  # of the head
        schedule: Any = None,  # of the optimiser's learning rate, one step an epoch
        # what candidates are worth: logits `[P, B, C]` and labels `[B]` -> `[P]`
        fitness: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = mean_cross_entropies,
        whole_set: bool = False,  # a step is about the whole un-augmented training set
        features: bool = False,  # steps read features, from which logits are made here
    ) -> None:
        super().__init__()
        self.space, self.optimizer, self.head, self.teacher = space, optimizer, head, teacher
        self.schedule, self.fitness, self.features = schedule, fitness, features
        self.whole_set, self.theta = whole_set, torch.nn.Buffer(optimizer.theta.clone())

    def forward(self, pixels: torch.Tensor | None = None) -> Prompt:
        """The prompt in use, P = 1."""
        return self.space(self.theta[None], pixels)


class SearchTrainer(Trainer):
    """A method gives its `build_recipe`; grants, costs, steps and evaluation follow from that.

    An epoch is one pass over Dassl's train loader, or, with `Recipe.whole_set`, one step on the
    whole un-augmented training set.
    """

    learner: Recipe
    build_recipe: Callable[[torch.Generator], Recipe]  # its random numbers from the generator

    def build_model(self) -> None:
        recipe = self.build_recipe(self.generator).to(self.device)
        self.recipe = self.learner = self.asked = recipe
        self.space, self.head, self.teacher = recipe.space, recipe.head, recipe.teacher
        self.optim, self.sched = recipe.optimizer, recipe.schedule
        self.parts = {"optimizer": self.optim, "scheduler": self.sched, "teacher": self.teacher}
        self.reads_features = getattr(self.head, "reads", "logits") == "features"
        flags = recipe.features, self.reads_features  # of steps, and of evaluation
        read = {"features" if flag else "logits" for flag in flags}
        self.name_classes(*self.space.grants, *sorted(read, reverse=True))
        self.register_model(self.model_name, recipe, self.optim, self.sched)
        if "contexts" in self.needs:  # one that does not fit is an error now, not in evaluation
            self.oracle.check(recipe().tokens)
        print(f"{type(self).__name__}: {len(recipe.theta):,} tuned numbers")

    def prices(self) -> list[Price]:
        whole, items = self.recipe.whole_set, len(self.dm.dataset.train_x)
        images = items if whole else min(self.train_loader_x.batch_size, items)
        asked = [query_cost(self.optim.population, images)]
        if self.recipe.features:
            asked = [query_cost(1, images), (self.optim.population, 0)]
        if loader := self.teacher and self.teacher.loader:
            asked += [query_cost(1, size) for size in batches_of(items, loader.batch_size or items)]
        return [total(asked)] * (1 if whole else len(self.train_loader_x))

    def prepare(self) -> None:
        if self.recipe.whole_set:
            items = self.dm.dataset.train_x
            pixels = torch.empty(len(items), 3, *self.description.image_size)
            for batch in self.loader(items):  # into their place: there may be gigabytes
                pixels[batch["index"]] = batch["img"]
            whole = {"images": self.oracle.upload(pixels), "index": torch.arange(len(items))}
            whole["label"] = torch.tensor([item.label for item in items])
            whole["img"] = pixels if self.space.changes_pictures else torch.empty(0)
            self.batches = [whole]

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step; it draws from the global random sources by a teacher's loader alone."""
        optim, teacher = self.optim, self.teacher or Teacher()
        pixels, labels = self.parse_batch_train(batch)
        index = batch["index"].to(self.device)
        images = batch.get("images") or self.oracle.upload(pixels)
        teacher.begin(self.epoch, self.steps_done, self.plan.steps)
        image = self.oracle.image_features(images) if self.recipe.features else None
        for _ in range(optim.rounds):
            with self.one_thread():
                candidates = optim.ask()
            prompt = self.space(candidates, pixels)
            if image is None:
                answer = Answer(self.oracle.query(images, prompt), labels, index)
            else:
                text = self.oracle.text_features(prompt)
                raw = self.description.logit_scale * image @ text.mT
                answer = Answer(raw, labels, index, image, text)
            with self.one_thread():
                logits = teacher.through(answer)
                losses = self.recipe.fitness(logits, labels)
                told = (logits, labels) if optim.told == "logits" else (losses,)
                optim.tell(*told)
                self.learner.theta.copy_(optim.theta)
                if optim.in_use is not None:
                    teacher.see(answer, optim.in_use)
        right = (logits.argmax(-1) == labels).float().mean().item()
        for pixels, labels in map(self.parse_batch_train, teacher.loader or ()):
            read = self.oracle.query(self.oracle.upload(pixels), self.asked(pixels))[0]
            with self.one_thread():
                teacher.read(read, labels)
        with self.one_thread():
            return {"loss": losses.mean().item(), "acc": 100 * right, **teacher.learn()}
