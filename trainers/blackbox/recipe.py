"""What a method is made of, and what its parts are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .losses import mean_cross_entropies
from .optimizers.contract import Optimizer
from .oracle import Images
from .prompts import Space


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


@dataclass(frozen=True)
class Progress:
    """Where a run stands: epochs begun before this one, steps made, steps that are paid for."""

    epoch: int
    steps_done: int
    steps_total: int


class Teacher:
    """Trains a head by ordinary gradients, on what came back from the model.

    `loader` gives batches that are read for the head alone after every step, with the prompt in
    use; they are on the bill.
    """

    loader: Iterable[dict] = ()

    def begin(self, progress: Progress) -> None:
        """A step begins."""

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
    """The parts of a method; the engine does the rest.

    Attributes:
        space: vectors `[P, d]` to a `Prompt`; its kind decides what must be let in.
        optimizer: asks for candidates and is told about them; its `solution` is in use.
        head: of an answer, in evaluation too; it `reads` logits or features.
        teacher: what trains the head.
        schedule: of the optimiser's learning rate, one step an epoch.
        fitness: what candidates are worth, logits `[P, B, C]` and labels `[B]` -> `[P]`.
        whole_set: whether a step waits for the whole un-augmented training set.
        features: whether steps read features, from which logits are made here.
        template: of a class's text, behind the context.
    """

    space: Space
    optimizer: Optimizer
    head: nn.Module | None = None
    teacher: Teacher | None = None
    schedule: Any = None
    fitness: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(
        default=mean_cross_entropies
    )
    whole_set: bool = False
    features: bool = False
    template: str = "{}."

    @property
    def trains(self) -> bool:
        """Whether there is anything to search or to learn."""
        return self.optimizer.searches or self.teacher is not None

    @property
    def head_reads(self) -> str:
        """What evaluation reads: logits or features."""
        return getattr(self.head, "reads", "logits")

    @property
    def needs(self) -> tuple[str, ...]:
        """Grants that the method cannot do without."""
        features = self.features or self.head_reads == "features"
        return (*self.space.grants, "logits", *(("features",) if features else ()))
