"""Gauss-Newton steps in the full space, from a Jacobian that is remembered: JOLT with memory."""

import torch

from .gaussnewton import SubspaceGaussNewton


class RememberedJacobian(SubspaceGaussNewton):
    """The same two rounds, told logits of *the same images* at every step, or features of the texts, so that slopes seen before still count.

    An estimate J of all the answers' derivatives begins at zero, where nothing moves; it is corrected along every new direction, `J <- J + Z^T (J_seen - Z J)` (Kaczmarz), and along
    every move (Broyden). Directions walk through a random orthonormal basis, then through another: after d of them at one point J is the Jacobian.
    Proposals solve in all d dimensions. Memory: d B C numbers (of features d C D) and a d x d matrix, so for small problems.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.explored = 0.0
        self.J = None  # [d, B, C] or [d, C, D]
        self.basis = self.theta.new_zeros(0, len(self.theta))  # directions that are still to come

    def draw(self, m):
        """The next directions: `[m, d]`, or what is left of a basis. Then another basis begins."""
        if not len(self.basis):
            self.basis = torch.linalg.qr(
                torch.randn(
                    len(self.theta), len(self.theta), dtype=torch.float64, generator=self.generator
                )
            )[0].to(self.theta)
        taken, self.basis = self.basis[:m], self.basis[m:]
        return taken

    def choose(self, answers, labels):
        before = self.theta
        here = super().choose(answers, labels)
        s = (self.theta - before).to(answers)
        if s.any() and self.J is not None:
            missed = here - answers[0] - torch.tensordot(s, self.J, 1)
            self.J += s[:, None, None] * missed / s.square().sum()
        return here

    def propose(self, answers, labels):
        Z, slopes = self.slopes(answers)
        if self.J is None:
            self.J = slopes.new_zeros(len(self.theta), *slopes.shape[1:])
        Z = Z.to(slopes)
        self.explored = min(1.0, self.explored + len(Z) / len(self.theta))
        self.J += torch.tensordot(Z.T, slopes - torch.tensordot(Z, self.J, 1), 1)
        self.proposals = self.theta - self.solve(self.J, self.theta - self.start, labels)

    def state_dict(self):
        return {**super().state_dict(), "J": self.J, "basis": self.basis, "explored": self.explored}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.J = None if state["J"] is None else state["J"].to(self.theta.device)
        self.basis, self.explored = state["basis"].to(self.theta), state["explored"]
