"""JOLT's head: residual MLPs, each checked on the images that it never saw."""

import torch
import torch.nn.functional as F
from torch import nn

from .run.errors import BlackBoxError
from .heads import mlp
from .optimizers.gaussnewton import softmax_model

MOST = 2.0  # that trust can be: more would be the chance of a few images
NEWTON = 20  # steps at most, of two numbers


def folds_of(items, folds):
    """A fold for every training image `[N]`, spread evenly over those of a class; a picture that is listed twice has one fold.

    Args:
        items: Dassl's, with `label` and `impath`.
        folds: their number.
    """
    latest, numbers = {}, {}
    for item in items:
        if item.impath not in numbers:
            # classes take turns at which fold gets their first image; else, with few images a class, the first fold would be the largest
            latest[item.label] = latest.get(item.label, item.label - 1) + 1
            numbers[item.impath] = latest[item.label] % folds
    return torch.tensor([numbers[item.impath] for item in items])


def stacking_weight(logits, residuals, labels):
    """The w from 0 to `MOST` at which `softmax(a (logits + w residuals))` has the least cross-entropy, at its best scale a.

    How far the residuals are to be believed, where their makers did not know the labels; a is there so that logits which are too sure of themselves do not decide it.
    A convex problem in a and a w: Newton steps, halved until they help, from 0, where no softmax is saturated. Where no image is on the wrong side it has no end, and what the
    first steps found serves.

    Args:
        logits, residuals: `[N, C]`.
        labels: `[N]`.
    """
    parts = torch.stack([logits, residuals]).double()
    weights = torch.zeros(2, dtype=parts.dtype, device=parts.device)

    def loss(weights):
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
    """`refined = raw + trust MLP(raw)`, CraFT's residual on logits `[..., C]` less their mean (so that log-probabilities do as well), K times over.

    The k-th MLP never learns from the images of the k-th fold. Such an image is refined by that MLP alone, so that what the prompt is tuned on is not what a head knows by
    heart; any other image by the mean of all. Every MLP begins by changing nothing. With one fold there is one MLP, which learns from all and is always trusted. With one
    image a class an MLP is judged by classes that it never saw, and trust stays at 0.

    Args:
        classes: C.
        width: of the hidden layers.
        folds: K.

    Raises:
        BlackBoxError: no fold.
    """

    class_bound = True  # a class is a number of its own to it

    def __init__(self, classes, width=256, folds=4):
        super().__init__()
        if folds < 1:
            raise BlackBoxError(
                f"A head needs 1 fold or more (TRAINER.JOLT.HEAD_FOLDS); given are {folds}."
            )
        self.mlps = nn.ModuleList(mlp(classes, width) for _ in range(folds))
        for _, _, outer in self.mlps:
            nn.init.zeros_(outer.weight)
            nn.init.zeros_(outer.bias)
        self.register_buffer("trust", torch.tensor(1.0))

    def forward(self, logits, folds=None):
        """Refined logits, of the shape given; folds `[B]` of training images, for logits `[..., B, C]`."""
        return logits + self.trust * self.residuals(logits, folds)

    def residuals(self, logits, folds=None):
        centred = logits - logits.mean(-1, keepdim=True)
        if folds is None:
            return sum(part(centred) for part in self.mlps) / len(self.mlps)
        residuals = torch.empty_like(centred)
        for k, part in enumerate(self.mlps):
            own = folds == k
            residuals[..., own, :] = part(centred[..., own, :])
        return residuals


class HeadLearner:
    """Teaches a `CrossFitted` from the logits that it was shown last, with a share of the hidden layers left out, and weighs it on the images that each MLP did not see.

    Args:
        head: it, on its device.
        lr, decay: of AdamW.
        steps: of one `learn`.
        capacity: rows of logits that are remembered.
        dropout: the share.

    Raises:
        BlackBoxError: no step, no capacity, or a dropout that is no share.
    """

    def __init__(self, head, lr=1e-3, decay=0.01, steps=8, capacity=1024, dropout=0.5):
        if min(steps, capacity) < 1 or not 0 <= dropout < 1:
            raise BlackBoxError(
                f"A head learns in 1 step or more (HEAD_STEPS), from 1 image or more (HEAD_MEMORY), and without a share below 1 of itself (HEAD_DROPOUT); "
                f"given are {steps}, {capacity} and {dropout}."
            )
        self.head, self.steps, self.capacity, self.dropout = head, steps, capacity, dropout
        self.adam = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay)
        self.memory = None  # logits `[M, C]`, labels `[M]`, folds `[M]`
        self.draw = int(torch.randint(2**31, ()))  # seed of the next dropout

    def remember(self, logits, labels, folds):
        """Logits `[B, C]` as the model gave them, labels and folds `[B]`."""
        shown = logits, labels, folds
        if self.memory is not None:
            shown = (torch.cat(pair) for pair in zip(self.memory, shown))
        self.memory = tuple(
            part[-self.capacity :].clone() for part in shown
        )  # a view would keep, and save, what it was cut from

    def loss(self):
        """Sum over the MLPs of the mean cross-entropy on what each may learn from, under a new dropout."""
        logits, labels, folds = self.memory
        generator = torch.Generator().manual_seed(self.draw)
        self.draw += 1
        kept = (
            torch.rand(len(labels), self.head.mlps[0][0].out_features, generator=generator)
            >= self.dropout
        )
        kept, centred, total = (
            kept.to(logits) / (1 - self.dropout),
            logits - logits.mean(-1, keepdim=True),
            0.0,
        )
        for k, (inner, activation, outer) in enumerate(self.head.mlps):
            seen = (folds != k) | (len(self.head.mlps) == 1)
            refined = logits[seen] + outer(activation(inner(centred[seen])) * kept[seen])
            total = total + F.cross_entropy(
                refined, labels[seen], reduction="sum"
            ) / seen.sum().clamp_min(1)
        return total

    def learn(self):
        """Some steps, and the trust that they have earned; returns the last loss, a mean over the MLPs."""
        for _ in range(self.steps):
            loss = self.loss()
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        if len(self.head.mlps) > 1:
            logits, labels, folds = self.memory
            with torch.no_grad():
                self.head.trust.fill_(
                    stacking_weight(logits, self.head.residuals(logits, folds), labels)
                )
        return loss.item() / len(self.head.mlps)

    def state_dict(self):
        return {"adam": self.adam.state_dict(), "memory": self.memory, "draw": self.draw}

    def load_state_dict(self, state):
        device = self.head.trust.device
        self.adam.load_state_dict(state["adam"])
        self.memory = state["memory"] and tuple(part.to(device) for part in state["memory"])
        self.draw = state["draw"]
