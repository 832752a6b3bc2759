"""JOLT's optimiser: Gauss-Newton steps in random subspaces, from differences of all logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import BlackBoxError
from ..losses import mean_cross_entropies, softmax_model
from .contract import Optimizer

LADDER = [4.0**-k for k in range(8)]  # finite-difference steps that the first step tries


class SubspaceGaussNewton(Optimizer):
    """Levenberg-Marquardt on the cross-entropy of a mini-batch, in a new random subspace each step.

    A step has two rounds. First theta and the proposals of the step before, one a damping, are
    scored on the new mini-batch: theta moves to the best, so that a proposal must be better *on
    images that it was not made from*; lambda follows its damping, or goes up. Then theta is
    shifted along m orthonormal directions Z (the last move is one of them), and with the slopes
    `J = (f(theta + eps z) - f(theta)) / eps` of all logits the next proposals are
    `theta - Z (H + (lambda mu + decay) I)^-1 (g + decay Z^T (theta - start))`. mu is the mean of
    H's diagonal; but H vanishes where the model is sure of a wrong class, so mu is at least a
    hundredth of the mean diagonal of `(1/2B) sum_b [sum_c J_i J_j - (sum_c J_i)(sum_c J_j) / C]`,
    which bounds H whatever the probabilities (Boehning, 1992).
    """

    rounds, told = 2, "logits"
    saved = ("start", "theta", "proposals", "move", "damping", "eps")
    best = 0  # number of the candidate that the first round went to, 0 for theta
    here: Any = None  # the answer about theta, logits `[B, C]`, between the rounds
    asked: Any = None  # candidates; in the second round, directions and steps

    def __init__(
        self,
        start: Tensor,
        directions: int = 64,  # m, at most d
        dampings: Sequence[float] = (0.1, 1.0, 10.0),  # factors of lambda, a proposal each
        damping: float = 1.0,  # lambda to begin with
        decay: float = 0.01,  # weight of `|theta - start|^2 / 2`
        seed: int = 0,
    ) -> None:
        super().__init__(start, seed)
        self.m = min(directions, len(start))
        if self.m < len(LADDER):
            raise BlackBoxError(f"JOLT needs a space of {len(LADDER)} dimensions, not {self.m}.")
        self.start, self.move = start.clone(), torch.zeros_like(start)
        self.factors, self.damping, self.decay, self.eps = tuple(dampings), damping, decay, 0.0
        self.proposals = start.repeat(len(dampings), 1)
        self.population = 1 + len(dampings) + self.m

    def rate(self) -> float:
        return self.damping

    def ask(self) -> Tensor:
        """Theta and its proposals `[1 + dampings, d]`, then theta along directions `[m, d]`."""
        if self.here is None:
            self.begun = super().state_dict()
            self.asked = torch.cat([self.theta[None], self.proposals])
            return self.asked
        steps = torch.tensor([self.eps] if self.eps else LADDER).to(self.theta)
        shape = self.m // len(steps), len(self.theta)
        z = torch.randn(shape, dtype=torch.float64, generator=self.generator)
        if self.move.any():
            z[0] = self.move
        Z = torch.linalg.qr(z.T)[0].T.to(self.theta)
        self.asked = Z, steps
        shifts = (steps[:, None, None] * Z).flatten(0, 1)
        # always m: what was drawn, some of it again
        return self.theta + shifts[torch.arange(self.m, device=shifts.device) % len(shifts)]

    def tell(self, answers: Tensor, labels: Tensor) -> None:
        if self.here is not None:
            Z, J = self.slopes(answers)
            self.proposals = self.theta - self.solve(J, Z @ (self.theta - self.start), labels) @ Z
            self.here = self.in_use = None
            return
        losses = mean_cross_entropies(answers, labels)
        penalties = self.decay / 2 * (self.asked - self.start).square().sum(1)
        self.best = self.in_use = best = int((losses + penalties).argmin())
        if best:
            self.move, self.theta = self.asked[best] - self.theta, self.asked[best].clone()
        if self.eps:  # in the first step there are no proposals yet
            factor = self.factors[best - 1] if best else 10.0
            self.damping = min(max(self.damping * factor, 1e-3), 1e3)
        self.here = answers[best]

    def state_dict(self) -> dict[str, Any]:
        """That of the step's beginning, where the service's budget ended it between two rounds."""
        return super().state_dict() if self.here is None else self.begun

    def slopes(self, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Directions `[m, d]` and slopes along them `[m, B, C]`; the first time, eps as well.

        Curvature spoils the slopes of large steps, noise those of small ones: eps lies between the
        two neighbours on the ladder whose slopes agree best, in proportion to their size.
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

    def solve(self, slopes: Tensor, offset: Tensor, labels: Tensor) -> Tensor:
        """Damped Newton steps `[dampings, m]`, to subtract; the offset is `Z^T (theta - start)`."""
        g, H = softmax_model(self.here, slopes, labels)
        centred = slopes - slopes.mean(-1, keepdim=True)
        bound = centred.square().sum((1, 2)).mean() / (2 * len(labels))
        mu = torch.maximum(H.diagonal().mean(), 0.01 * bound).clamp_min(1e-12)
        g, H = (g + self.decay * offset.to(g)).double(), H.double()
        ridge = self.damping * torch.tensor(self.factors).to(H) * mu + self.decay
        damped = H + ridge[:, None, None] * torch.eye(len(H)).to(H)
        return torch.linalg.solve(damped, g.expand(len(ridge), -1)).to(self.theta)
