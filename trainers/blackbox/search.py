"""Methods that search a prompt: ask an optimiser, query the model, tell the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from .data import ordered_loader
from .engine import BlackBoxTrainer
from .losses import mean_cross_entropies
from .optimizers.contract import Optimizer
from .oracle import Images, Prompt
from .oracle.bill import query_cost
from .plan import Plan, Price, batches_of, total
from .prompts import Space
from .run.rng import seeded_generator


@dataclass(frozen=True)
class Batch:
    """What a step is made on.

    Attributes:
        images: the uploaded batch.
        labels: `[B]`.
        index: numbers of the training images `[B]`.
        pixels: normalised `[B, 3, H, W]`, for spaces that change pictures; else None.
    """

    images: Images
    labels: torch.Tensor
    index: torch.Tensor
    pixels: torch.Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """What came back about P candidates on B images.

    Attributes:
        logits: `[P, B, C]`.
        image: normalised features `[B, E]`, where the recipe reads features.
        text: normalised features `[P, C, E]`, likewise.
    """

    logits: torch.Tensor
    image: torch.Tensor | None = None
    text: torch.Tensor | None = None


class Teacher:
    """Trains a head by ordinary gradients, on what came back from the model.

    Attributes:
        loader: batches that are read for the head alone after every step, with the prompt in use;
            they are on the bill.
    """

    loader: DataLoader | None = None

    def begin(self, epoch: int, steps_done: int, steps_total: int) -> None:
        """A step begins: in this epoch, after so many of the steps that are paid for."""

    def through(self, answer: Answer, batch: Batch) -> torch.Tensor:
        """Logits `[P, B, C]` that the prompt is tuned on."""
        return answer.logits

    def see(self, answer: Answer, number: int, batch: Batch) -> None:
        """Candidate `number` of an answer is the prompt in use."""

    def read(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Learn from a batch of `loader`: logits `[B, C]`, labels `[B]`."""

    def learn(self) -> dict[str, float]:
        """The step ends; returns what the log says of the head."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class Recipe:
    """The parts of a method; `SearchTrainer` does the rest.

    Attributes:
        space: vectors `[P, d]` to a `Prompt`; its kind decides what must be let in.
        optimizer: asks for candidates and is told about them; its `solution` is in use.
        head: gives logits `[B, C]`, in evaluation too; one that `reads` logits is given those that
            came back; one that reads features is given the images' `[B, E]` and the texts'
            `[C, E]`.
        teacher: what trains the head.
        schedule: of the optimiser's learning rate, one step an epoch.
        fitness: what candidates are worth, logits `[P, B, C]` and labels `[B]` -> `[P]`.
        whole_set: whether a step waits for the whole un-augmented training set.
        features: whether steps read features, from which logits are made here.
        template: of a class's text, behind the context where there is one.
    """

    space: Space
    optimizer: Optimizer
    head: nn.Module | None = None
    teacher: Teacher | None = None
    schedule: Any = None
    fitness: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = mean_cross_entropies
    whole_set: bool = False
    features: bool = False
    template: str = "{}."

    @property
    def reads_features(self) -> bool:
        """Whether evaluation reads the images' features, not logits."""
        return getattr(self.head, "reads", "logits") == "features"


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


