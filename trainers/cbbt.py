"""CBBT: collaborative black-box tuning (EMNLP Findings 2023)."""

import torch
import torch.nn.functional as F

from .blackbox.engine import BlackBoxTrainer
from .blackbox.heads import FeatureAdapter
from .blackbox.optimizers import RandomDirections
from .blackbox.prompts import build_space, initial_context
from .blackbox.registry import register_trainer
from .blackbox.run.rng import child_seed
from .blackbox.schedules import build_schedule


@register_trainer
class CBBT(BlackBoxTrainer):
    """The tokens themselves; random directions, Adam, cosine schedule; told the loss of every mini-batch. Optionally an adapter on image features.

    Access: logits for the prompt alone, `Q + 1` queries a step (257). With `ADAPTER`, features: the text features of all candidates and the image features of
    the batch come back (`Q + 2` queries), the candidates' losses are those of the adapted features, and from `ADAPTER_EPOCH` on the adapter takes
    a step of ordinary back-propagation after the prompt's. No gradient crosses the model.
    """

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.TRAINER.CBBT.ADAPTER:
            self.needs = ("logits", "features")

    def build_recipe(self, generator):
        cbbt, optim = self.cfg.TRAINER.CBBT, self.cfg.OPTIM
        start = initial_context(self.oracle, cbbt.CTX_INIT, cbbt.N_CTX, generator)
        space = build_space(cbbt.SPACE, start, self.cfg, generator)
        optimizer = RandomDirections(
            space.origin.to(self.device),
            q=cbbt.Q,
            clip=cbbt.CLIP,
            lr=optim.LR,
            weight_decay=optim.WEIGHT_DECAY,
            seed=child_seed(generator),
        )
        return space, optimizer

    def build_head(self):
        cbbt, optim, dim = self.cfg.TRAINER.CBBT, self.cfg.OPTIM, self.oracle.description.embed_dim
        if not cbbt.ADAPTER:
            return None, None
        adapter = FeatureAdapter(dim, int(dim * cbbt.ADAPTER_WIDTH), cbbt.ADAPTER_RATIO).to(
            self.device
        )
        return adapter, torch.optim.Adam(
            adapter.parameters(), lr=optim.LR, weight_decay=optim.WEIGHT_DECAY
        )

    def build_sched(self):
        return build_schedule(self.optim.adam, self.cfg.OPTIM)

    def step_cost(self):
        return self.feature_cost() if self.head else super().step_cost()

    def forward_backward(self, batch):
        if self.head is None:
            return super().forward_backward(batch)
        images, labels = self.examples(batch)
        image = self.oracle.image_features(images)
        text = self.oracle.text_features(self.space(self.optim.ask()).contexts)
        scale = self.oracle.description.logit_scale
        if self.epoch >= self.cfg.TRAINER.CBBT.ADAPTER_EPOCH:
            self.head.active.fill_(True)
        with torch.no_grad():
            logits = scale * self.head(image) @ text.transpose(1, 2)
        summary = self.tell(logits, labels)
        if self.head.active:
            self.head_optim.zero_grad()
            # text[0] is the prompt before this step: reading it anew would cost a query
            F.cross_entropy(scale * self.head(image) @ text[0].T, labels).backward()
            self.head_optim.step()
        return summary

    def model_inference(self, images):
        if self.head is None:
            return super().model_inference(images)
        image = self.oracle.image_features(self.oracle.upload(images))
        text = self.oracle.text_features(self.learner().contexts)[0]
        return self.oracle.description.logit_scale * self.head(image) @ text.T
