"""SONAR's head: whitened scores, a convex fit, and all of it as one affine map."""

from __future__ import annotations

import torch

from ..collector import Gathered
from .affine import AffineScores, centred
from .convex import fit, held_out_path
from .whitening import Whitening, resolution

POWERS: tuple[float, ...] = (0.0, 0.5, 0.9)
WORK = 2**25  # rows x components x classes above which less is tried: one power, one fold


@torch.no_grad()
def fit_scores(head: AffineScores, gathered: Gathered, folds: torch.Tensor) -> str:
    """Fit a head to scores `[N, A]`; returns a line about what was chosen.

    The power of the whitening and the penalty are those with the least cross-entropy on images that
    were held out.

    Args:
        folds: of the training images.
    """
    scores, labels, fold = gathered.rows, gathered.labels, folds[gathered.index]
    rows = centred(scores.double(), head.parts)
    whitening = Whitening(rows, resolution(scores))
    held_out, powers = fold == fold.unique()[:, None], POWERS
    if len(scores) * len(whitening.values) * head.parts[0] > WORK:
        held_out, powers = held_out[:1], (0.5,)
    prior = scores[:, : head.parts[0]].float()
    inputs = {power: whitening(rows, power).float() for power in powers}
    losses = {
        (power, penalty): loss
        for power, x in inputs.items()
        for penalty, loss in held_out_path(prior, x, labels, held_out).items()
    }
    power, penalty = min(losses, key=losses.__getitem__)
    found = fit(prior, inputs[power], labels, penalty)
    matrix = whitening.matrix(power) @ found.weight[0].double()
    head.scale.copy_(found.scale.squeeze())
    head.matrix.copy_(matrix)
    head.bias.copy_(found.bias[0, 0] - whitening.mean @ matrix)
    return (
        f"head on {scores.shape[1]:,} scores, {len(whitening.values)} components, whitened by "
        f"S^-{power:g}; penalty {penalty:.1e}, chosen on held-out images"
    )
