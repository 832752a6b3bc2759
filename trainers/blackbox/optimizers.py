"""Optimisers that ask and are told: SPSA, random directions, CMA-ES, and JOLT's Gauss-Newton."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import BlackBoxError, first_line
from .losses import mean_cross_entropies, softmax_model
from .rng import numpy_state, set_numpy_state


class Optimizer:
    """Moves a vector `theta [d]`, in use, by what it is told about the candidates that it asks for.

    Dassl logs, saves and resumes it like any other: between steps, never between rounds. Its state
    is its random source and the attributes, tensors and numbers, that `saved` names.
    """

    rounds = 1  # how often it asks and is told about one mini-batch: a step
    population: int  # candidates of a step, in all its rounds
    ask: Callable[[], Tensor]  # candidates `[P, d]`, on the device of the start
    # losses `[P]` in their order, or, where `told` is "logits", these `[P, B, C]` and labels `[B]`
    tell: Callable[..., None]
    told = "losses"
    # after `tell`, the candidate that is in use, from whose answer a head may learn; or none is
    in_use: int | None = None
    rate: Callable[[], float]  # the step size
    saved: tuple[str, ...] = ("theta",)

    def __init__(self, start: Tensor, seed: int) -> None:
        self.theta = start.clone()
        self.generator = torch.Generator().manual_seed(seed)  # so that all devices draw alike

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": [], "lr": self.rate()}]

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.saved}
        return {**state, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.saved:
            if isinstance(value := getattr(self, name), Tensor):
                value.copy_(state[name])
            else:
                setattr(self, name, state[name])
        self.generator.set_state(state["generator"].cpu())


RULES = ("spsa-clip", "spsa-gc", "spsa")
GAINS = {"o": 1.0, "c": 0.01, "a": 0.01, "alpha": 0.4, "gamma": 0.1, "beta": 0.8}


class SPSA(Optimizer):
    """Simultaneous perturbation (Spall, IEEE TAC 1992): `theta -= a_k g`, the mean of `average` g.

    `g = (l(theta + c_k z) - l(theta - c_k z)) / (2 c_k z)` elementwise; z has entries of magnitude
    `U[0.5, 1]` and random sign. `a_k = a / (k + o)^alpha` and `c_k = c / k^gamma`, k from 1.

    The rule `spsa-clip` rescales g to norm sqrt(d) where it is longer (ZIP, ICLR 2025, section
    4.2); `spsa-gc` keeps `m <- beta m + g` and steps along `g + beta m` (BlackVIP, CVPR 2023).
    """

    saved = ("theta", "momentum", "k")

    def __init__(
        self, start: Tensor, rule: str = RULES[0], average: int = 5, seed: int = 0, **gains: float
    ) -> None:
        assert rule in RULES
        super().__init__(start, seed)
        self.rule, self.average, self.population = rule, average, 2 * average
        self.o, self.c, self.a, self.alpha, self.gamma, self.beta = (GAINS | gains).values()
        self.momentum, self.k = torch.zeros_like(start), 1

    def rate(self) -> float:
        return self.a / (self.k + self.o) ** self.alpha

    def ask(self) -> Tensor:
        """Candidates `[2 average, d]`: all `theta + c_k z`, then all `theta - c_k z`."""
        shape = self.average, len(self.theta)
        magnitude = 0.5 + 0.5 * torch.rand(shape, generator=self.generator)
        sign = torch.randint(0, 2, shape, generator=self.generator) * 2 - 1
        self.z, self.c_k = (magnitude * sign).to(self.theta), self.c / self.k**self.gamma
        return torch.cat([self.theta + self.c_k * self.z, self.theta - self.c_k * self.z])

    def estimate(self, losses: Tensor) -> Tensor:
        """g `[d]`, before clipping, from the losses `[2 average]` of the last candidates."""
        plus, minus = losses.to(self.z).split(self.average)
        return ((plus - minus)[:, None] / (2 * self.c_k * self.z)).mean(0)

    def tell(self, losses: Tensor) -> None:
        g = self.estimate(losses)
        if self.rule == "spsa-clip":
            g = g * (math.sqrt(len(g)) / g.norm()).clamp(max=1)
        elif self.rule == "spsa-gc":
            self.momentum = self.beta * self.momentum + g
            g = g + self.beta * self.momentum
        self.theta = self.theta - self.rate() * g
        self.k += 1


class OneSided(Optimizer):
    """The estimate `g = (scale / q) sum_j u_j (l(theta + eps u_j) - l(theta)) / eps`.

    The u_j are uniform on the unit sphere. With `scale = d` its mean on a linear function is the
    gradient, since `E[u u^T] = I / d`.
    """

    in_use = 0  # theta before the step: to ask about that after it would cost a query

    def __init__(self, start: Tensor, q: int, eps: float, scale: float, seed: int) -> None:
        super().__init__(start, seed)
        self.q, self.eps, self.scale, self.population = q, eps, scale, q + 1

    def ask(self) -> Tensor:
        """Candidates `[q + 1, d]`: theta, then all `theta + eps u_j`."""
        u = torch.randn(self.q, len(self.theta), generator=self.generator)
        self.u = (u / u.norm(dim=1, keepdim=True)).to(self.theta)
        return torch.cat([self.theta[None], self.theta + self.eps * self.u])

    def estimate(self, losses: Tensor) -> Tensor:
        """g `[d]`, before clipping, from the losses `[q + 1]` of the last candidates."""
        losses = losses.to(self.u)
        slopes = (losses[1:] - losses[0]) / self.eps
        return slopes @ self.u / (self.q / self.scale)


# Restricted models of the covariance cost a tenth at a thousand dimensions, and less memory.
COVARIANCES = {"full": "", "diagonal": "", "vd": "GaussVDSampler", "vkd": "GaussVkDSampler"}


class CMAES(Optimizer):
    """CMA-ES (Hansen, arXiv:1604.00772) by pycma: asks for a generation, is told its losses.

    Its own stop criteria are ignored: the budget decides. The step size follows cumulative
    step-size adaptation (CSA) in every dimension, unless `options` set `AdaptSigma`; with vkd it
    has that model's own rule. Whatever pycma raises is a BlackBoxError.

    Its state is what it was told; loading asks and tells anew, which leads to the same numbers (ten
    generations a second in 1,000 dimensions).
    """

    saved = ("start", "seed", "history")

    def __init__(
        self,
        start: Tensor,  # mean of the first generation `[d]`
        sigma: float,  # initial step size
        population: int,
        bound: float,  # every coordinate stays within plus and minus this; 0: no bounds
        covariance: str,  # full, diagonal, vd or vkd (a diagonal and one, or k, directions)
        result: str,  # what is in use: the distribution's `mean`, or the `best` candidate so far
        options: Sequence[Any],  # of pycma, further ones: `[key, value, key, value]`
        seed: int,
    ) -> None:
        super().__init__(start, seed)
        self.population, self.result, self.start = population, result, start.clone()
        self.seed, self.history, self.options = seed, list[list[float]](), options
        with warnings.catch_warnings():  # pycma plots, we do not
            warnings.filterwarnings("ignore", "Could not import matplotlib")
            import cma  # here, since it takes longer than the rest of this package
        self.settings: dict[str, Any] = {
            "popsize": population,
            "bounds": [-bound, bound] if bound else [None, None],
            "CMA_diagonal": covariance == "diagonal",
            # pycma's default is another rule from 300 dimensions on
            "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
            "seed": np.nan,
            "verbose": -10,  # neither logs nor reads files
        }
        if sampler := COVARIANCES[covariance]:
            self.settings |= getattr(cma.restricted_gaussian_sampler, sampler).extend_cma_options()
        self.strategy = partial(cma.CMAEvolutionStrategy, sigma0=sigma)
        self.begin()

    def begin(self) -> None:
        """Go to the first generation."""
        self.theta, self.best_loss = self.start.clone(), float("inf")
        self.random = numpy_state(np.random.RandomState(self.seed % 2**32))
        with self.pycma():
            settings = self.settings | dict(zip(self.options[::2], self.options[1::2], strict=True))
            self.es = self.strategy(self.start.double().cpu().numpy(), inopts=settings)

    @contextmanager
    def pycma(self) -> Iterator[None]:
        """Within this context NumPy's global random state, which pycma draws from, is ours."""
        outside = numpy_state()
        set_numpy_state(self.random)
        try:
            yield
        except Exception as e:
            cure = "Check BOUND, SIGMA and CMA_OPTIONS, or train anew in another --output-dir."
            raise BlackBoxError(f"pycma failed: {first_line(e)}. {cure}") from e
        finally:
            self.random = numpy_state()
            set_numpy_state(outside)

    def vector(self, x: Any) -> Tensor:
        return torch.as_tensor(np.asarray(x)).to(self.theta)

    def rate(self) -> float:
        return float(self.es.sigma)

    def ask(self) -> Tensor:
        with self.pycma():
            self.asked = self.es.ask()
        return self.vector(self.asked)

    def tell(self, losses: Tensor) -> None:
        values = losses.tolist()
        self.history.append(values)
        with self.pycma():
            self.es.tell(self.asked, values)
        if self.result == "mean":  # with bounds, of what was sampled before it was folded into them
            self.theta = self.vector(self.es.result.xfavorite)
        elif min(values) < self.best_loss:
            self.best_loss = min(values)
            self.theta = self.vector(self.asked[values.index(self.best_loss)])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with self.pycma():
            super().load_state_dict(state)
        told, self.history = self.history, []
        self.begin()
        for losses in told:
            self.ask()
            self.tell(torch.as_tensor(losses, dtype=torch.float64))


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
    here: Any = None  # the answer about theta, logits `[B, C]`, between the rounds
    asked: Any  # candidates; in the second round, directions and steps

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
        self.in_use = best = int((losses + penalties).argmin())
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
