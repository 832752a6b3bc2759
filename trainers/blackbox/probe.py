"""Methods that read every view of the training images once, and fit a head to the answers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .config import TEMPLATE_KEYS, Key, whole
from .errors import BlackBoxError
from .heads.selection import Gathered, folds_of
from .oracle import QUERY_IMAGES, Prompt
from .oracle.bill import Price, batches_of, price
from .trainer import Trainer

SMALL = 2**20  # images x classes below which a fit is small work


def probe_keys(folds: bool = False) -> dict[str, Key]:
    """Keys of every probe; with `folds`, that of methods which choose by held-out images."""
    views = Key(4, whole(0, 1000), "augmented views of a training image, beside itself")
    parts = Key(5, whole(2, 100), "parts of the training images that are held out in turn")
    return {**TEMPLATE_KEYS, "VIEWS": views, **({"FOLDS": parts} if folds else {})}


class Answers:
    """What came back so far: batches of rows, labels and numbers; the class texts' features."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.batches = device, list[list[torch.Tensor]]()
        self.text = torch.empty(0)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "text": self.text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = [[part.to(self.device) for part in parts] for parts in state["batches"]]
        self.text = state["text"].to(self.device)


class ProbeTrainer(Trainer):
    """A method gives `build_head` and `fit`.

    An epoch is a view of the training set, in order and in batches of 128: the images as they are,
    then `VIEWS` times augmented. Training ends with the views, or with the budget; then the head,
    zero-shot until then, is fitted. On features it costs `ceil(N / 128) (1 + VIEWS) + 1` queries.
    """

    reads_features = True
    learns_by_steps = False
    build_head: Callable[[torch.Generator], torch.nn.Module | None]  # its random numbers from that
    fit: Callable[[Gathered], str]  # fits the head anew, in place; returns a line for the log

    def prompt(self, tested: bool = False) -> Prompt:
        """What is asked in training, or in evaluation."""
        return Prompt()

    def asked(self, pixels: torch.Tensor) -> Prompt:
        return self.prompt(tested=True)

    @property
    def folds(self) -> torch.Tensor:
        """Which part a training image is held out with `[N]`."""
        return folds_of(self.dm.dataset.train_x, self.settings.FOLDS)

    def build_model(self) -> None:
        self.name_classes("features" if self.reads_features else "logits")
        self.head = self.build_head(self.generator)
        self.max_epoch: int = min(self.max_epoch, 1 + self.settings.get("VIEWS", 0))
        if self.augmentation.views and self.max_epoch:  # the same view would be asked about again
            print(f"Note: {type(self).__name__} has views of its own and reads no INPUT.VIEWS")
            self.augmentation.views = 0
        self.answers = Answers(self.device)
        self.parts = {"optimizer": None, "scheduler": None, "answers": self.answers}
        self.learner = torch.nn.ModuleDict({} if self.head is None else {"head": self.head})
        self.register_model(self.model_name, self.learner.to(self.device))

    def price(self, images: int, tested: bool = True) -> Price:
        prompt = None if self.reads_features else self.prompt(tested)
        return price(prompt, self.num_classes, images)

    def prices(self) -> list[Price]:
        sizes = batches_of(len(self.dm.dataset.train_x), QUERY_IMAGES)
        return [self.price(size, tested=False) for size in sizes]

    def prepare(self) -> None:
        images = self.plan.until(self.plan.steps)[1]  # of classes in turn
        if (others := self.num_classes - images) > 0:
            print(f"Note: the budget pays for {images:,} images; {others:,} classes have none")

    def before_epoch(self) -> None:
        items, augmentation = self.dm.dataset.train_x, self.augmentation if self.epoch else None
        self.batches = self.loader(items, augmentation, QUERY_IMAGES, in_turns=True)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Ask about a batch; it draws nothing from the global random sources."""
        pixels, labels = self.parse_batch_train(batch)
        images, answers = self.oracle.upload(pixels), self.answers
        if self.reads_features:
            rows = self.oracle.image_features(images)
            if not len(answers.text):
                answers.text = self.oracle.text_features(self.prompt())[0]
            logits = self.description.logit_scale * rows @ answers.text.mT
        else:
            rows = self.oracle.query(images, self.prompt())[0]
            logits = rows[:, : self.num_classes]
        answers.batches.append([rows, labels, batch["index"].to(self.device)])
        right = (logits.argmax(-1) == labels).float().mean().item()
        return {"loss": F.cross_entropy(logits, labels).item(), "acc": 100 * right}

    def finish(self) -> None:
        if not self.answers.batches:
            return
        tqdm.write(f"{type(self).__name__}: fitting the head")  # which may take long
        rows, labels, index = map(torch.cat, zip(*self.answers.batches, strict=True))
        gathered = Gathered(rows, labels, index, self.answers.text)
        # a view's images were asked about in another order than theirs, for the budget's sake
        images = len(self.dm.dataset.train_x)
        gathered = gathered.part((gathered.views * images + index).argsort())
        with self.one_thread(images * self.num_classes < SMALL):
            line = self.fit(gathered)
        tqdm.write(f"{type(self).__name__}: {line}")
        if self.cfg.ORACLE.VAL_EVERY:
            self.look_at_val()


def descend(
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss: Callable[[int], torch.Tensor],
    lowest: float = 0.0,
) -> None:
    """Steps on `loss(number of the step)`, the learning rate on a cosine to `lowest`."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps), lowest)
    for number in range(steps):
        with torch.enable_grad():
            optimizer.zero_grad()
            loss(number).backward()
        optimizer.step()
        schedule.step()
    fitted = [part for group in optimizer.param_groups for part in group["params"]]
    if not all(part.isfinite().all() for part in fitted):
        raise BlackBoxError("The fitted head is not finite. Lower its learning rate (LR).")
