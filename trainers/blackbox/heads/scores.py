"""SONAR's head: penalised logistic regression on the scores of further texts, beside zero-shot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import selection
from .selection import Gathered, affinity

POWER = 0.7  # of the whitening
CUT = 1e-3  # of the largest singular value: what is smaller is numerical noise in single precision
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)  # spread of the closed form's logits, in units of zero-shot's
BETA, CACHE = 1.5, 2**12  # sharpness of the cache; views above which there is none
SHARES = (1.0, 0.5, 0.25)  # of zero-shot's own temperature that the head leaves to the class texts
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01)
TRUSTS = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of what is learnt that are added to zero-shot
WIDTHS = 0.5 * 0.30103, 0.3  # of the priors, in powers of ten: half an octave, three tenths
WORK = 2**24  # images x components x classes, above which part of the classes choose for all
PATH_STEPS, STEPS = 20, 30  # of L-BFGS, for one held-out fit and for the last one
BLOCKS = 128  # in so many steps the further texts are chosen that evaluation keeps
NUMBERS = 2**22  # that are looked at for how scores are rounded
# what a checkpoint holds beside tensors
HELD = "names", "texts", "template", "kept", "further", "fresh", "bold", "level", "tempered", "pull"
LEVELS = tuple(half / 2 for half in range(17))  # by which classes without images may be raised
NEIGHBOURS, CUBED = 5, 3  # of the pool: of a picture; of a cosine, which is the weight of a pair
RIDGE = 0.3  # of the mean eigenvalue, added to all: in the pool, and in the cache
PULLS, SHARPER = (3.0, 0.3, 0.0), 2.0  # weights of the neighbours, factor of the head's logits
ROUNDS, CHUNK = 30, 2048
POWERS = tuple(2 ** (eighth / 8) for eighth in range(-8, 25))  # of their answers
ROWS = 2**13  # views at most that whiten the scores, and decide which texts evaluation keeps


def centred(scores: Tensor, places: Sequence[int]) -> Tensor:
    """Scores `[..., A]` less the mean of each list that was answered together, cut at these places.

    So that log-probabilities serve as logits do: they differ by one number an image and list.
    """
    found = scores.clone()
    for piece in found.tensor_split(places, dim=-1):
        piece -= piece.mean(-1, keepdim=True)
    return found


def resolution(scores: Tensor) -> float:
    """The step that scores `[N, A]` are rounded to on average; 0 where numbers do not repeat."""
    values = scores[:: -(-scores.numel() // NUMBERS)].flatten()
    found = values.unique()
    if len(found) < 2 or 4 * len(found) > len(values):
        return 0.0
    low, high = values.double().quantile(torch.tensor([0.05, 0.95]).to(values).double())
    inside = int(((found >= low) & (found <= high)).sum())
    return float(high - low) / max(1, inside - 1)


def sample(rows: Tensor) -> Tensor:
    """Numbers of `ROWS` of these at most, by chance: every tenth view might lack most classes."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return order[:ROWS].sort().values.to(rows.device)


