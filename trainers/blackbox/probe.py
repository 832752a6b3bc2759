"""Methods that read every view of the training images once, and fit a head to the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .answers import Answers, Gathered
from .data import ordered_loader
from .engine import BlackBoxTrainer
from .errors import BlackBoxError
from .heads.selection import folds_of
from .keys import Key, whole
from .oracle import QUERY_IMAGES, Prompt
from .oracle.bill import price as price_of
from .plan import Price, batches_of
from .registry import node_of
from .run.rng import seeded_generator
from .templates import template_for, template_keys

SMALL = 2**20  # images x classes below which a fit is small work


def probe_keys(folds: bool = False) -> dict[str, Key]:
    """Keys of every probe; with `folds`, that of methods which choose by held-out images."""
    keys = {
        **template_keys(),
        "VIEWS": Key(4, whole(0, 1000), "augmented views of a training image, beside itself"),
    }
    about = "parts of the training images that are held out in turn"
    return keys | ({"FOLDS": Key(5, whole(2, 100), about)} if folds else {})


class ProbeTrainer(BlackBoxTrainer):
    """A method gives `build_head` and `fit`.

    An epoch is a view of the training set, in order and in batches of 128: the images as they are,
    then `VIEWS` times augmented. Training ends with the views, or with the budget; then the head is
    fitted. On features it costs `ceil(N / 128) (1 + VIEWS) + 1` queries.

    Attributes:
        head: zero-shot until it is fitted: `forward(scores [B, A]) -> logits [B, C]`, or of image
            features `[B, E]` and class texts `[C, E]`.
        reads_features: whether it reads features, not scores.
    """

    reads_features = True
    looks_between_steps = False
    test_text: torch.Tensor | None = None  # features `[C, E]`, asked for once in evaluation

    def build_head(self, generator: torch.Generator) -> nn.Module | None:
        """The head, its random numbers drawn from `generator`."""
        raise NotImplementedError

    def fit(self, gathered: Gathered) -> str:
        """Fit the head, in place; returns a line for the log.

        It begins anew every time, since a run that goes on with a larger budget fits again.
        """
        raise NotImplementedError

    def prompt(self, tested: bool = False) -> Prompt:
        """What is asked in training, or in evaluation."""
        return Prompt()

    # ------------------------------------------------------------------ building

    @property
    def settings(self) -> Any:
        """The method's node of the configuration."""
        return self.cfg.TRAINER[node_of(type(self))]

    def build_model(self) -> None:
        self.template = template_for(self.cfg)
        self.name_classes()
        self.head = self.build_head(seeded_generator(self.cfg.SEED))
        self.max_epoch = min(self.max_epoch, 1 + self.settings.get("VIEWS", 0))
        if self.augmentation.views and self.trains:  # the same view would be asked about again
            print(f"Note: {self.cfg.TRAINER.NAME} has views of its own and reads no INPUT.VIEWS")
            self.augmentation.views = 0
        self.answers = Answers(self.device)
        self.learner = nn.ModuleDict({} if self.head is None else {"head": self.head})
        self.learner.to(self.device)
        self.register_model(self.model_name, self.learner)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",) if self.reads_features else ("logits",)

    @property
    def folds(self) -> torch.Tensor:
        """Which part a training image is held out with `[N]`."""
        return folds_of(self.dm.dataset.train_x, self.settings.FOLDS)

    def parts(self) -> dict[str, Any]:
        return {**super().parts(), "answers": self.answers}

    # ------------------------------------------------------------------ costs

    @cached_property
    def step_images(self) -> Sequence[int]:
        return batches_of(len(self.dm.dataset.train_x), QUERY_IMAGES)

    def price(self, images: int, tested: bool = False) -> Price:
        prompt = None if self.reads_features else self.prompt(tested)
        return price_of(prompt, self.num_classes, images)

    def first_price(self) -> Price:
        return int(self.reads_features), 0  # the class texts

    def test_price(self, images: int) -> Price:
        return self.price(images, tested=True)

    def texts_price(self, passes: int) -> Price:
        return int(self.reads_features and passes > 0), 0

    # ------------------------------------------------------------------ training

    def prepare(self) -> None:
        images = self.images(self.steps_total())
        if images < self.num_classes:
            print(
                f"Note: the budget pays for {images:,} images, one of each of so many classes; of "
                f"the other {self.num_classes - images:,} nothing is learnt"
            )

    def before_epoch(self) -> None:
        super().before_epoch()
        self.batches = ordered_loader(
            self.cfg,
            self.dm.dataset.train_x,
            self.pictures,
            self.augmentation if self.epoch else None,
            QUERY_IMAGES,
            in_turns=True,
        )

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Ask about a batch; it draws nothing from the global random sources."""
        pixels, labels = self.parse_batch_train(batch)
        images, answers = self.oracle.upload(pixels), self.answers
        if self.reads_features:
            rows = self.oracle.image_features(images)
            if answers.text is None:
                answers.text = self.oracle.text_features(self.prompt())[0]
            logits = self.description.logit_scale * rows @ answers.text.mT
        else:
            rows = self.oracle.query(images, self.prompt())[0]
            logits = rows[:, : self.num_classes]
        answers.batches.append((rows, labels, batch["index"].to(self.device)))
        right = (logits.argmax(-1) == labels).float().mean().item()
        return {"loss": F.cross_entropy(logits, labels).item(), "acc": 100 * right}

    def finish(self) -> None:
        if self.answers.batches:
            tqdm.write(f"{self.cfg.TRAINER.NAME}: fitting the head")  # which may take long
            small = len(self.dm.dataset.train_x) * self.num_classes < SMALL
            with self.one_thread() if small else nullcontext():
                line = self.fit(self.answers.gathered())
            tqdm.write(f"{self.cfg.TRAINER.NAME}: {line}")
        if self.cfg.ORACLE.VAL_EVERY:
            self.look_at_val()

    # ------------------------------------------------------------------ evaluation

    def model_inference(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]`."""
        images = self.oracle.upload(pixels)
        if self.reads_features:
            if self.test_text is None:
                self.test_text = self.oracle.text_features(self.prompt(tested=True))[0]
            assert self.head is not None  # features are read by a head
            return self.head(self.oracle.image_features(images), self.test_text)
        scores = self.oracle.query(images, self.prompt(tested=True))[0]
        return scores if self.head is None else self.head(scores)


def descend(
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss: Callable[[int], torch.Tensor],
    lowest: float = 0.0,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Steps on `loss(number of the step)`, with a learning rate on a cosine to `lowest`.

    `after` is called behind each of them.

    Raises:
        BlackBoxError: what was fitted is not finite.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps), lowest)
    for number in range(steps):
        with torch.enable_grad():
            optimizer.zero_grad()
            loss(number).backward()
        optimizer.step()
        schedule.step()
        after(number)
    fitted = [part for group in optimizer.param_groups for part in group["params"]]
    if not all(part.isfinite().all() for part in fitted):
        raise BlackBoxError(
            f"The head's {steps:,} steps ended in numbers that are not finite. Lower its learning "
            f"rate (LR of the trainer)."
        )
