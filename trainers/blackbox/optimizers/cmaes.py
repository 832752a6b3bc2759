"""CMA-ES (Hansen, 2016), by the `cma` package: the optimiser of CraFT and BPT-VLM."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..errors import BlackBoxError
from ..run.rng import numpy_state, set_numpy_state
from .contract import Optimizer

# Restricted models of the covariance cost a tenth at a thousand dimensions, and less memory.
COVARIANCES = {
    "full": None,
    "diagonal": "diagonal",
    "vd": "GaussVDSampler",
    "vkd": "GaussVkDSampler",
}
RESULTS = ("mean", "best")
PLAIN = (bool, int, float, type(None))
FAILED = "failed, by its numbers or by options that do not fit (CMA_OPTIONS, SIGMA)"


def import_cma() -> ModuleType:
    """pycma, which takes longer to import than the rest of this package."""
    with warnings.catch_warnings():
        # pycma plots, we do not
        warnings.filterwarnings("ignore", message="Could not import matplotlib")
        import cma
        import cma.restricted_gaussian_sampler
        import cma.sigma_adaptation
    return cma


def of_pycma(thing: Any) -> bool:
    return type(thing).__module__.partition(".")[0] == "cma"


def numbers(thing: Any, seen: dict[int, Any]) -> Any:
    """The numbers of an object of pycma by attribute, arrays as tensors; `...` for all else.

    An array that stands in two places becomes one tensor, so that it comes back as one. A
    checkpoint holds no object: to load one would run what it says.
    """
    if isinstance(thing, np.ndarray) and thing.dtype.kind in "biuf":
        # in its own order in memory, on which the last digits of a product depend
        return seen.setdefault(id(thing), torch.from_numpy(thing.copy("K")))
    if isinstance(thing, np.generic):
        return thing.item()
    if type(thing) in (list, range):
        entries = [numbers(entry, seen) for entry in thing]
        return ... if any(entry is ... for entry in entries) else entries
    if of_pycma(thing) and id(thing) not in seen:
        seen[id(thing)] = ...
        parts = {name: numbers(value, seen) for name, value in vars(thing).items()}
        return {name: part for name, part in parts.items() if part is not ...}
    return thing if isinstance(thing, PLAIN) else ...


def put_back(thing: Any, found: dict[str, Any]) -> None:
    """Give an object the numbers that `numbers` told; of what else a file may hold, none."""
    for name, part in found.items():
        if not isinstance(part, dict):
            setattr(thing, name, arrays(part))
        elif of_pycma(inner := vars(thing).get(name)):
            put_back(inner, part)


def arrays(part: Any) -> Any:
    if isinstance(part, list):
        return [arrays(entry) for entry in part]
    if not isinstance(part, (*PLAIN, torch.Tensor)):
        raise TypeError(f"a {type(part).__name__} is no number")
    return part.cpu().numpy() if isinstance(part, torch.Tensor) else part


class CMAES(Optimizer):
    """Asks for a generation, is told its losses.

    Its own stop criteria are ignored: the budget decides. The step size follows cumulative
    step-size adaptation (CSA) in every dimension, unless `options` set `AdaptSigma`; with vkd it
    has that model's own rule.

    Args:
        start: mean of the first generation `[d]`.
        sigma: initial step size.
        population: candidates of a generation.
        bound: every coordinate stays within plus and minus this; 0 means no bounds.
        covariance: full, diagonal, vd or vkd (a diagonal and one, or k, directions).
        result: what `solution` is: the distribution's `mean`, or the `best` candidate so far by its
            loss when it was scored.
        options: pairs of further options of pycma, as one list `[key, value, key, value]`.
        seed: of a random source of its own; NumPy's global state, which pycma draws from, is put
            back after each call.

    Raises:
        BlackBoxError: what pycma raises: options that are unknown or do not fit, bounds that
            exclude the start.
    """

    def __init__(
        self,
        start: torch.Tensor,
        sigma: float,
        population: int,
        bound: float = 0.0,
        covariance: str = "full",
        result: str = "mean",
        options: Sequence[Any] = (),
        seed: int = 0,
    ) -> None:
        self.population, self.result = population, result
        self.best, self.best_loss = start.clone(), float("inf")
        self.random = numpy_state(np.random.RandomState(seed % 2**32))
        cma = import_cma()
        settings: dict[str, Any] = {
            "popsize": population,
            "seed": np.nan,
            "verbose": -9,
            "verb_log": 0,
            "signals_filename": None,
            # pycma's default is another rule from 300 dimensions on
            "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
        }
        if bound:
            settings["bounds"] = [-bound, bound]
        if covariance == "diagonal":
            settings["CMA_diagonal"] = True
        elif sampler := COVARIANCES[covariance]:
            settings.update(getattr(cma.restricted_gaussian_sampler, sampler).extend_cma_options())
        with self.pycma("refuses the start (BOUND) or CMA_OPTIONS"), warnings.catch_warnings():
            # pycma 4.5 says so of its own default
            warnings.filterwarnings("ignore", message=".*not a safe string")
            settings.update(zip(options[::2], options[1::2], strict=True))
            self.es = cma.CMAEvolutionStrategy(start.double().cpu().numpy(), sigma, settings)
        self.asked: Any = None  # the generation, a list of vectors, until its losses are told

    @contextmanager
    def pycma(self, trouble: str) -> Iterator[None]:
        """Within this context NumPy's global random state is ours.

        Raises:
            BlackBoxError: whatever is raised in it, after `trouble`.
        """
        outside = numpy_state()
        set_numpy_state(self.random)
        try:
            yield
        except Exception as e:
            text = " ".join(str(e).split())[:600] or type(e).__name__
            raise BlackBoxError(f"pycma {trouble}: {text}") from e
        finally:
            self.random = numpy_state()
            set_numpy_state(outside)

    def vector(self, x: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(x)).to(self.best)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # read only
        return [{"params": [], "lr": float(self.es.sigma)}]

    @property
    def solution(self) -> torch.Tensor:
        # with bounds, the mean of what was sampled before it was folded into them
        return self.best if self.result == "best" else self.vector(self.es.result.xfavorite)

    def ask(self) -> torch.Tensor:
        """A generation `[population, d]`."""
        with self.pycma(FAILED):
            self.asked = self.es.ask()
        return self.vector(self.asked)

    def tell(self, losses: torch.Tensor) -> None:
        """Update mean, step size and covariance. Losses `[population]`."""
        values = losses.tolist()
        with self.pycma(FAILED):
            self.es.tell(self.asked, values)
        if min(values) < self.best_loss:
            self.best_loss = min(values)
            self.best = self.vector(self.asked[values.index(self.best_loss)])

    def state_dict(self) -> dict[str, Any]:
        best = {"best": self.best, "best_loss": self.best_loss}
        return {"es": numbers(self.es, {}), **best, "random": self.random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back the numbers of an optimiser that was made with the same arguments."""
        with self.pycma("cannot go on from this checkpoint (train anew in another --output-dir)"):
            found = dict(state["es"])
            done = found["countiter"]
            for before in sorted({0, done - 1}) if done else ():
                # a generation makes the parts that pycma makes on the way, the first and the last
                asked, self.es.countiter = self.es.ask(), before
                self.es.tell(asked, [float(i) for i in range(self.population)])
            put_back(self.es, found)
        self.best, self.best_loss = state["best"].to(self.best), state["best_loss"]
        self.random = state["random"]