class Linear(NamedTuple):
    """`x W + b`, perhaps K at a time: W `[K, r, C]`, b `[K, 1, C]`, x `[N, r]` or `[K, N, r]`."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x) + self.bias.to(x)


def whitening(views: Gathered, noise: float, power: float = POWER, mixed: bool = True) -> Linear:
    """`V S^-power` `[A, r]` about the mean of rows: S, V are deviations and directions.

    They are of the covariance about the mean of all, `mixed` with that about the classes' means: 1
    - 1/n of it with n images a class. Kept are the r deviations above `CUT` of the largest and
    above twice what rounding to steps of `noise` gives; none where all rows are alike. With a power
    of a half and not mixed, distances are like features'.
    """
    mean = views.rows.mean(0)
    rows = views.rows - mean
    classes, of_class = views.labels.unique(return_inverse=True)
    sums = rows.new_zeros(len(classes), rows.shape[1]).index_add_(0, of_class, rows)
    total, between = rows.mT @ rows, (sums / of_class.bincount()[:, None]).mT @ sums
    within = 1 - min(1.0, len(classes) / len(views.index.unique())) if mixed else 0.0
    covariance = (1 - within) * total / len(rows)
    covariance += within * (total - between) / max(1, len(rows) - len(classes))
    squares, vectors = torch.linalg.eigh(covariance)
    values = squares.flip(0).clamp_min(0).sqrt()
    # the largest deviation of a random matrix of this shape (uniform rounding error)
    floor = noise / 12**0.5 * (1 + (rows.shape[1] / len(rows)) ** 0.5)
    kept = (values > CUT * values[:1]) & (values > 2 * floor)
    axes = vectors.flip(1)[:, kept] * values[kept] ** -power
    return Linear(axes, -mean @ axes)


def unit_rows(rows: Tensor, axes: Linear) -> Tensor:
    """Rows `[..., A]` along these axes, of length 1: `[..., r]`."""
    return F.normalize(axes(rows.double()).float(), dim=-1)


def gaussian(views: Gathered, classes: int, axes: Linear) -> Linear:
    """Logits `[..., C]` of scores `[..., A]`: GDA (arXiv:2402.04087) along these axes."""
    told = selection.discriminant(axes(views.rows), views.labels, classes)
    weight, bias = (len(views.rows) * (part - part.mean(0)) for part in told)
    return Linear(axes.weight @ weight.mT, axes.bias @ weight.mT + bias)


class Cache(NamedTuple):
    """Logits `[..., C]` of scores `[..., A]`, by the R views that they are like along the axes:
    Tip-Adapter's equation (arXiv:2207.09519, eq. 5), the values by kernel ridge regression.
    """

    axes: Linear
    keys: Tensor  # of length 1 `[R, r]`
    values: Tensor  # `[R, C]`

    def __call__(self, scores: Tensor) -> Tensor:
        return affinity(unit_rows(scores, self.axes), self.keys, BETA) @ self.values

    @classmethod
    def of(cls, views: Gathered, classes: int, axes: Linear) -> Cache:
        keys, own = unit_rows(views.rows, axes), F.one_hot(views.labels, classes).float()
        gram = affinity(keys, keys, BETA)
        gram.diagonal().add_(RIDGE)
        return cls(axes, keys, torch.cholesky_solve(own - own.mean(0), torch.linalg.cholesky(gram)))


def components(s: Tensor, views: Gathered, noise: float) -> Linear:
    """The map to whitened scores, of mean square 1 a row where it is of `[N, A]`."""
    white = whitening(views, noise)
    norm = white(s).square().sum(1).mean().sqrt().clamp_min(1e-12)
    return Linear(white.weight / norm, white.bias / norm)


def fit(
    offset: Tensor,
    x: Tensor,
    labels: Tensor,
    penalty: float,
    seen: Tensor | None = None,
    start: Linear | None = None,
    steps: int = STEPS,
) -> Linear:
    """Minimise cross-entropies of `offset + x W + b` and `penalty / 2 |W|^2 + |b|^2 / 2`, summed.

    The most probable W and b under normal priors, which do not depend on the number of images: K
    convex problems at once by L-BFGS, in units in which the curvature along all components of x is
    about the same. Of offsets `[N, C]` or `[K, N, C]`, x `[N, r]` or `[K, N, r]` and labels `[N]`
    each sees the rows that `seen` tells `[K, N]`; by default, one sees all, from a start of 0.
    """
    share = x.new_ones(1, len(x)) if seen is None else seen.to(x)
    K, classes = len(share), offset.shape[-1]
    if start is None:
        start = Linear(x.new_zeros(K, x.shape[-1], classes), x.new_zeros(K, 1, classes))
    unit = (share.sum() / K * x.square().mean(-2) / classes + penalty).rsqrt()[..., None]
    parts = [(start.weight / unit).requires_grad_(), start.bias.clone().requires_grad_()]
    exact: Any = {"tolerance_grad": 1e-5, "tolerance_change": 1e-8, "history_size": 10}
    lbfgs = torch.optim.LBFGS(parts, max_iter=steps, line_search_fn="strong_wolfe", **exact)

    def loss() -> Tensor:
        lbfgs.zero_grad()
        now = Linear(parts[0] * unit, parts[1])
        logits = (offset + now(x)).mT
        errors = F.cross_entropy(logits, labels.expand(K, -1), reduction="none")
        prior = penalty * now.weight.square().sum() + now.bias.square().sum()
        value = (errors * share).sum() + prior / 2
        value.backward()
        return value

    with torch.enable_grad():
        lbfgs.step(loss)
    return Linear((parts[0] * unit).detach(), parts[1].detach())


Form = Callable[[Gathered, int, Linear], Linear | Cache]


class Task(NamedTuple):
    """What is fitted to, about N images, A further texts and C classes."""

    z: Tensor  # zero-shot at its own temperature [N, C]
    s: Tensor  # scores of the further texts [N, A]
    x: Tensor  # the same, whitened [N, r]
    white: Linear  # what whitens them
    views: Gathered  # of all images
    noise: float  # the step that scores were rounded to
    labels: Tensor  # [N]
    folds: Tensor  # [N]
    usual: Tensor  # what the shares of the classes among the images add [C]
    axes: Linear  # of the closed forms: no label has a part in them
    forms: tuple[Form, ...]  # that may stand beside the convex one
    bold: float  # how far images are believed by themselves, from 0 to 1
    doubt: float  # how far they are known to differ from what the texts tell, likewise

    def part(self) -> tuple[Task, Tensor, Tensor]:
        """The task of part of the classes, spread over all, where all would take long; the numbers
        of these classes and of their images.
        """
        size = (len(self.s) * min(len(self.s), self.s.shape[1]) * self.z.shape[1] / WORK) ** 0.5
        step = max(1.0, min(size, self.z.shape[1] / 2))  # two classes at least
        some = torch.arange(0, self.z.shape[1], step, device=self.z.device).long().unique()
        images = torch.isin(self.labels, some).nonzero()[:, 0]
        seen, find = self.views.part(torch.isin(self.views.index, images)), torch.searchsorted
        views = replace(seen, labels=find(some, seen.labels), index=find(images, seen.index))
        small = self._replace(
            z=self.z[images][:, some],
            s=self.s[images],
            x=self.x[images],
            views=views,
            labels=find(some, self.labels[images]),
            folds=self.folds[images],
            usual=self.usual[some],
        )
        return small, some, images


class Choice(NamedTuple):
    """How the parts of a head are joined."""

    share: float  # of zero-shot's own temperature
    penalty: float
    factor: float  # of all logits
    added: float  # weight of the closed form's
    trust: float  # share of what is learnt that is added to zero-shot
    form: Form
    pull: float = PULLS[0]  # of neighbours, in a pool


def chosen_for(task: Task, z_alone: Tensor, s_alone: Tensor, many: bool) -> Choice:
    """That at which held-out images surprise least.

    They are judged by un-augmented views alone (`z_alone` `[N, C]`, `s_alone` `[N, A]`), as in
    evaluation, beside a prior. That alone decides where every image is the only one of its
    class: from all of zero-shot where `bold` is 0, at a penalty of 0.3, or more where zero-shot is
    worth much (the spread of its logits is above 1), to half of it at 0.1 where it is 1. The
    closed forms are weighed alone first, beside that share, then the trust, then what neighbours
    are worth in a pool. Where images are `many`, those held out would whiten all no better.
    """
    z, s, views, labels = task.z, task.s, task.views, task.labels
    worth = selection.spread(z)
    penalty = 3 * max(1.0, worth) ** (8 * task.doubt)
    usual_share, centre = 2.0**-task.bold, min(10.0, 0.1 * penalty ** (1 - task.bold))
    usually = min(10.0, max(worth, 1e-3) ** -1.5)
    out = selection.judged(labels)
    numbers = task.folds[out].unique()
    if len(numbers) < 2:  # by val, where zero-shot about keeps its temperature
        normal = gaussian(views, z.shape[1], task.axes)(s.double())
        added = 0.03 * usually**2 * worth / max(selection.spread(normal), 1e-12)
        return Choice(usual_share, centre, 0.8 * 2.7**task.bold, added, 1.0, gaussian)
    held_out = (task.folds == numbers[:, None]) & out
    others = [views.part(~rows[views.index]) for rows in held_out]
    if many:
        x, x_alone = task.x, task.white(s_alone)
    else:
        maps = [components(s, part, task.noise) for part in others]
        r = max(white.weight.shape[1] for white in maps)
        x, x_alone = (
            torch.stack([F.pad(white(rows), (0, r - white.weight.shape[1])) for white in maps])
            for rows in (s, s_alone)
        )
    told = labels.expand(len(held_out), -1)[held_out]
    known, weighed = (usual_share * z_alone).expand(len(held_out), -1, -1)[held_out], []
    for form in task.forms:
        fits = [form(part, z.shape[1], task.axes) for part in others]
        normal, normal_alone = (
            torch.stack([logits(rows.double()) for logits in fits]).to(z) for rows in (s, s_alone)
        )
        unit = worth / max(selection.spread(normal.flatten(0, 1)), 1e-12)
        for ratio in RATIOS:
            cost = selection.surprise(known + ratio * unit * normal_alone[held_out], told)
            cost += selection.away(ratio, usually, 0.5)
            weighed.append((cost, ratio * unit, form, normal, normal_alone))
    _, added, form, normal, normal_alone = min(weighed, key=lambda tried: tried[0])
    tries = []
    for share, weight in (*((share, 0.0) for share in SHARES), (usual_share, added)):
        prior, found = share * z + weight * normal, None
        known = (share * z_alone).expand_as(normal_alone)[held_out]
        for penalty in PENALTIES:
            found = fit(prior + task.usual, x, labels, penalty, ~held_out, found, PATH_STEPS)
            learnt = (weight * normal_alone + found(x_alone))[held_out]
            cost = selection.surprise(known + learnt, told)
            cost += selection.away(share, usual_share, WIDTHS[0])
            cost += selection.away(penalty, centre, WIDTHS[1])
            tries.append((cost, share, penalty, weight, known, learnt))
    _, share, penalty, added, known, learnt = min(tries, key=lambda tried: tried[0])
    costs = {t: selection.surprise(known + t * learnt, told) + 2 * (1 - t) ** 2 for t in TRUSTS}
    trust = min(TRUSTS, key=costs.__getitem__)
    answers = known + trust * learnt
    factor = selection.sharpness(answers, told, prior=1.0)
    own = (SHARPER * factor * answers).softmax(1)
    near = neighbours(s_alone[held_out.nonzero()[:, 1]])
    costs = {p: selection.surprise(settled(own, near, p), told) - p / 3 for p in PULLS}
    pull = min(PULLS, key=costs.__getitem__)
    if not trust:
        share, factor = 1.0, factor * share
    return Choice(share, penalty, factor, added, trust, form, pull)


def raised(task: Task, chosen: Choice) -> float:
    """What is added to the logits of classes without images, so that they can compete with others.

    One half of the classes is learnt without some of the images, then the other; of `LEVELS`, at
    the chosen one the fewest of these are mistaken, beside a prior. 0 with one image a class.
    """
    (share, penalty, factor, added, trust, form, _), z, views = chosen, task.z, task.views
    labels, out = task.labels, selection.judged(task.labels)
    if not out.any():
        return 0.0
    out &= task.folds == task.folds[out][0]
    costs = torch.tensor([(level / 3) ** 2 / 2 for level in LEVELS])
    for part in range(2):
        known, new = (torch.arange(first, z.shape[1], 2) for first in (part, 1 - part))
        place = torch.cat([known, new]).argsort().to(labels)[labels]
        rows = (place < len(known)) & ~out
        prior, normal = share * z[:, known], torch.zeros_like(z[:, known])
        if added:
            seen = views.part(rows[views.index])
            closed = form(replace(seen, labels=place[seen.index]), len(known), task.axes)
            normal = added * closed(task.s.double()).to(z)
        start = (prior + normal + task.usual[known])[rows]
        found = fit(start, task.x[rows], place[rows], penalty)(task.x)[0]
        learnt = (prior + trust * (normal + found))[out]
        fresh, means = share**0.5, z[rows].mean(0)
        level = task.bold * (share * means[known].mean() - fresh * means[new])
        others = fresh * z[out][:, new] + level
        for number, more in enumerate(LEVELS):
            answers = torch.cat([learnt, others + more / factor], 1).argmax(1)
            costs[number] += (answers != place[out]).sum().item()
    return LEVELS[int(costs.argmin())]


def needed(gram: Tensor, target: Tensor, first: int, count: int) -> list[int]:
    """Columns that explain most of a target, beside the `first` ones: orthogonal matching pursuit.

    Of columns R `[N, A]` and a target F `[N, C]` it is given `R^T R` and `R^T F`, and uses them up.
    """
    least = 1e-6 * gram.diagonal().mean()
    new, chosen = list(range(first)), list[int]()
    while len(chosen) < count:
        inner = gram[new][:, new]
        slope = torch.linalg.solve(inner + least * torch.eye(len(new)).to(inner), gram[new])
        target.addmm_(slope.mT, target[new], alpha=-1)
        gram.addmm_(slope.mT, gram[new], alpha=-1)
        left = gram.diagonal()
        worth = target.square().sum(1) / left.clamp_min(least)
        worth[left <= least] = -1.0
        worth[:first] = worth[chosen] = -2.0
        new = worth.topk(min(-(-count // BLOCKS), count - len(chosen))).indices.tolist()
        chosen += new
    return sorted(column - first for column in chosen)


class ScoreHead(nn.Module):
    """`scale_c z_c + s M_c + b_c`: z are the scores of the class texts, s those of further texts.

    It begins as the model's own answer about the classes. A class that it has seen no image of has
    its zero-shot score less the mean of that over the training images, times their `agreement` with
    the class texts. On its own classes, `names`, it reads the class texts and the `kept` ones of
    its further texts; on others (`move`) all of these. Without further texts s are the scores of
    the class texts, and where only the largest are let out, those of both: then it cannot move.
    """

    class_bound = True  # a class is a number of its own to it

    def __init__(self, names: Sequence[str], further: int = 0, keep: int = 0) -> None:
        super().__init__()
        C, read = len(names), len(names) + keep
        self.names = self.classes = list(names)
        # of the classes without images: temperature, how much of the means they are less, level
        self.further, self.fresh, self.bold, self.level = further, 1.0, 0.0, 0.0
        self.tempered, self.pull = 1.0, PULLS[0]  # in a pool: factor of logits, neighbours' weight
        self.texts, self.template, self.kept = list[str](), "{}.", list(range(keep))
        # a checkpoint holds them as they are, whatever their shapes
        self.scale: Tensor = nn.Buffer(torch.ones(C), persistent=False)
        self.bias: Tensor = nn.Buffer(torch.zeros(C), persistent=False)
        self.matrix: Tensor = nn.Buffer(torch.zeros(further or C, C), persistent=False)
        self.short: Tensor = nn.Buffer(torch.zeros(read, C), persistent=False)
        self.short_bias: Tensor = nn.Buffer(torch.zeros(C), persistent=False)
        # of the cache [R, r], [R, C]: the last r columns of the matrices lead to its axes
        self.keys: Tensor = nn.Buffer(torch.zeros(0, 0), persistent=False)
        self.values: Tensor = nn.Buffer(torch.zeros(0, C), persistent=False)

    def get_extra_state(self) -> dict[str, Any]:
        tensors = {name: tensor.cpu() for name, tensor in self.named_buffers()}
        return {**{name: getattr(self, name) for name in HELD}, **tensors}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name, held in list(self.named_buffers()):
            setattr(self, name, state.get(name, held).to(held.device))
        for name in HELD:  # one that is missing was not there yet
            setattr(self, name, state.get(name, getattr(self, name)))

    @property
    def moves(self) -> bool:
        """Whether it can be asked about other classes: it reads further texts, and those alone."""
        return len(self.matrix) == self.further

    @property
    def at_home(self) -> bool:
        """Whether it is asked about its own classes."""
        return self.classes == self.names

    def read(self, scores: Tensor) -> Tensor:
        """What it is given of an image `[..., A]`, centred list by list."""
        return centred(scores, [len(self.classes)])

    def forward(self, scores: Tensor) -> Tensor:
        """Logits `[..., C]` of the class texts' and the further texts' scores `[..., A]`."""
        C, rows = len(self.classes), self.read(scores)
        if self.at_home:
            told = rows @ self.short + self.short_bias
        else:
            told = rows[..., C:] @ self.matrix + self.bias
        logits = self.scale * rows[..., :C] + told[..., :C]
        if len(self.keys):
            axes = F.normalize(told[..., C:], dim=-1)
            logits = logits + affinity(axes, self.keys, BETA) @ self.values
        return logits

    def pooled(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Probabilities `[N, C]` of pictures that were seen together, as sure as single ones are.

        The answers, of logits `[N, C]`, go with those of neighbours in what it read `[N, A]`: a
        picture without one that is like it keeps its own. A mean over neighbours is flatter: to a
        power it is on average as sure as the logits.
        """
        own = (SHARPER * self.tempered * logits).softmax(1)
        logs = settled(own, neighbours(rows), self.pull)
        sure = logits.double().softmax(1).amax(1).mean()
        trials = [(power * logs).softmax(1).to(logits) for power in POWERS]
        return min(trials, key=lambda trial: (trial.amax(1).mean() - sure).abs().item())

    def move(self, classes: Sequence[str], means: Tensor) -> None:
        """Be asked about other classes; means are of their centred scores in training `[C']`."""
        own = {name: number for number, name in enumerate(self.names)}
        known = torch.tensor([name in own for name in classes], device=means.device)
        source = [own.get(name, 0) for name in classes]
        self.classes = list(classes)
        axes = range(len(self.names), self.matrix.shape[1])
        self.scale, self.bias = self.scale[source], self.bias[[*source, *axes]]
        self.matrix = self.matrix[:, [*source, *axes]]
        self.matrix[:, : len(known)] *= known
        self.values = self.values[:, source] * known
        self.level_others(known, means)

    def level_others(self, known: Tensor, means: Tensor) -> None:
        """Of C classes those that are not `known` are zero-shot, less its means `[C]`."""
        level = (self.scale * means)[known].mean() if known.any() else 0.0
        bias = self.bold * (level - self.fresh * means) + self.level
        self.scale = torch.where(known, self.scale, self.fresh)
        self.bias[: len(known)][~known] = bias[~known]

    @torch.no_grad()
    def fit(self, gathered: Gathered, folds: Tensor) -> str:
        """Fit it to scores `[N, C + M]`, given the folds of the images; returns a line about that.

        Views of an image are averaged: they tell which differences between scores mean little.
        """
        C, rows = len(self.names), gathered.rows
        images, of_image = gathered.index.unique(return_inverse=True)
        mean = rows.new_zeros(len(images), rows.shape[1]).index_add_(0, of_image, rows)
        mean = self.read(mean.div_(of_image.bincount()[:, None]))
        first = (gathered.views == 0).nonzero()[:, 0]
        first = first[of_image[first].argsort()]  # the un-augmented view of each image
        labels = gathered.labels.new_zeros(len(images)).scatter_(0, of_image, gathered.labels)
        # whether only the largest scores of an image are let out
        cut = self.further and (rows[:, C:] == rows[:, C:].amin(1)[:, None]).sum(1).median() > 1
        z, s = mean[:, :C], mean[:, C:] if self.further and not cut else mean
        part, noise = sample(rows), resolution(rows)
        present = labels.unique()
        named = torch.searchsorted(present, gathered.labels[part])
        # by all views, so that what differs between views of an image counts for less
        views = Gathered(self.read(rows[part])[:, -s.shape[1] :].double(), named, of_image[part])
        white = components(s, views, noise)
        x = white(s)
        if not x.shape[1] or len(present) < 2:
            return "nothing is learnt, the head is zero-shot: too few images, or they score alike"
        told = torch.searchsorted(present, labels)
        # classes with more images than others are no likelier in evaluation
        usual = (told.bincount() / len(told) * len(present)).log()
        many = sample(z)
        temperature = selection.sharpness(z[many][:, present], told[many], prior=1.0)
        # without further texts there is nothing to agree with, and by val a quarter of the doubt
        bold = selection.agreement(z, s) if self.further else 0.0
        doubt = 1 - bold if self.further else 0.25
        zero_shot = temperature * z[:, present]
        folds, axes = folds.to(images.device)[images], whitening(views, noise, 0.5, mixed=False)
        # a cache has a key for every view, and by val gains nothing on the class texts alone
        forms: tuple[Form, ...] = (gaussian,)
        if self.further and len(views.rows) <= CACHE:
            forms += (Cache.of,)
        task = Task(
            zero_shot, s, x, white, views, noise, told, folds, usual, axes, forms, bold, doubt
        )
        small, classes, few = task.part()
        alone = self.read(rows[first[few]])
        single = temperature * alone[:, :C][:, present[classes]], alone[:, -s.shape[1] :]
        choice = chosen_for(small, *single, many=len(classes) < len(present))
        share, penalty, factor, added, trust, form, self.pull = choice
        # where zero-shot is left alone, so is that of classes without images
        self.bold = bold if trust else 0.0
        self.level = raised(small, choice) if self.further and trust else 0.0
        offset = share * zero_shot + usual
        if added:
            normal = form(views, len(present), axes)
            for scored, beside in zip(s.split(ROWS), offset.split(ROWS), strict=True):
                beside += added * normal(scored.double()).float()
        del views, task, small, alone, single, zero_shot
        found = fit(offset, x, told, penalty)
        del offset, x
        weight = found.weight[0].double()
        matrix, bias = white.weight @ weight, found.bias[0, 0].double() + white.bias @ weight
        learnt = factor * trust
        if added and isinstance(normal, Linear):
            matrix, bias = matrix + added * normal.weight, bias + added * normal.bias
        self.fresh = factor * temperature * share**0.5
        # chosen at the temperature of the fit, which with one image a class is lower
        self.tempered = 1.0 if selection.judged(labels).any() else 1 / factor
        self.scale = z.new_full((C,), factor * share * temperature)
        self.matrix, self.bias = z.new_zeros(s.shape[1], C), z.new_zeros(C)
        self.keys, self.values = z.new_zeros(0, 0), z.new_zeros(0, C)
        self.matrix[:, present], self.bias[present] = learnt * matrix.float(), learnt * bias.float()
        if added and isinstance(normal, Cache):
            self.matrix = torch.cat([self.matrix, axes.weight.float()], 1)
            self.bias = torch.cat([self.bias, axes.bias.float()])
            self.keys, self.values = normal.keys, z.new_zeros(len(normal.keys), C)
            self.values[:, present] = learnt * added * normal.values
        self.level_others(labels.bincount(minlength=C) > 0, z.mean(0))
        del mean, z, s
        if cut:  # which texts are among the largest depends on those that are asked about
            self.kept = list(range(self.further))
        self.shorten(rows[part], noise)
        with_form = (" and a cache" if len(self.keys) else " and a Gaussian") if added else ""
        how = "chosen on held-out images" if selection.judged(labels).any() else "one image a class"
        return (
            f"head on {rows.shape[1]:,} scores, {white.weight.shape[1]} components; {share:.2g} of "
            f"zero-shot{with_form}, penalty {penalty:.2g}, {trust:.0%} of what is learnt, {how}"
        )

    def shorten(self, scores: Tensor, noise: float) -> None:
        """Choose the further texts that are kept, and explain the same logits by them.

        A ridge regression on scores `[N, C + M]` of views; where all are kept nothing changes.
        """
        C, count = len(self.names), len(self.kept)
        if count == self.further:
            self.short = self.matrix.new_zeros(C + count, self.matrix.shape[1])
            self.short[-len(self.matrix) :] = self.matrix
            self.short_bias = self.bias.clone()
            return
        rows = self.read(scores).double()
        logits = rows[:, C:] @ self.matrix.double()
        target = logits - logits.mean(0)
        rows -= rows.mean(0)
        # what explains the linear logits explains the axes too
        self.kept = needed(rows.mT @ rows, rows.mT @ target[:, :C], C, count)
        del rows
        columns = self.read(torch.cat([scores[:, :C], scores[:, C:][:, self.kept]], 1)).double()
        middle = columns.mean(0)
        columns -= middle
        gram = columns.mT @ columns
        gram.diagonal().add_(1e-5 * gram.diagonal().mean() + len(columns) * noise**2 / 12)
        short = torch.linalg.solve(gram, columns.mT @ target)
        self.short = short.float()
        self.short_bias = self.bias + (logits.mean(0) - middle @ short).float()


