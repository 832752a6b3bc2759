"""The states of all random sources that Dassl's loaders draw from, as tensors and plain values."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seeded_generator(seed: int) -> torch.Generator:
    """A source of its own for a run's random matrices; as in Dassl, a negative seed randomises."""
    generator = torch.Generator()
    return generator.manual_seed(seed if seed >= 0 else generator.seed())


def child_seed(generator: torch.Generator) -> int:
    """A seed for another source, drawn from this one: the two streams have nothing in common."""
    return int(torch.randint(2**31, (1,), generator=generator))


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Within this context torch draws from a seed of `generator`'s, and no other draw is moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(generator))
        yield


def numpy_state(source: Any = np.random) -> dict[str, Any]:
    """The state of NumPy's global source, or of another."""
    name, keys, *rest = source.get_state()
    return {"name": name, "keys": torch.from_numpy(keys.astype(np.int64)), "rest": rest}


def set_numpy_state(state: dict[str, Any]) -> None:
    keys = state["keys"].numpy().astype(np.uint32)
    np.random.set_state((state["name"], keys, *state["rest"]))


def rng_state() -> dict[str, Any]:
    """Python's, NumPy's, torch's and CUDA's global states, for a checkpoint."""
    own = {"python": random.getstate(), "numpy": numpy_state(), "torch": torch.get_rng_state()}
    return {**own, "cuda": torch.cuda.get_rng_state_all()}


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned; CUDA's only where there are as many devices."""
    random.setstate(state["python"])
    set_numpy_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
