"""What candidates are worth: logits `[P, B, C]` and labels `[B]` to losses `[P]`."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every candidate on every image `[P, B]`."""
    P, B, C = logits.shape
    return F.cross_entropy(logits.reshape(P * B, C), labels.repeat(P), reduction="none").view(P, B)


def mean_cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropies over the images `[P]`."""
    return cross_entropies(logits, labels).mean(1)


def mean_focal_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Means of `(1 - p)^2 CE` over the images `[P]` (Lin et al., ICCV 2017)."""
    ce = cross_entropies(logits, labels)
    return ((1 - (-ce).exp()) ** 2 * ce).mean(1)


def softmax_model(logits: Tensor, slopes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient `[m]` and Gauss-Newton matrix `[m, m]` of the mean cross-entropy of logits `[B, C]`.

    With J `[m, B, C]`, the slopes of the logits along m directions: `g_i = sum((p - Y) J_i) / B`
    and `H_ij = (1/B) sum_b [sum_c p J_i J_j - (sum_c p J_i)(sum_c p J_j)]`, which is the Hessian
    where the logits are linear in the parameters.
    """
    p = logits.softmax(-1)
    residual = p - F.one_hot(labels, p.shape[1])
    centred = ((slopes - (p * slopes).sum(-1, keepdim=True)) * p.sqrt()).flatten(1)
    return slopes.flatten(1) @ residual.flatten() / len(p), centred @ centred.T / len(p)