def axes_of(rows: Tensor) -> Linear:
    """Whitened axes of rows `[N, A]`: cosines along these tell which pictures are alike."""
    mean = rows.double().mean(0)
    centred = rows.double() - mean
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    values = values.clamp_min(0)
    ridge = RIDGE * values[values >= 1e-6 * values[-1]].mean()
    # rows that are all alike have no spread
    axes = vectors * (values + ridge).clamp_min(1e-30).rsqrt()
    return Linear(axes, -mean @ axes)


def neighbours(rows: Tensor) -> Tensor:
    """Sparse symmetric weights `[N, N]`: of pairs of rows `[N, A]` that are near, cos^3, or half of
    that where only one is among the nearest of the other.
    """
    rows = torch.linalg.qr(rows.double().mT, mode="r").R.mT  # as far apart, in N dimensions at most
    z = unit_rows(rows, axes_of(rows))
    n, pairs, weights = len(z), [], []
    for first in range(0, n, CHUNK):
        cosines = z[first : first + CHUNK] @ z.mT
        cosines.diagonal(first).fill_(-2)
        values, others = cosines.topk(min(NEIGHBOURS, n - 1), dim=1)
        mine = torch.arange(first, first + len(others)).to(others)[:, None].expand_as(others)
        pairs.append(torch.stack([mine, others]).flatten(1))
        weights.append(values.clamp_min(0).flatten() ** CUBED)
    pair, weight = torch.cat(pairs, 1), torch.cat(weights).repeat(2) / 2
    both = torch.cat([pair, pair.flip(0)], 1)
    return torch.sparse_coo_tensor(both, weight, (n, n), check_invariants=True).coalesce()


def settled(own: Tensor, weights: Tensor, pull: float) -> Tensor:
    """Logarithms of `F <- (Y + pull W F) / (1 + pull W 1)` from answers Y `[N, C]` on."""
    total, answer = 1 + pull * torch.sparse.sum(weights, 1).to_dense()[:, None], own
    for _ in range(ROUNDS):
        answer = (own + pull * (weights @ answer)) / total
    return answer.double().clamp_min(1e-30).log()
