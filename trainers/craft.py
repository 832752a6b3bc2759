"""CraFT: collaborative fine-tuning (ICML 2024)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import blackbox as bb

HEADED = bb.where("HEAD", True)
CHUNK = 1024  # images whose logits, of all candidates, are refined at a time


class PredictionRefinement(nn.Module):
    """CraFT's head (section 3.3): `refined = raw + MLP(raw)`, on logits `[..., C]`."""

    class_bound = True  # a class is a number of its own to it

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(classes, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.mlp(logits)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) ‖ softmax(q)) over the last dimension of logits."""
    log_p, log_q = F.log_softmax(p, -1), F.log_softmax(q, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


class RefinementTeacher(torch.optim.Adam, bb.Teacher):
    """A pass of Adam over the augmented training set after every generation (section 3.4).

    Its KL term is on for the first `1 / KL_PART` of the steps that the budget pays for: steps, so
    that a resumed run, whose killed part lost queries, has the terms of an undisturbed one.
    """

    def __init__(self, head: PredictionRefinement, loader: DataLoader, node: Any) -> None:
        super().__init__(head.parameters(), lr=node.HEAD_LR)
        self.head, self.loader, self.weight, self.part = head, loader, node.LAMBDA, node.KL_PART
        self.with_kl, self.last = True, float("nan")

    def fitness(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of raw logits `[P, B, C]` + weight · KL(refined ‖ raw), means: `[P]`."""
        with torch.no_grad():
            parts = [divergence(self.head(raw), raw) for raw in logits.split(CHUNK, dim=1)]
        ce = bb.losses.mean_cross_entropies(logits, labels)
        return ce + self.weight * torch.cat(parts, 1).mean(1)

    def begin(self, epoch: int, steps_done: int, steps_total: int) -> None:
        self.with_kl = steps_done * self.part < steps_total

    def read(self, logits: Tensor, labels: Tensor) -> None:
        """Cross-entropy of refined logits `[B, C]`, + weight · KL(raw ‖ refined) at first."""
        refined = self.head(logits)
        loss = F.cross_entropy(refined, labels)
        if self.with_kl:
            loss = loss + self.weight * divergence(logits, refined).mean()
        self.zero_grad()
        loss.backward()
        self.step()
        self.last = loss.item()

    def learn(self) -> dict[str, float]:
        return {"head": self.last}


@bb.register_trainer
class CraFT(bb.SearchTrainer):
    """CMA-ES over a randomly projected context, and a residual MLP on the logits.

    Told the losses of the whole training set. Access: contexts, logits. A step is one generation,
    then one pass of the head over the augmented training set, whose reads are on the bill too.
    """

    keys = {
        **bb.prompts.space_keys("projection", 4, "a photo of a"),
        **bb.config.CMA_KEYS,
        "POPULATION": bb.Key(40, bb.whole(2, bb.SIZE), "candidates of a generation"),
        "BOUND": bb.Key(5.0, bb.number(0), "bounds of z, plus and minus; 0: none"),
        "RESULT": bb.Key("mean", bb.one("mean", "best"), "prompt in use: mean, or best so far"),
        "LAMBDA": bb.Key(0.1, bb.number(0), "weight of the KL terms", HEADED),
        "KL_PART": bb.Key(4, bb.whole(1), "the head's KL is on for 1 / KL_PART of the run", HEADED),
        "HEAD": bb.Key(True, bb.flag(), "train the prediction refinement"),
        "HEAD_WIDTH": bb.Key(256, bb.whole(1, bb.SIZE), "its hidden width", HEADED),
        "HEAD_LR": bb.Key(1e-3, bb.number(above=0), "its learning rate (Adam)", HEADED),
        "HEAD_BATCH": bb.Key(256, bb.whole(1, bb.SIZE), "its batch", HEADED),
    }

    def build_recipe(self, generator: torch.Generator) -> bb.Recipe:
        node = self.cfg.TRAINER.CRAFT
        space = bb.prompts.build_space(self.oracle, node, generator)
        origin, seed = space.origin.to(self.device), bb.child_seed(generator)
        covariance, options = node.COVARIANCE, node.CMA_OPTIONS
        optimizer = bb.optimizers.CMAES(
            origin, node.SIGMA, node.POPULATION, node.BOUND, covariance, node.RESULT, options, seed
        )
        if not node.HEAD:
            return bb.Recipe(space, optimizer, whole_set=True)
        with bb.seeded(generator):
            head = PredictionRefinement(self.num_classes, node.HEAD_WIDTH).to(self.device)
        items, size = self.dm.dataset.train_x, node.HEAD_BATCH
        loader = self.loader(items, self.augmentation, size, shuffled=True)
        teacher = RefinementTeacher(head, loader, node)
        return bb.Recipe(space, optimizer, head, teacher, fitness=teacher.fitness, whole_set=True)
