"""CMA-ES (Hansen, 2016), by the `cma` package: the optimiser of CraFT and BPT-VLM."""

import pickle
import warnings
from contextlib import contextmanager

import cma
import numpy as np
import torch
from cma import restricted_gaussian_sampler

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


def global_randn(*shape):
    """NumPy's global source, by name: pickling `np.random.randn` itself would copy the source, and a loaded state would draw from that copy."""
    return np.random.randn(*shape)


class CMAES(Optimizer):
    """Asks for a generation, is told its losses. Its own stop criteria are ignored: the budget decides.

    Args:
        start: mean of the first generation `[d]`.
        sigma: initial step size.
        population: candidates of a generation.
        bound: every coordinate stays within plus and minus this; 0 means no bounds.
        covariance: full, diagonal, vd or vkd (a diagonal and one, or k, directions).
        result: what `solution` is: the distribution's `mean`, or the `best` candidate so far by its loss when it was scored.
        options: pairs of further options of pycma, as one list `[key, value, key, value]`.
        seed: of a random source of its own; NumPy's global state, which pycma draws from, is put back after each call.

    Raises:
        BlackBoxError: unknown options (with pycma's own message), bounds that exclude the start, an impossible population.
    """

    def __init__(
        self,
        start,
        sigma,
        population,
        bound=0.0,
        covariance="full",
        result="mean",
        options=(),
        seed=0,
    ):
        one_of("covariance model (COVARIANCE)", covariance, COVARIANCES)
        one_of("result (mean or best)", result, RESULTS)
        if population < 2 or sigma <= 0:
            raise BlackBoxError(
                f"CMA-ES needs a population of 2 or more and a positive SIGMA; given are {population} and {sigma}."
            )
        if bound and start.abs().max() >= bound:
            raise BlackBoxError(
                f"The bounds ±{bound} exclude the start, whose largest coordinate is {start.abs().max():.3g}. Widen BOUND, or set it to 0."
            )
        if len(options) % 2:
            raise BlackBoxError(
                f"CMA_OPTIONS is a list of pairs [key, value, ...]; {list(options)} has an odd number of entries."
            )
        self.population, self.result, self.device, self.dtype = (
            population,
            result,
            start.device,
            start.dtype,
        )
        self.numpy_state = np.random.RandomState(seed % 2**32).get_state()
        settings = {
            "popsize": population,
            "seed": np.nan,
            "randn": global_randn,
            "verbose": -9,
            "verb_log": 0,
            "signals_filename": None,
        }
        if bound:
            settings["bounds"] = [-bound, bound]
        if covariance == "diagonal":
            settings["CMA_diagonal"] = True
        elif covariance != "full":
            settings.update(
                getattr(restricted_gaussian_sampler, COVARIANCES[covariance]).extend_cma_options()
            )
        settings.update({key: value for key, value in zip(options[::2], options[1::2])})
        try:
            with self.private_random(), warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message=".*not a safe string"
                )  # pycma 4.5 says so of its own default
                self.es = cma.CMAEvolutionStrategy(start.double().cpu().numpy(), sigma, settings)
        except ValueError as e:
            raise BlackBoxError(
                f"pycma refuses its options (CMA_OPTIONS): {' '.join(str(e).split())[:600]}"
            ) from e
        self.best, self.best_loss = start.clone(), float("inf")
        self.asked = None
        self.param_groups = [{"params": [], "lr": float(sigma)}]

    @contextmanager
    def private_random(self):
        """Within this context NumPy's global random state is ours."""
        outside = np.random.get_state()
        np.random.set_state(self.numpy_state)
        try:
            yield
        finally:
            self.numpy_state = np.random.get_state()
            np.random.set_state(outside)

    @property
    def solution(self):
        if self.result == "best":
            return self.best
        # with bounds, the mean of what was sampled before it was folded into them
        return torch.as_tensor(np.asarray(self.es.result.xfavorite)).to(self.device, self.dtype)

    def ask(self):
        """A generation `[population, d]`."""
        with self.private_random():
            self.asked = self.es.ask()
        return torch.as_tensor(np.stack(self.asked)).to(self.device, self.dtype)

    def tell(self, losses):
        """Update mean, step size and covariance. Losses `[population]`."""
        values = losses.double().cpu().numpy()
        if not np.isfinite(values).all():
            raise BlackBoxError(
                f"CMA-ES was told {(~np.isfinite(values)).sum()} losses of {len(values)} that are not finite."
            )
        with self.private_random():
            self.es.tell(self.asked, values.tolist())
        i = int(values.argmin())
        if values[i] < self.best_loss:
            self.best_loss = float(values[i])
            self.best = torch.as_tensor(self.asked[i]).to(self.device, self.dtype)
        self.asked = None
        self.param_groups[0]["lr"] = float(self.es.sigma)

    def state_dict(self):
        name, keys, position, has_gauss, cached = self.numpy_state
        return {
            "es": torch.frombuffer(bytearray(self.es.pickle_dumps()), dtype=torch.uint8),
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

    def load_state_dict(self, state):
        """Put back a state. pycma's is a pickle: only resuming reads it, and only from runs that one trusts; evaluation never does."""
        self.es = pickle.loads(state["es"].cpu().numpy().tobytes())
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
