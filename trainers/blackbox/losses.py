"""What a candidate's logits are worth."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropies(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every candidate on every image: `[P, B, C]`, labels `[B]` -> `[P, B]`."""
    P, B, C = logits.shape
    return F.cross_entropy(logits.reshape(P * B, C), labels.repeat(P), reduction="none").view(P, B)


def mean_cross_entropies(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Their means over the images: `[P, B, C]`, labels `[B]` -> `[P]`."""
    return cross_entropies(logits, labels).mean(1)


def mean_focal_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Means of `(1 - p)^2 CE` (Lin et al., ICCV 2017): `[P, B, C]`, labels `[B]` -> `[P]`."""
    ce = cross_entropies(logits, labels)
    return ((1 - (-ce).exp()) ** 2 * ce).mean(1)


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(softmax(p) ‖ softmax(q)) over the last dimension of logits."""
    log_p, log_q = F.log_softmax(p, -1), F.log_softmax(q, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def softmax_model(
    logits: torch.Tensor, slopes: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient `[m]` and Gauss-Newton matrix `[m, m]` of the mean cross-entropy.

    Exact derivatives (the matrix is the Hessian) where the logits are linear in the parameters:
    `g_i = sum((p - Y) J_i) / B`,
    `H_ij = (1/B) sum_b [sum_c p J_i J_j - (sum_c p J_i)(sum_c p J_j)]`.

    Args:
        logits: `[B, C]`.
        slopes: J, derivatives of the logits along m directions, `[m, B, C]`.
        labels: `[B]`.
    """
    p = logits.softmax(-1)
    residual = p - F.one_hot(labels, p.shape[1])
    centred = ((slopes - (p * slopes).sum(-1, keepdim=True)) * p.sqrt()).flatten(1)
    return slopes.flatten(1) @ residual.flatten() / len(p), centred @ centred.T / len(p)
