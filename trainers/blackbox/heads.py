"""Heads: trained here, by ordinary gradients, on what came back from the model."""

import torch
import torch.nn.functional as F
from torch import nn

from .run.errors import BlackBoxError


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
