"""White-box prompt tuning (CoOp, IJCV 2022): what a prompt reaches with gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer
from torch import nn

from .blackbox.config import build_schedule, register_trainer
from .blackbox.oracle import Description, Prompt
from .blackbox.prompts import context_keys, initial_context
from .blackbox.run.rng import seeded_generator
from .blackbox.run.trainer import ResumableTrainer

if TYPE_CHECKING:
    from .blackbox.openclip.local import LocalOracle


class WhiteBoxPrompt(nn.Module):
    """A context `[n, D]` tuned by gradients that cross the frozen model.

    `forward(images [B, 3, H, W])` gives logits `[B, C]`.
    """

    def __init__(self, local: LocalOracle, start: torch.Tensor) -> None:
        super().__init__()
        self.ctx = nn.Parameter(start)
        self.local = local  # not a module: a checkpoint has the context alone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        named = self.local.upload(images)
        if not torch.is_grad_enabled():  # the oracle encodes a context once an evaluation
            return self.local.query(named, Prompt(contexts=self.ctx[None]))[0]
        with torch.no_grad():  # the prompt does not reach the image tower
            image = self.local.features_of(named)
        return self.local.score(image, self.local.text(self.ctx[None]))[0]


@register_trainer
class WhiteBox(ResumableTrainer):
    """ZIP's start, back-propagation, CoOp's SGD and schedule, with its YAMLs' rate and batch.

    Local models only. No query is counted: a gradient is not one. An image or view is encoded when
    it is first seen and its features kept, so `INPUT.VIEWS` above 0 spares most of the time.
    """

    keys = context_keys(8, "")
    reads = ()  # nothing of ORACLE
    scheduled = True

    def open_model(self) -> None:
        # open_clip is loaded where a model is, not with the trainers
        from .blackbox.openclip.local import LocalOracle
        from .blackbox.openclip.models import load_model

        self.loaded = load_model(self.cfg.MODEL.BACKBONE.NAME, "fp32", self.device)
        self.local = LocalOracle(self.loaded, client="WhiteBox")

    @property
    def description(self) -> Description:
        return self.loaded.description

    def embed(self, words: str) -> torch.Tensor:
        return self.local.embed(words)

    def build_model(self) -> None:
        print("White-box: gradients cross the model, nothing here is a black-box result")
        self.local.set_classes(self.dm.dataset.classnames)
        generator = seeded_generator(self.cfg.SEED)
        words = self.cfg.TRAINER.WHITEBOX
        start = initial_context(self, words.CTX_INIT, words.N_CTX, generator)
        self.local.check(len(start))
        self.model = WhiteBoxPrompt(self.local, start).to(self.device)
        self.learner = self.model
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_schedule(self.optim, self.cfg.OPTIM)
        self.register_model(self.model_name, self.model, self.optim, self.sched)

    def before_train(self) -> None:
        super().before_train()
        self.open_bar(self.steps_total())

    def forward_backward(self, batch: dict) -> dict[str, float]:
        images, labels = self.parse_batch_train(batch)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        if loss.isfinite():  # if not, the loop ends the run in a sentence
            self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}
