"""The states of all random sources that Dassl's loaders draw from, as tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seeded_generator(seed: int) -> torch.Generator:
    """A source of its own for a run's random matrices; as in Dassl, a negative seed randomises."""
    generator = torch.Generator()
    if seed >= 0:
        generator.manual_seed(seed)
    else:
        generator.seed()
    return generator


def child_seed(generator: torch.Generator) -> int:
    """A seed for another source, drawn from this one: the two streams have nothing in common."""
    return int(torch.randint(2**31, (1,), generator=generator))


def numpy_state(source: Any = np.random) -> dict[str, Any]:
    """The state of NumPy's global source, or of another: a tensor and plain values."""
    legacy: Any = source.get_state()  # a tuple
    name, keys, position, has_gauss, cached = legacy
    return {
        "name": name,
        "keys": torch.from_numpy(keys.astype(np.int64)),
        "position": int(position),
        "has_gauss": int(has_gauss),
        "cached": float(cached),
    }


def set_numpy_state(n: dict[str, Any]) -> None:
    keys = n["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state((n["name"], keys, n["position"], n["has_gauss"], n["cached"]))


def rng_state() -> dict[str, Any]:
    """Python's, NumPy's, torch's and CUDA's global states, for a checkpoint.

    Tensors and plain values only.
    """
    version, internal, gauss = random.getstate()
    return {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": numpy_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned.

    CUDA's states are skipped where the number of devices differs.
    """
    p = state["python"]
    random.setstate((p["version"], tuple(p["internal"].tolist()), p["gauss"]))
    set_numpy_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Within this context torch draws from a seed of `generator`'s, and no other draw is moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(generator))
        yield
