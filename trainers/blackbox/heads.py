"""Heads: trained here, by ordinary gradients, on what came back from the model."""

import torch
import torch.nn.functional as F
from torch import nn

from .errors import BlackBoxError


def mlp(outer, inner):
    if inner < 1:
        raise BlackBoxError(f"A head of width {inner} was asked for; 1 or more is needed.")
    return nn.Sequential(nn.Linear(outer, inner), nn.ReLU(), nn.Linear(inner, outer))


class PredictionRefinement(nn.Module):
    """CraFT's head (ICML 2024, section 3.3): `refined = raw + MLP(raw)`, `C -> width -> C`, on logits `[..., C]`."""

    class_bound = True  # a class is a number of its own to it

    def __init__(self, classes, width=256):
        super().__init__()
        self.mlp = mlp(classes, width)

    def forward(self, logits):
        return logits + self.mlp(logits)


class CentredRefinement(PredictionRefinement):
    """JOLT's head: the same on logits less their mean, so that log-probabilities do as well. It begins by changing nothing."""

    def __init__(self, classes, width=256):
        super().__init__(classes, width)
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, logits, kept=None):
        """Refined logits, of the shape given; `kept` scales the hidden layer while it learns."""
        inner, activation, outer = self.mlp
        hidden = activation(inner(logits - logits.mean(-1, keepdim=True)))
        return logits + outer(hidden if kept is None else hidden * kept)


class HeadLearner:
    """Teaches a `CentredRefinement` from the logits that it was shown last, with a share of the hidden layer left out.

    Args:
        head: it, on its device.
        lr, decay: of AdamW.
        steps: of one `learn`.
        capacity: rows of logits that are remembered.
        dropout: the share.

    Raises:
        BlackBoxError: no step, no capacity, or a dropout that is no share.
    """

    def __init__(self, head, lr=1e-3, decay=0.01, steps=8, capacity=1024, dropout=0.5):
        if min(steps, capacity) < 1 or not 0 <= dropout < 1:
            raise BlackBoxError(f"A head learns in 1 step or more (HEAD_STEPS), from 1 image or more (HEAD_MEMORY), and without a share below 1 of itself (HEAD_DROPOUT); "
                                f"given are {steps}, {capacity} and {dropout}.")
        self.head, self.steps, self.capacity, self.dropout = head, steps, capacity, dropout
        self.adam = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay)
        self.logits = self.labels = None
        self.draw = int(torch.randint(2 ** 31, ()))     # seed of the next dropout

    def remember(self, logits, labels):
        """Logits `[B, C]` as the model gave them, labels `[B]`."""
        if self.logits is not None:
            logits, labels = torch.cat([self.logits, logits]), torch.cat([self.labels, labels])
        self.logits, self.labels = logits[-self.capacity:], labels[-self.capacity:]

    def loss(self):
        """Mean cross-entropy of the refined logits of all that is remembered, under a new dropout."""
        generator = torch.Generator().manual_seed(self.draw)
        self.draw += 1
        kept = torch.rand(len(self.labels), self.head.mlp[0].out_features, generator=generator) >= self.dropout
        return F.cross_entropy(self.head(self.logits, kept.to(self.logits) / (1 - self.dropout)), self.labels)

    def learn(self):
        """Some steps; returns the last loss."""
        for _ in range(self.steps):
            loss = self.loss()
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        return loss.item()

    def state_dict(self):
        return {"adam": self.adam.state_dict(), "logits": self.logits, "labels": self.labels, "draw": self.draw}

    def load_state_dict(self, state):
        device = next(self.head.parameters()).device
        self.adam.load_state_dict(state["adam"])
        self.logits, self.labels = (part if part is None else part.to(device) for part in (state["logits"], state["labels"]))
        self.draw = state["draw"]


class FeatureAdapter(nn.Module):
    """CBBT's adapter in CLIP-Adapter's form, on image features `[..., E]`: `f <- ratio MLP(f) + (1 - ratio) f`, normalised anew.

    Features pass unchanged until `active` is set; a checkpoint remembers it.
    """

    def __init__(self, dim, width, ratio=0.2):
        super().__init__()
        self.mlp, self.ratio = mlp(dim, width), ratio
        self.register_buffer("active", torch.tensor(False))

    def forward(self, features):
        if not self.active:
            return features
        return F.normalize(self.ratio * self.mlp(features) + (1 - self.ratio) * features, dim=-1)
