"""The states of all random sources that Dassl's loaders draw from, as tensors."""

import random

import numpy as np
import torch


def seeded_generator(seed):
    """A source of its own for a run's random matrices; as in Dassl, a negative seed randomises."""
    generator = torch.Generator()
    generator.manual_seed(seed) if seed >= 0 else generator.seed()
    return generator


def child_seed(generator):
    """A seed for another source, drawn from this one, so that the two streams have nothing in common."""
    return int(torch.randint(2**31, (1,), generator=generator))


def rng_state():
    """Python's, NumPy's, torch's and CUDA's global states: tensors and plain values only, for a checkpoint."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state):
    """Put back what `rng_state` returned. CUDA's states are skipped where the number of devices differs."""
    p, n = state["python"], state["numpy"]
    random.setstate((p["version"], tuple(p["internal"].tolist()), p["gauss"]))
    np.random.set_state(
        (n["name"], n["keys"].numpy().astype(np.uint32), n["position"], n["has_gauss"], n["cached"])
    )
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
