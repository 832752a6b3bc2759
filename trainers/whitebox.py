"""White-box prompt tuning (CoOp, IJCV 2022): what a prompt reaches with gradients."""

import torch
from dassl.optim import build_optimizer

from . import blackbox as bb


@bb.register_trainer
class WhiteBox(bb.trainer.Trainer):
    """ZIP's start, back-propagation, CoOp's SGD and schedule, with its YAMLs' rate and batch.

    Local models only. No query is counted: a gradient is not one. An image or view is encoded when
    it is first seen and its features kept, so `INPUT.VIEWS` above 0 spares most of the time.
    """

    keys = bb.prompts.context_keys(8, "")
    reads = ("OPTIM",)
    counted, unit, needs = False, "steps", ("weights",)

    def open_model(self) -> bb.oracle.Oracle:
        # open_clip is loaded where a model is, not with the trainers
        from .blackbox.openclip.local import LocalOracle
        from .blackbox.openclip.models import load_model

        self.loaded = load_model(self.cfg.MODEL.BACKBONE.NAME, "fp32", self.device)
        self.local = LocalOracle(self.loaded, client="WhiteBox")
        return self.local

    def prices(self) -> list[bb.oracle.bill.Price]:
        return [(0, 0)] * len(self.train_loader_x)

    def build_model(self) -> None:
        print("White-box: gradients cross the model, nothing here is a black-box result")
        self.local.set_classes(self.dm.dataset.classnames)
        node = self.cfg.TRAINER.WHITEBOX
        start = bb.prompts.initial_context(self.local, node.CTX_INIT, node.N_CTX, self.generator)
        self.local.check(len(start))
        self.learner = self.model = torch.nn.ParameterDict({"ctx": start}).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = bb.config.build_schedule(self.optim, self.cfg.OPTIM)
        self.parts = {"optimizer": self.optim, "scheduler": self.sched}
        self.register_model(self.model_name, self.model, self.optim, self.sched)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        images, labels = self.parse_batch_train(batch)
        logits = self.model_inference(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        if loss.isfinite():  # if not, the loop ends the run in a sentence
            self.model_backward_and_update(loss)
        right = (logits.argmax(-1) == labels).float().mean().item()
        return {"loss": loss.item(), "acc": 100 * right}

    def model_inference(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]`, by gradients' way where they are on."""
        named, contexts = self.local.upload(images), self.model["ctx"][None]
        if not torch.is_grad_enabled():  # the oracle encodes a context once an evaluation
            return self.local.query(named, bb.Prompt(contexts))[0]
        with torch.no_grad():  # the prompt does not reach the image tower
            image = self.local.features_of(named)
        return self.local.score(image, self.local.text(contexts))[0]
