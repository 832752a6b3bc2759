"""What a method is made of, and what its parts are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

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
        logits: `[P, B, C]`; further texts of the prompt have columns of their own.
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

    Attributes:
        loader: batches that are read for the head alone after every step, with the prompt in use;
            they are on the bill.
        text: features of the texts `[P, C, E]`, where they are known: they are not asked for then.
        device: of the answers, and of what `load_state_dict` puts beside them.
    """

    device = torch.device("cpu")
    loader: DataLoader | None = None
    text: torch.Tensor | None = None

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

    def finish(self) -> str:
        """Training ends, with the epochs or the budget; returns a line for the log, or nothing."""
        return ""

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
        head: gives logits `[B, C]`, in evaluation too; one that `reads` logits is given those that
            came back, of all candidates of the prompt side by side; one that reads features is
            given the images' `[B, E]` and the texts' `[C, E]`.
        teacher: what trains the head.
        schedule: of the optimiser's learning rate, one step an epoch.
        fitness: what candidates are worth, logits `[P, B, C]` and labels `[B]` -> `[P]`.
        whole_set: whether a step waits for the whole un-augmented training set.
        views: of the training set, in order and in batches of 128, an epoch each: as it is, then so
            many times augmented; training ends with them. None: Dassl's train loader.
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
    views: int | None = None
    features: bool = False
    template: str = "{}."

    def __post_init__(self) -> None:
        if self.whole_set and self.views is not None:
            raise ValueError("A step waits for the whole set, or for a batch of its views.")

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
        reads = self.head_reads == "features"
        logits = () if self.features and reads else ("logits",)
        return (*self.space.grants, *logits, *(("features",) if self.features or reads else ()))


def side_by_side(logits: torch.Tensor) -> torch.Tensor:
    """Answers `[P, B, C]` about P candidates as one row an image: `[B, P C]`."""
    return logits.movedim(0, 1).flatten(1)
