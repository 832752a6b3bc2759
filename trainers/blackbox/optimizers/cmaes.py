"""CMA-ES (Hansen, 2016), by the `cma` package: the optimiser of CraFT and BPT-VLM."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..run.errors import BlackBoxError, one_of
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

    An array that stands in two places becomes one tensor, so that it comes back as one.
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
        BlackBoxError: options that are unknown (with pycma's own message) or have a setting of
            their own, bounds that exclude the start, an impossible population.
    """

    population: int

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
        one_of("covariance model (COVARIANCE)", covariance, COVARIANCES)
        one_of("result (mean or best)", result, RESULTS)
        if population < 2 or sigma <= 0:
            raise BlackBoxError(
                f"CMA-ES needs a population of 2 or more and a positive SIGMA; given are "
                f"{population} and {sigma}."
            )
        if bound and start.abs().max() >= bound:
            raise BlackBoxError(
                f"The bounds ±{bound} exclude the start, whose largest coordinate is "
                f"{start.abs().max():.3g}. Widen BOUND, or set it to 0."
            )
        if len(options) % 2:
            raise BlackBoxError(
                f"CMA_OPTIONS is a list of pairs [key, value, ...]; {list(options)} has an odd "
                f"number of entries."
            )
        self.population, self.result, self.device, self.dtype = (
            population,
            result,
            start.device,
            start.dtype,
        )
        cma = import_cma()
        self.numpy_state: Any = np.random.RandomState(seed % 2**32).get_state()
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
        if "popsize" in options[::2]:
            raise BlackBoxError("CMA_OPTIONS holds 'popsize', which POPULATION sets. Remove it.")
        with self.pycma("refuses its options (CMA_OPTIONS)"), warnings.catch_warnings():
            # pycma 4.5 says so of its own default
            warnings.filterwarnings("ignore", message=".*not a safe string")
            settings.update(zip(options[::2], options[1::2], strict=True))
            self.es = cma.CMAEvolutionStrategy(start.double().cpu().numpy(), sigma, settings)
        self.best, self.best_loss = start.clone(), float("inf")
        self.asked: Any = None  # the generation, a list of vectors, until its losses are told
        self.param_groups = [{"params": [], "lr": float(sigma)}]

    @contextmanager
    def pycma(self, trouble: str) -> Iterator[None]:
        """Within this context NumPy's global random state is ours.

        Raises:
            BlackBoxError: whatever pycma raised, after `trouble`.
        """
        outside = np.random.get_state()
        np.random.set_state(self.numpy_state)
        try:
            yield
        except Exception as e:
            text = " ".join(str(e).split())[:600] or type(e).__name__
            raise BlackBoxError(f"pycma {trouble}: {text}") from e
        finally:
            self.numpy_state = np.random.get_state()
            np.random.set_state(outside)

    @property
    def solution(self) -> torch.Tensor:
        if self.result == "best":
            return self.best
        # with bounds, the mean of what was sampled before it was folded into them
        return torch.as_tensor(np.asarray(self.es.result.xfavorite)).to(self.device, self.dtype)

    def ask(self) -> torch.Tensor:
        """A generation `[population, d]`."""
        with self.pycma(FAILED):
            self.asked = self.es.ask()
        return torch.as_tensor(np.stack(self.asked)).to(self.device, self.dtype)

    def tell(self, losses: torch.Tensor) -> None:
        """Update mean, step size and covariance. Losses `[population]`."""
        values = losses.double().cpu().numpy()
        if not np.isfinite(values).all():
            raise BlackBoxError(
                f"CMA-ES was told {(~np.isfinite(values)).sum()} losses of {len(values)} that are "
                f"not finite."
            )
        with self.pycma(FAILED):
            self.es.tell(self.asked, values.tolist())
        i = int(values.argmin())
        if values[i] < self.best_loss:
            self.best_loss = float(values[i])
            self.best = torch.as_tensor(self.asked[i]).to(self.device, self.dtype)
        self.asked = None
        self.param_groups[0]["lr"] = float(self.es.sigma)

    def state_dict(self) -> dict[str, Any]:
        name, keys, position, has_gauss, cached = self.numpy_state
        return {
            "es": numbers(self.es, {}),
            "best": self.best,
            "best_loss": self.best_loss,
            "random": {
                "name": name,
                "keys": torch.from_numpy(keys.astype(np.int64)),
                "position": int(position),
                "has_gauss": int(has_gauss),
                "cached": float(cached),
            },
        }

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
        self.best, self.best_loss = state["best"].to(self.device, self.dtype), state["best_loss"]
        r = state["random"]
        self.numpy_state = (
            r["name"],
            r["keys"].cpu().numpy().astype(np.uint32),
            r["position"],
            r["has_gauss"],
            r["cached"],
        )
        self.param_groups[0]["lr"] = float(self.es.sigma)
