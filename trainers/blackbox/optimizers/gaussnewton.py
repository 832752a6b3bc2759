"""JOLT's optimiser: Gauss-Newton steps in random subspaces, from differences of all logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import BlackBoxError
from ..losses import mean_cross_entropies, softmax_model
from .contract import Drawing

LADDER = [4.0**-k for k in range(8)]  # finite-difference steps that the first step tries
FLOOR = 0.01  # of the curvature's bound, below which the damping's unit does not fall
BOUNDS = 1e-3, 1e3  # between which lambda stays
UP = 10.0  # what lambda is multiplied by where no proposal was better


class SubspaceGaussNewton(Drawing):
    """Levenberg-Marquardt on the cross-entropy of a mini-batch, in a new random subspace each step.

    It is told logits, not losses. A step has two rounds. First theta and the proposals that the
    step before made, one for each damping, are scored on the new mini-batch: theta moves to the
    best, so that a proposal must be better *on images that it was not made from*. Then theta is
    shifted along m orthonormal directions Z (the last move is one of them), and with the slopes
    `J = (f(theta + eps z) - f(theta)) / eps` of all logits the next proposals are
    `theta - Z (H + (lambda mu + decay) I)^-1 (g + decay Z^T (theta - start))`. lambda follows the
    damping that won, and goes up where none did. mu, its unit, is the mean of H's diagonal; but H
    vanishes where the model is sure of a wrong class, and steps would explode there, so mu is at
    least a hundredth of the mean diagonal of
    `(1/2B) sum_b [sum_c J_i J_j - (sum_c J_i)(sum_c J_j) / C]`, which bounds H whatever the
    probabilities (Boehning, 1992).

    eps is measured once, by the first step's candidates: few directions, each with steps from 1
    down to 4^-7. Between curvature, which spoils the slopes of large steps, and rounding or a
    service's noise, which spoil those of small ones, lie the two neighbours whose slopes agree
    best, in proportion to their size.

    The last step's slopes are paid for and its proposals never scored: a run can go on from there.

    Args:
        start: theta `[d]`.
        directions: m; at most d.
        dampings: factors of lambda, a proposal each.
        damping: lambda to begin with.
        decay: weight of `|theta - start|^2 / 2`.
        seed: of the directions.

    Attributes:
        best: number of the candidate that the first round went to, 0 for theta; `in_use` until the
            second is told.
        here: the answer about theta (logits `[B, C]`), between the rounds; else None.
        eps: step of the finite differences; 0 before it is measured.

    Raises:
        BlackBoxError: fewer directions or dimensions than steps that are tried.
    """

    rounds, told = 2, "logits"
    saved = ("start", "theta", "proposals", "move", "damping", "eps")

    def __init__(
        self,
        start: torch.Tensor,
        directions: int = 64,
        dampings: Sequence[float] = (0.1, 1.0, 10.0),
        damping: float = 1.0,
        decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        if min(directions, len(start)) < len(LADDER):
            raise BlackBoxError(
                f"DIRECTIONS is {directions} in a space of {len(start)} dimensions; "
                f"both must be {len(LADDER)} or more, to measure the step of finite differences."
            )
        super().__init__(start, seed)
        self.start, self.move = start.clone(), torch.zeros_like(start)
        self.m, self.factors = min(directions, len(start)), tuple(dampings)
        self.damping, self.decay, self.eps = damping, decay, 0.0
        self.proposals = start.repeat(len(dampings), 1)
        self.population, self.best = 1 + len(dampings) + self.m, 0
        self.here: Any = None
        self.asked: Any = None  # candidates; in the second round, directions and steps

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # read only
        return [{"params": [], "lr": self.damping}]

    def ask(self) -> torch.Tensor:
        """The candidates of a round.

        First theta and its proposals, `[1 + dampings, d]`; when these are told, theta shifted along
        directions, `[m, d]`.
        """
        if self.here is None:
            self.asked = torch.cat([self.theta[None], self.proposals])
            return self.asked
        steps = torch.tensor([self.eps] if self.eps else LADDER).to(self.theta)
        directions = self.draw(self.m // len(steps))
        self.asked = directions, steps
        shifts = (steps[:, None, None] * directions).flatten(0, 1)
        # always m: what was drawn, some of it again
        return self.theta + shifts[torch.arange(self.m, device=shifts.device) % len(shifts)]

    def draw(self, m: int) -> torch.Tensor:
        """Orthonormal directions `[m, d]`, that of the last move among them."""
        z = torch.randn(m, len(self.theta), dtype=torch.float64, generator=self.generator)
        if self.move.any():
            z[0] = self.move
        return torch.linalg.qr(z.T)[0].T.to(self.theta)

    def tell(self, answers: torch.Tensor, labels: torch.Tensor) -> None:
        """Logits `[P, B, C]` about the candidates that were asked for last, and labels `[B]`."""
        if self.here is None:
            self.choose(answers, labels)
            return
        Z, slopes = self.slopes(answers)
        self.proposals = self.theta - self.solve(slopes, Z @ (self.theta - self.start), labels) @ Z
        self.here = self.asked = self.in_use = None

    def choose(self, answers: torch.Tensor, labels: torch.Tensor) -> None:
        """Go to the best candidate."""
        losses = mean_cross_entropies(answers, labels)
        penalties = self.decay / 2 * (self.asked - self.start).square().sum(1)
        self.best = self.in_use = best = int((losses + penalties).argmin())
        if best:
            self.move, self.theta = self.asked[best] - self.theta, self.asked[best].clone()
        if self.eps:  # in the first step there are no proposals yet
            low, high = BOUNDS
            factor = self.factors[best - 1] if best else UP
            self.damping = min(max(self.damping * factor, low), high)
        self.here = answers[best]

    def slopes(self, answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Directions `[m, d]` and the slopes of the answers along them `[m, B, C]`.

        The first time, few directions and the step of the differences as well.
        """
        Z, steps = self.asked
        rungs = answers[: len(steps) * len(Z)].unflatten(0, (len(steps), -1))
        slopes = (rungs - self.here) / steps[:, None, None, None].to(answers)
        if len(steps) > 1:
            sizes = slopes.square().sum((1, 2, 3))
            apart = (slopes[1:] - slopes[:-1]).square().sum((1, 2, 3)) / (sizes[1:] + sizes[:-1])
            # two steps that change nothing do not agree: they are below the rounding
            r = int(apart.nan_to_num(torch.inf).argmin())
            self.eps = float((steps[r] * steps[r + 1]).sqrt())
            slopes = slopes[r : r + 2].mean(0, keepdim=True)
        return Z, slopes[0]

    def solve(
        self, slopes: torch.Tensor, offset: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Damped Newton steps along m directions, `[dampings, m]`, to be subtracted.

        Args:
            slopes: of the answers, `[m, B, C]`.
            offset: theta less the start, along the directions `[m]`.
            labels: `[B]`.
        """
        g, H = softmax_model(self.here, slopes, labels)
        centred = slopes - slopes.mean(-1, keepdim=True)
        bound = centred.square().sum((1, 2)).mean() / (2 * len(labels))
        mu = torch.maximum(H.diagonal().mean(), FLOOR * bound).clamp_min(1e-12)
        g, H = (g + self.decay * offset.to(g)).double(), H.double()
        ridge = self.damping * torch.tensor(self.factors).to(H) * mu + self.decay
        damped = H + ridge[:, None, None] * torch.eye(len(H)).to(H)
        return torch.linalg.solve(damped, g.expand(len(ridge), -1)).to(self.theta)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.here = self.asked = self.in_use = None
