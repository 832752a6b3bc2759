"""What every optimiser here is to the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch


class Optimizer:
    """An optimiser that asks and is told. Each has

    - `ask()` -> candidates `[P, d]`, on the device of the start;
    - `tell(losses)` with losses `[P]` in the order of the candidates, or, where `told` is "logits",
      `tell(logits, labels)` with `[P, B, C]` and `[B]`;
    - `rounds`, how often it asks and is told about one mini-batch: a step;
    - `population`, the number of candidates of a step, in all its rounds; `solution`, the vector in
      use `[d]`;
    - `in_use`, after `tell`: the number of the candidate that is the prompt in use, from whose
      answer a head may learn; None where there is none;
    - `param_groups`, `state_dict` and `load_state_dict`, so that Dassl logs, saves and resumes it
      like any other; between steps, never between rounds.
    """

    rounds = 1
    told = "losses"
    population: int
    in_use: int | None = None
    param_groups: list[dict[str, Any]]

    if TYPE_CHECKING:
        # to mypy, `Any` twice is any signature: `told` says which one an optimiser has
        def tell(self, *told: Any, **named: Any) -> None: ...
        def ask(self) -> torch.Tensor: ...
        @property  # the loop only reads it: it may be an attribute
        def solution(self) -> torch.Tensor: ...
        def state_dict(self) -> dict[str, Any]: ...
        def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Drawing(Optimizer):
    """An optimiser that moves a vector `theta` and draws from a random source of its own.

    Its state is that source and the attributes that `saved` names: tensors and numbers.
    """

    saved: tuple[str, ...] = ("theta",)

    def __init__(self, start: torch.Tensor, seed: int) -> None:
        self.theta = start.clone()
        # on the CPU, so that a run draws alike on every device
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def solution(self) -> torch.Tensor:
        return self.theta

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.saved}
        return {**state, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.saved:
            value = getattr(self, name)
            if isinstance(value, torch.Tensor):
                value.copy_(state[name])
            else:
                setattr(self, name, state[name])
        self.generator.set_state(state["generator"].cpu())


def clipped(g: torch.Tensor, largest: float) -> torch.Tensor:
    """g, rescaled to the norm `largest` where it is longer."""
    norm = g.norm()
    return g * (largest / norm) if norm > largest else g
