"""JOLT: Jacobian-of-logits tuning. Ours."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import blackbox as bb

HEADED = bb.where("HEAD", True)
MOST = 2.0  # that a stacking weight can be: more would be the chance of a few images
DAMPINGS = bb.Validator(
    "a tuple of one or more numbers above 0",
    lambda items: items and all(type(item) in (int, float) and 0 < item < 1e9 for item in items),
)


class CrossFitted(nn.Module):
    """`refined = raw + trust MLP(raw)`, CraFT's residual, K times over, on logits `[..., C]`.

    The k-th MLP never learns from the images of the k-th fold, which it alone refines; others are
    refined by the mean of all. A single MLP learns from all and is always trusted.
    """

    class_bound = True  # a class is a number of its own to it
    trust: Tensor

    def __init__(self, classes: int, width: int, folds: int) -> None:
        super().__init__()
        self.mlps: Any = nn.ModuleList()
        for _ in range(folds):
            inner, outer = nn.Linear(classes, width), nn.Linear(width, classes)
            self.mlps.append(nn.Sequential(inner, nn.ReLU(), outer))
            nn.init.zeros_(outer.weight)
            nn.init.zeros_(outer.bias)
        self.register_buffer("trust", torch.tensor(1.0))

    def forward(self, logits: Tensor, folds: Tensor | None = None) -> Tensor:
        """Refined logits; folds `[B]` are those of training images, for logits `[..., B, C]`."""
        return logits + self.trust * self.residuals(logits, folds)

    def residuals(self, logits: Tensor, folds: Tensor | None = None) -> Tensor:
        centred = logits - logits.mean(-1, keepdim=True)  # log-probabilities do as well
        if folds is None:
            return sum(part(centred) for part in self.mlps) / len(self.mlps)
        residuals = torch.empty_like(centred)
        for k, part in enumerate(self.mlps):
            residuals[..., folds == k, :] = part(centred[..., folds == k, :])
        return residuals


def stacking_weight(logits: Tensor, residuals: Tensor, labels: Tensor) -> float:
    """The weight w, from 0 to `MOST`, that residuals earn whose makers did not know the labels.

    `softmax(a (logits + w residuals))` `[N, C]` has the least cross-entropy, at the best a: Newton
    steps on a and a w from 0, halved until they help.
    """
    parts = torch.stack([logits, residuals]).double()
    weights, mixed = parts.new_zeros(2), torch.zeros_like(parts[0])
    for _ in range(20):
        g, H = bb.losses.softmax_model(mixed, parts, labels)
        step = torch.linalg.solve(H + 1e-9 * (1 + H.trace()) * torch.eye(2).to(H), g)
        here = F.cross_entropy(mixed, labels)
        for k in range(10):
            trial = weights - 2.0**-k * step
            mixed = torch.einsum("i,inc->nc", trial, parts)
            if F.cross_entropy(mixed, labels) < here:
                break
        else:
            break  # no part of the step helps
        weights = trial
    a, w = weights.tolist()
    return min(max(w, 0.0) / max(a, 1e-6), MOST)


class HeadLearner(torch.optim.AdamW, bb.Teacher):
    """AdamW on the MLPs, by the latest logits about the prompt in use, and then their trust."""

    state: Any  # saved: AdamW's, `draw`, and `memory`: logits `[M, C]`, labels and folds `[M]`

    def __init__(self, head: CrossFitted, folds: Tensor, node: Any) -> None:
        super().__init__(head.parameters(), lr=node.HEAD_LR, weight_decay=node.HEAD_DECAY)
        self.head, self.folds, self.node = head, folds, node
        self.state["draw"] = int(torch.randint(2**31, ()))  # seed of the next dropout

    def through(self, answer: bb.Answer) -> Tensor:
        with torch.no_grad():
            return self.head(answer.logits, self.folds[answer.index])

    def see(self, answer: bb.Answer, number: int) -> None:
        shown = [answer.logits[number], answer.labels, self.folds[answer.index]]
        if memory := self.state["memory"]:
            pairs = zip(memory, shown, strict=True)
            shown = [torch.cat([old.to(self.folds.device), new]) for old, new in pairs]
        # a view would keep, and save, what it was cut from
        self.state["memory"] = [part[-self.node.HEAD_MEMORY :].clone() for part in shown]

    def loss(self) -> Tensor:
        """Sum over the MLPs of the mean cross-entropy, with a new dropout, of what each may see."""
        logits, labels, folds = self.state["memory"]
        generator = torch.Generator().manual_seed(self.state["draw"])
        self.state["draw"] += 1
        shape, dropout = (len(labels), self.node.HEAD_WIDTH), self.node.HEAD_DROPOUT
        kept = (torch.rand(shape, generator=generator) >= dropout).to(logits) / (1 - dropout)
        centred, total = logits - logits.mean(-1, keepdim=True), torch.zeros(()).to(logits)
        for k, (inner, activation, outer) in enumerate(self.head.mlps):
            seen = (folds != k) | (len(self.head.mlps) == 1)
            refined = logits[seen] + outer(activation(inner(centred[seen])) * kept[seen])
            loss = F.cross_entropy(refined, labels[seen], reduction="sum")
            total = total + loss / seen.sum().clamp_min(1)
        return total

    def learn(self) -> dict[str, float]:
        for _ in range(self.node.HEAD_STEPS):
            loss = self.loss()
            self.zero_grad()
            loss.backward()
            self.step()
        if len(self.head.mlps) > 1:
            logits, labels, folds = self.state["memory"]
            with torch.no_grad():
                residuals = self.head.residuals(logits, folds)
            self.head.trust.fill_(stacking_weight(logits, residuals, labels))
        return {"head": loss.item() / len(self.head.mlps), "trust": self.head.trust.item()}


@bb.register_trainer
class JOLT(bb.SearchTrainer):
    """Any prompt space; Gauss-Newton steps from the Jacobian of all logits in random subspaces.

    Told the logits of every mini-batch. Access: contexts, logits. A step has as many candidates as
    DIRECTIONS and DAMPINGS, and 1; with `FEATURES`, each is one query whatever the batch.
    """

    keys = {
        **bb.prompts.space_keys("context", 4, "a photo of a"),
        "DIRECTIONS": bb.Key(64, bb.whole(8, bb.SIZE), "directions m of a step's subspace"),
        "DAMPINGS": bb.Key((0.1, 1.0, 10.0), DAMPINGS, "factors of the damping, a proposal each"),
        "DAMPING": bb.Key(1.0, bb.number(above=0), "damping at the start / the mean curvature"),
        "FEATURES": bb.Key(False, bb.flag(), "ask for features (grant features)"),
        "DECAY": bb.Key(0.01, bb.number(0), "weight of half the squared distance from the start"),
        "HEAD": bb.Key(True, bb.flag(), "train a residual head on the logits that come back"),
        "HEAD_FOLDS": bb.Key(4, bb.whole(1, 100), "MLPs of the head; 1 is not held out", HEADED),
        "HEAD_WIDTH": bb.Key(256, bb.whole(1, bb.SIZE), "their hidden width", HEADED),
        "HEAD_DROPOUT": bb.Key(0.5, bb.number(0, below=1), "share of hidden units dropped", HEADED),
        "HEAD_LR": bb.Key(1e-3, bb.number(above=0), "their learning rate (AdamW)", HEADED),
        "HEAD_DECAY": bb.Key(0.01, bb.number(0), "their weight decay", HEADED),
        "HEAD_STEPS": bb.Key(8, bb.whole(1), "their steps after every step of the prompt", HEADED),
        "HEAD_MEMORY": bb.Key(1024, bb.whole(1), "latest crops whose logits are kept", HEADED),
    }

    def build_recipe(self, generator: torch.Generator) -> bb.Recipe:
        node = self.cfg.TRAINER.JOLT
        space = bb.prompts.build_space(self.oracle, node, generator)
        origin, seed = space.origin.to(self.device), bb.child_seed(generator)
        optimizer = bb.optimizers.SubspaceGaussNewton(
            origin, node.DIRECTIONS, node.DAMPINGS, node.DAMPING, node.DECAY, seed
        )
        if not node.HEAD:
            return bb.Recipe(space, optimizer, features=node.FEATURES)
        folds = bb.selection.folds_of(self.dm.dataset.train_x, node.HEAD_FOLDS).to(self.device)
        with bb.seeded(generator):
            head = CrossFitted(self.num_classes, node.HEAD_WIDTH, node.HEAD_FOLDS).to(self.device)
            teacher = HeadLearner(head, folds, node)
        return bb.Recipe(space, optimizer, head, teacher, features=node.FEATURES)