class SearchTrainer(BlackBoxTrainer):
    """A method gives its `build_recipe`; grants, costs, steps and evaluation follow from that.

    An epoch is one pass over Dassl's train loader, or, with `Recipe.whole_set`, one step on the
    whole un-augmented training set.
    """

    text: tuple[torch.Tensor, torch.Tensor] | None = None  # a prompt's vector and its texts
    learner: PromptLearner

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        """The parts of the method, their random numbers drawn from `generator`."""
        raise NotImplementedError

    # ------------------------------------------------------------------ building

    def build_model(self) -> None:
        self.recipe = recipe = self.build_recipe(seeded_generator(self.cfg.SEED))
        self.template, self.head = recipe.template, recipe.head
        self.name_classes()
        self.space, self.optim = recipe.space.to(self.device), recipe.optimizer
        self.teacher, self.sched = recipe.teacher, recipe.schedule
        theta = self.optim.solution.to(self.device)
        self.learner = PromptLearner(self.space, theta, self.head).to(self.device)
        self.register_model(self.model_name, self.learner, self.optim, self.sched)
        if "contexts" in self.space.grants:
            # one that does not fit is an error now, not in evaluation
            self.oracle.check(self.learner().tokens)
        print(f"{self.cfg.TRAINER.NAME}: {len(theta):,} tuned numbers")

    @property
    def needs(self) -> tuple[str, ...]:
        recipe = self.recipe
        logits = not (recipe.features and recipe.reads_features)
        features = recipe.features or recipe.reads_features
        return (*recipe.space.grants, *["logits"] * logits, *["features"] * features)

    @property
    def changes_pictures(self) -> bool:  # type: ignore[override]
        return self.space.changes_pictures

    def parts(self) -> dict[str, Any]:
        return {**super().parts(), "teacher": self.teacher}

    # ------------------------------------------------------------------ costs

    def loaded(self) -> list[int]:
        """Images of each batch of an epoch of Dassl's train loader."""
        size = min(self.train_loader_x.batch_size, len(self.dm.dataset.train_x))
        return [size] * len(self.train_loader_x)

    def steps_of(self, candidates: int) -> int:
        """Steps that the run has if each is about so many candidates on a batch of the loader."""
        prices = [query_cost(candidates, size) for size in self.loaded()]
        return Plan(prices, self.max_epoch).steps(self.oracle.limits)

    @cached_property
    def step_images(self) -> Sequence[int]:
        return [len(self.dm.dataset.train_x)] if self.recipe.whole_set else self.loaded()

    def price(self, images: int) -> Price:
        candidates, prices = self.optim.population, []
        if self.recipe.features:
            prices = [query_cost(1, images), (candidates, 0)]
        else:
            prices = [query_cost(candidates, images)]
        if self.teacher and self.teacher.loader:
            items = len(self.dm.dataset.train_x)
            sizes = batches_of(items, self.teacher.loader.batch_size or items)
            prices += [query_cost(1, size) for size in sizes]
        return total(prices)

    def test_price(self, images: int) -> Price:
        return query_cost(1, images)

    def texts_price(self, passes: int) -> Price:
        # those of a prompt that is still in use are not asked about again
        return (passes if self.recipe.reads_features else 0), 0

    # ------------------------------------------------------------------ training

    def prepare(self) -> None:
        if not self.steps_done:  # else the checkpoint has what was learnt
            self.space.fit(self.shown())
        if self.recipe.whole_set:
            items = self.dm.dataset.train_x
            labels = torch.tensor([item.label for item in items], device=self.device)
            # one by one into their place: there may be gigabytes
            pixels = torch.empty(len(labels), 3, *self.description.image_size)
            for batch in ordered_loader(self.cfg, items, self.pictures):
                pixels[batch["index"]] = batch["img"]
            numbers = torch.arange(len(labels), device=self.device)
            self.batches = [self.uploaded(pixels, labels, numbers)]

    def shown(self) -> Iterator[torch.Tensor]:
        """The un-augmented training pictures, batch by batch."""
        for batch in ordered_loader(self.cfg, self.dm.dataset.train_x, self.pictures):
            yield batch["img"].to(self.device)

    def uploaded(self, pixels: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> Batch:
        """A step's batch; an upload is no query."""
        kept = pixels if self.space.changes_pictures else None
        return Batch(self.oracle.upload(pixels), labels, index, kept)

    def forward_backward(self, batch: Any) -> dict[str, float]:
        """One step; it draws nothing from the global random sources, save with `whole_set`.

        (A resumed epoch replays its loader alone.) Returns the means over the last round's
        candidates of loss and accuracy, and what the head's teacher tells.
        """
        if not isinstance(batch, Batch):
            pixels, labels = self.parse_batch_train(batch)
            batch = self.uploaded(pixels, labels, batch["index"].to(self.device))
        teacher = self.teacher or Teacher()
        teacher.begin(self.epoch, self.steps_done, self.steps_total())
        image = self.oracle.image_features(batch.images) if self.recipe.features else None
        for _ in range(self.optim.rounds):
            with self.one_thread():
                candidates = self.optim.ask()
            answer = self.ask(batch.images, self.space(candidates, batch.pixels), image)
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

    # ------------------------------------------------------------------ evaluation

    def texts(self, prompt: Prompt) -> torch.Tensor:
        """Features `[C, E]` of the texts of the prompt in use; asked for once while it is."""
        theta = self.learner.theta
        if self.text is None or not torch.equal(self.text[0], theta):
            self.text = theta.clone(), self.oracle.text_features(prompt)[0]
        return self.text[1]

    def model_inference(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]`."""
        images = self.oracle.upload(pixels)
        prompt = self.learner(pixels if self.space.changes_pictures else None)
        if self.head is not None and self.recipe.reads_features:
            return self.head(self.oracle.image_features(images), self.texts(prompt))
        logits = self.oracle.query(images, prompt)[0]
        return logits if self.head is None else self.head(logits)
