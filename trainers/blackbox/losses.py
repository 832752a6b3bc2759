"""What a candidate's logits are worth."""

import torch.nn.functional as F


def cross_entropies(logits, labels):
    """Cross-entropy of every candidate on every image: logits `[P, B, C]`, labels `[B]` -> `[P, B]`."""
    P, B, C = logits.shape
    return F.cross_entropy(logits.reshape(P * B, C), labels.repeat(P), reduction="none").view(P, B)
