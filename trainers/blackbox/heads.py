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

    def __init__(self, classes, width=256):
        super().__init__()
        self.mlp = mlp(classes, width)

    def forward(self, logits):
        return logits + self.mlp(logits)


class CentredRefinement(PredictionRefinement):
    """JOLT's head: the same on logits less their mean, so that log-probabilities do as well. It begins by changing nothing.

    It remembers the last `capacity` rows of logits and labels that it was shown, and learns from them with a share `dropout` of its hidden layer left out. A checkpoint
    holds all that decides this, so that a resumed run learns the same.

    Raises:
        BlackBoxError: no width, no capacity, or a dropout that is no share.
    """

    def __init__(self, classes, width=256, capacity=1024, dropout=0.5):
        super().__init__(classes, width)
        if capacity < 1 or not 0 <= dropout < 1:
            raise BlackBoxError(f"A head remembers 1 image or more (HEAD_MEMORY) and leaves out a share below 1 (HEAD_DROPOUT); given are {capacity} and {dropout}.")
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)
        self.dropout = dropout
        self.register_buffer("logits", torch.zeros(capacity, classes))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.long))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("draw", torch.randint(2 ** 31, ()))    # seed of the next dropout

    def forward(self, logits, kept=None):
        """Refined logits, of the shape given; `kept` scales the hidden layer."""
        inner, activation, outer = self.mlp
        hidden = activation(inner(logits - logits.mean(-1, keepdim=True)))
        return logits + outer(hidden if kept is None else hidden * kept)

    def remember(self, logits, labels):
        """Logits `[B, C]` as the model gave them, labels `[B]`."""
        capacity = len(self.labels)
        self.logits = torch.cat([self.logits, logits])[-capacity:]
        self.labels = torch.cat([self.labels, labels])[-capacity:]
        self.seen = (self.seen + len(labels)).clamp(max=capacity)

    def loss(self):
        """Mean cross-entropy of the refined logits of all that is remembered, under a new dropout."""
        generator = torch.Generator().manual_seed(int(self.draw))
        self.draw = self.draw + 1
        kept = torch.rand(int(self.seen), self.mlp[0].out_features, generator=generator) >= self.dropout
        kept = kept.to(self.logits) / (1 - self.dropout)
        return F.cross_entropy(self(self.logits[-self.seen:], kept), self.labels[-self.seen:])


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
