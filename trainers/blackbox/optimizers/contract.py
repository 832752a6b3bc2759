"""What every optimiser here is to the loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Optimizer:
    """Moves a vector `theta [d]` by what it is told about the candidates that it asks about.

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
        # on the CPU, so that a run draws alike on every device
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def solution(self) -> Tensor:
        """The vector in use `[d]`."""
        return self.theta

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
