"""CMA-ES (Hansen, arXiv:1604.00772), by the `cma` package: the optimiser of CraFT and BPT-VLM."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BlackBoxError, first_line
from ..rng import numpy_state, set_numpy_state
from .contract import Optimizer

# Restricted models of the covariance cost a tenth at a thousand dimensions, and less memory.
COVARIANCES = {"full": "", "diagonal": "", "vd": "GaussVDSampler", "vkd": "GaussVkDSampler"}
RESULTS = ("mean", "best")
PLAIN = (bool, int, float, type(None))


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
    if type(thing).__module__.startswith("cma.") and id(thing) not in seen:
        seen[id(thing)] = ...
        parts = {name: numbers(value, seen) for name, value in vars(thing).items()}
        return {name: part for name, part in parts.items() if part is not ...}
    return thing if isinstance(thing, PLAIN) else ...


def restored(thing: Any, part: Any) -> Any:
    """A thing with the numbers that `numbers` told of it, and none of what else a file may hold."""
    if isinstance(part, dict) and type(thing).__module__.startswith("cma."):
        for name, value in part.items():
            setattr(thing, name, restored(vars(thing).get(name), value))
        return thing
    if isinstance(part, list):
        return [restored(None, entry) for entry in part]
    if not isinstance(part, (*PLAIN, Tensor)):
        raise TypeError(f"a {type(part).__name__} is no number")
    return part.cpu().numpy() if isinstance(part, Tensor) else part


class CMAES(Optimizer):
    """Asks for a generation `[population, d]`, is told its losses.

    Its own stop criteria are ignored: the budget decides. The step size follows cumulative
    step-size adaptation (CSA) in every dimension, unless `options` set `AdaptSigma`; with vkd it
    has that model's own rule. Whatever pycma raises is a BlackBoxError.
    """

    saved = ("theta", "best_loss", "random")

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
        self.population, self.result, self.best_loss = population, result, float("inf")
        self.random = numpy_state(np.random.RandomState(seed % 2**32))
        with warnings.catch_warnings():
            # pycma plots, we do not; 4.5 warns of its own default
            warnings.filterwarnings("ignore", "Could not import matplotlib|.*not a safe string")
            import cma  # here, since it takes longer than the rest of this package

            settings: dict[str, Any] = {
                "popsize": population,
                "bounds": [-bound, bound] if bound else [None, None],
                "CMA_diagonal": covariance == "diagonal",
                # pycma's default is another rule from 300 dimensions on
                "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
                "seed": np.nan,
                "verbose": -10,  # neither logs nor reads files
            }
            if sampler := COVARIANCES[covariance]:
                settings |= getattr(cma.restricted_gaussian_sampler, sampler).extend_cma_options()
            with self.pycma():
                settings.update(zip(options[::2], options[1::2], strict=True))
                self.es = cma.CMAEvolutionStrategy(start.double().cpu().numpy(), sigma, settings)

    @contextmanager
    def pycma(self) -> Iterator[None]:
        """Within this context NumPy's global random state, which pycma draws from, is ours."""
        outside = numpy_state()
        set_numpy_state(self.random)
        try:
            yield
        except Exception as e:
            raise BlackBoxError(
                f"pycma failed: {first_line(e)}. Check BOUND, SIGMA and CMA_OPTIONS; if a "
                f"checkpoint was loaded, train anew in another --output-dir."
            ) from e
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
        with self.pycma():
            self.es.tell(self.asked, values)
        if self.result == "mean":  # with bounds, of what was sampled before it was folded into them
            self.theta = self.vector(self.es.result.xfavorite)
        elif min(values) < self.best_loss:
            self.best_loss = min(values)
            self.theta = self.vector(self.asked[values.index(self.best_loss)])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "es": numbers(self.es, {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with self.pycma():
            done = state["es"]["countiter"]
            for before in sorted({0, done - 1}) if done else ():
                # a generation makes the parts that pycma makes on the way, the first and the last
                asked, self.es.countiter = self.es.ask(), before
                self.es.tell(asked, [float(i) for i in range(self.population)])
            restored(self.es, state["es"])
        super().load_state_dict(state)
