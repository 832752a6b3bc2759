"""JOLT's head: residual MLPs, each checked on the images that it never saw."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import BlackBoxError
from ..losses import softmax_model
from ..search import Answer, Teacher
from .featured import mlp

MOST = 2.0  # that trust can be: more would be the chance of a few images
NEWTON = 20  # steps at most, of two numbers


def stacking_weight(logits: torch.Tensor, residuals: torch.Tensor, labels: torch.Tensor) -> float:
    """The weight w, from 0 to `MOST`, that residuals earn.

    At it `softmax(a (logits + w residuals))` has the least cross-entropy, at its best scale a.

    How far the residuals are to be believed, where their makers did not know the labels; a is there
    so that logits which are too sure of themselves do not decide it. A convex problem in a and a w:
    Newton steps, halved until they help, from 0, where no softmax is saturated. Where no image is
    on the wrong side it has no end, and what the first steps found serves.

    Args:
        logits, residuals: `[N, C]`.
        labels: `[N]`.
    """
    parts = torch.stack([logits, residuals]).double()
    weights = torch.zeros(2, dtype=parts.dtype, device=parts.device)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.einsum("i,inc->nc", weights, parts), labels)

    here = loss(weights)
    for _ in range(NEWTON):
        g, H = softmax_model(torch.einsum("i,inc->nc", weights, parts), parts, labels)
        step = torch.linalg.solve(H + 1e-9 * (1 + H.trace()) * torch.eye(2).to(H), g)
        for k in range(10):
            trial = weights - 2.0**-k * step
            there = loss(trial)
            if there < here:
                break
        else:
            break  # no part of the step helps
        weights, here = trial, there
    a, w = weights.tolist()
    return min(max(w, 0.0) / max(a, 1e-6), MOST)


class CrossFitted(nn.Module):
    """`refined = raw + trust MLP(raw)`, CraFT's residual, K times over.

    It is made on logits `[..., C]` less their mean (so that log-probabilities do as well).

    The k-th MLP never learns from the images of the k-th fold. Such an image is refined by that MLP
    alone, so that what the prompt is tuned on is not what a head knows by heart; any other image by
    the mean of all. Every MLP begins by changing nothing. With one fold there is one MLP, which
    learns from all and is always trusted. With one image a class an MLP is judged by classes that
    it never saw, and trust stays at 0.

    Args:
        classes: C.
        width: of the hidden layers.
        folds: K.

    Raises:
        BlackBoxError: no fold.
    """

    class_bound = True  # a class is a number of its own to it
    trust: torch.Tensor

    def __init__(self, classes: int, width: int = 256, folds: int = 4) -> None:
        super().__init__()
        if folds < 1:
            raise BlackBoxError(f"A head needs 1 fold or more (HEAD_FOLDS); given are {folds}.")
        parts: list[Any] = [mlp(classes, width) for _ in range(folds)]
        for _, _, outer in parts:
            nn.init.zeros_(outer.weight)
            nn.init.zeros_(outer.bias)
        self.mlps: Any = nn.ModuleList(parts)
        self.register_buffer("trust", torch.tensor(1.0))

    def forward(self, logits: torch.Tensor, folds: torch.Tensor | None = None) -> torch.Tensor:
        """Refined logits, of the shape given.

        Folds `[B]` of training images, for logits `[..., B, C]`.
        """
        return logits + self.trust * self.residuals(logits, folds)

    def residuals(self, logits: torch.Tensor, folds: torch.Tensor | None = None) -> torch.Tensor:
        centred = logits - logits.mean(-1, keepdim=True)
        if folds is None:
            return sum(part(centred) for part in self.mlps) / len(self.mlps)
        residuals = torch.empty_like(centred)
        for k, part in enumerate(self.mlps):
            own = folds == k
            residuals[..., own, :] = part(centred[..., own, :])
        return residuals


class HeadLearner(Teacher):
    """Teaches a `CrossFitted` from the logits that it was shown last.

    A share of the hidden layers is left out, and the head is weighed on the images that each MLP
    did not see. The prompt is tuned through it.

    Args:
        head: it, on its device.
        folds: of the training images `[N]`.
        lr, decay: of AdamW.
        steps: of one `learn`.
        capacity: rows of logits that are remembered.
        dropout: the share.

    Raises:
        BlackBoxError: no step, no capacity, or a dropout that is no share.
    """

    def __init__(
        self,
        head: CrossFitted,
        folds: torch.Tensor,
        lr: float = 1e-3,
        decay: float = 0.01,
        steps: int = 8,
        capacity: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        if min(steps, capacity) < 1 or not 0 <= dropout < 1:
            raise BlackBoxError(
                f"A head learns in 1 step or more (HEAD_STEPS), from 1 image or more "
                f"(HEAD_MEMORY), and without a share below 1 of itself (HEAD_DROPOUT); given are "
                f"{steps}, {capacity} and {dropout}."
            )
        self.head, self.folds = head, folds
        self.steps, self.capacity, self.dropout = steps, capacity, dropout
        self.adam = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay)
        self.memory: Any = None  # logits `[M, C]`, labels `[M]`, folds `[M]`
        self.draw = int(torch.randint(2**31, ()))  # seed of the next dropout

    def through(self, answer: Answer) -> torch.Tensor:
        with torch.no_grad():
            return self.head(answer.logits, self.folds[answer.index])

    def see(self, answer: Answer, number: int) -> None:
        self.remember(answer.logits[number], answer.labels, self.folds[answer.index])

    def remember(self, logits: torch.Tensor, labels: torch.Tensor, folds: torch.Tensor) -> None:
        """Logits `[B, C]` as the model gave them, labels and folds `[B]`."""
        shown = [logits, labels, folds]
        if self.memory is not None:
            shown = [torch.cat(pair) for pair in zip(self.memory, shown, strict=True)]
        # a view would keep, and save, what it was cut from
        self.memory = tuple(part[-self.capacity :].clone() for part in shown)

    def loss(self) -> torch.Tensor:
        """Sum over the MLPs of the mean cross-entropy on what each may learn from.

        It is taken under a new dropout.
        """
        logits, labels, folds = self.memory
        generator = torch.Generator().manual_seed(self.draw)
        self.draw += 1
        width = self.head.mlps[0][0].out_features
        kept = torch.rand(len(labels), width, generator=generator) >= self.dropout
        kept = kept.to(logits) / (1 - self.dropout)
        centred = logits - logits.mean(-1, keepdim=True)
        total: Any = 0.0
        for k, (inner, activation, outer) in enumerate(self.head.mlps):
            seen = (folds != k) | (len(self.head.mlps) == 1)
            refined = logits[seen] + outer(activation(inner(centred[seen])) * kept[seen])
            loss = F.cross_entropy(refined, labels[seen], reduction="sum")
            total = total + loss / seen.sum().clamp_min(1)
        return total

    def learn(self) -> dict[str, float]:
        """Some steps, and the trust that they have earned.

        Returns the last loss, a mean over the MLPs, and the trust.
        """
        for _ in range(self.steps):
            loss = self.loss()
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        if len(self.head.mlps) > 1:
            logits, labels, folds = self.memory
            with torch.no_grad():
                residuals = self.head.residuals(logits, folds)
                self.head.trust.fill_(stacking_weight(logits, residuals, labels))
        return {"head": loss.item() / len(self.head.mlps), "trust": self.head.trust.item()}

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "memory": self.memory, "draw": self.draw}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.head.trust.device
        self.adam.load_state_dict(state["adam"])
        self.memory = state["memory"] and tuple(part.to(device) for part in state["memory"])
        self.draw = state["draw"]
