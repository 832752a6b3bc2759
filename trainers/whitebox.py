"""White-box prompt tuning (CoOp, IJCV 2022): the ceiling that a black-box method gives up. It is no black-box run."""

import torch
import torch.nn.functional as F
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer
from dassl.utils import set_random_seed
from torch import nn

from .blackbox.run import checkpoints
from .blackbox.data.loaders import Pictured, build_data, match_input
from .blackbox.run.errors import BlackBoxError
from .blackbox.run.files import load_state
from .blackbox.oracle.models import load_model
from .blackbox.oracle.text import TextPath
from .blackbox.prompts import initial_context
from .blackbox.registry import register_trainer
from .blackbox.run.rng import seeded_generator
from .blackbox.schedules import build_schedule


class WhiteBoxPrompt(nn.Module):
    """A context `[n, D]` tuned by gradients that cross the frozen model. `forward(images [B, 3, H, W])` gives logits `[B, C]`."""

    def __init__(self, loaded, text, start):
        super().__init__()
        self.ctx = nn.Parameter(start)
        # held without being registered: a checkpoint has the context alone
        self.frozen = (loaded.model, text)

    def forward(self, images):
        model, text = self.frozen
        with torch.no_grad():  # the prompt does not reach the image tower
            image = F.normalize(model.encode_image(images).float(), dim=-1)
        return model.logit_scale.exp() * image @ text(self.ctx[None])[0].T


@register_trainer
class WhiteBox(Pictured, TrainerX):
    """The same start and loaders as ZIP's, back-propagation through the model, CoOp's SGD and schedule. Local models only.

    No query is counted: a gradient is not one.
    """

    def build_data_loader(self):
        cfg = self.cfg
        self.loaded = load_model(cfg.MODEL.BACKBONE.NAME, "fp32", self.device)
        self.text = TextPath(self.loaded)
        self.cfg = match_input(cfg, self.loaded.description)
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)
        build_data(self)
        self.text.set_classes(self.dm.dataset.classnames)

    def build_model(self):
        print("White-box: gradients cross the model, nothing here is a black-box result")
        generator = seeded_generator(self.cfg.SEED)
        words = self.cfg.TRAINER.WHITEBOX
        start = initial_context(self, words.CTX_INIT, words.N_CTX, generator)
        self.text.check(len(start))
        self.model = WhiteBoxPrompt(self.loaded, self.text, start).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_schedule(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model, self.optim, self.sched)

    @property
    def description(self):
        return self.loaded.description

    @torch.no_grad()
    def embed(self, words):
        return self.text.embed(words)

    def forward_backward(self, batch):
        images, labels = self.parse_batch_train(batch)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        """The model of `epoch`, or the best on `val` with `best_val`, or the last."""
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        path = checkpoints.choose(
            f"{directory}/prompt_learner", epoch, best=self.cfg.TEST.FINAL_MODEL == "best_val"
        )
        state = load_state(path)
        if "ctx" not in state.get("state_dict", {}):
            raise BlackBoxError(
                f"{path} is not a checkpoint of WhiteBox. Give the folder of a WhiteBox run."
            )
        if state["state_dict"]["ctx"].shape != self.model.ctx.shape:
            raise BlackBoxError(
                f"{path} has a context of {tuple(state['state_dict']['ctx'].shape)}, this run one of {tuple(self.model.ctx.shape)}. Give the "
                f"same N_CTX or CTX_INIT, and the same backbone, as in training."
            )
        self.model.load_state_dict(state["state_dict"])
        print(f"Load {path} (epoch {state['epoch']})")
