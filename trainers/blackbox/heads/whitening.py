"""Principal components of scores, partly whitened and cut at the noise."""

from __future__ import annotations

import numpy as np
import torch

CUT = 1e-3  # of the largest singular value: what is smaller is numerical noise in single precision


def resolution(scores: torch.Tensor) -> float:
    """The step that scores `[N, A]` are rounded to on average, 0 where none is found.

    Rounded numbers repeat: there are far fewer different ones than numbers. Half precision and
    answers of a few decimals are found so.
    """
    values = scores.flatten()
    found = values.unique()
    if len(found) < 2 or 4 * len(found) > len(values):
        return 0.0
    # of numpy: that of older versions of torch takes no more than 2^24 numbers
    low, high = np.quantile(values.double().cpu().numpy(), [0.05, 0.95])
    inside = int(((found >= low) & (found <= high)).sum())
    return float(high - low) / max(1, inside - 1)


def components(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values `[r]`, the largest first, and right singular vectors `[A, r]` of `[N, A]`.

    From the smaller of the two Gram matrices, in double precision: what that loses, about 1e-8 of
    the largest value, is far below `CUT`.
    """
    wide = rows.shape[0] < rows.shape[1]
    squares, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    squares, vectors = squares.flip(0), vectors.flip(1)
    kept = squares > 1e-12 * squares[0]
    values, vectors = squares[kept].sqrt(), vectors[:, kept]
    return values, rows.T @ vectors / values if wide else vectors


class Whitening:
    """`x = (c - mean) V S^-power`, scaled so that the mean of |x|^2 over its rows is 1.

    S and V are singular values and vectors of the centred rows. With power 0 these are principal
    components, with 1 they are whitened; between the two, small directions count for more than in
    the scores, and for less than noise would.

    Args:
        rows: centred scores `[N, A]`.
        noise: step that they were rounded to.

    Attributes:
        mean: `[A]`.
        values: singular values that are kept `[r]`, those above `CUT` of the largest and above
            twice what rounding gives; none where all rows are alike.
    """

    def __init__(self, rows: torch.Tensor, noise: float = 0.0) -> None:
        self.mean = rows.mean(0)
        self.count = len(rows)
        values, vectors = components(rows - self.mean)
        # the largest singular value of a random matrix of this shape (uniform rounding error)
        floor = noise / 12**0.5 * (rows.shape[0] ** 0.5 + rows.shape[1] ** 0.5)
        kept = values > (CUT * values[:1]).clamp_min(2 * floor)
        self.values, self.vectors = values[kept], vectors[:, kept]

    def matrix(self, power: float) -> torch.Tensor:
        """`[A, r]`, to be multiplied from the left by centred scores less the mean."""
        scaled = self.values ** (1 - power)
        norm = (scaled.square().sum() / self.count).sqrt().clamp_min(1e-12)
        return self.vectors * self.values**-power / norm

    def __call__(self, rows: torch.Tensor, power: float) -> torch.Tensor:
        """x `[N, r]` of centred scores `[N, A]`."""
        return (rows - self.mean) @ self.matrix(power)
