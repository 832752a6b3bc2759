"""SONAR's head: whitened scores, a convex fit, and all of it as one affine map."""

from __future__ import annotations

from math import inf

import torch

from ..collector import Gathered
from .affine import AffineScores, centred
from .convex import WORSE, fit, held_out_path
from .selection import held_out_rows
from .whitening import Whitening, resolution

POWERS: tuple[float, ...] = (0.0, 0.5, 0.9)
WORK = 2**25  # rows x components x classes above which less is tried: one power, one fold


@torch.no_grad()
def fit_scores(head: AffineScores, gathered: Gathered, folds: torch.Tensor) -> str:
    """Fit a head to scores `[N, A]`; returns a line about what was chosen.

    The power of the whitening and the penalty are those with the least cross-entropy on what was
    held out (`held_out_rows`).

    Args:
        folds: of the training images.
    """
    scores, labels, sets = gathered.rows, gathered.labels, held_out_rows(gathered, folds)
    rows = centred(scores.double(), head.parts)
    whitening = Whitening(rows, resolution(scores))
    if not len(whitening.values) or any(problems.all(1).any() for problems in sets):
        return "nothing is learnt, the head is zero-shot: the images are too few, or score alike"
    powers = POWERS
    if len(scores) * len(whitening.values) * head.parts[0] > WORK:
        sets, powers = [problems[:1] for problems in sets], (0.5,)
    held_out = torch.cat(sets)
    prior = scores[:, : head.parts[0]].float()
    inputs = {power: whitening(rows, power).float() for power in powers}
    # what the two sets say falls and rises at other penalties: there the path is walked to its end
    worse = WORSE if len(sets) == 1 else inf
    losses = {
        (power, penalty): loss
        for power, x in inputs.items()
        for penalty, loss in held_out_path(prior, x, labels, held_out, worse).items()
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
        + (" and views" if len(sets) > 1 else "")
    )
