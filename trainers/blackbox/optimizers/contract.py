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
    searches = True
    param_groups: list[dict[str, Any]]

    if TYPE_CHECKING:
        # the loop only reads these, so that an optimiser may have attributes or properties

        @property
        def population(self) -> int: ...

        @property
        def solution(self) -> torch.Tensor: ...

    @property
    def in_use(self) -> int | None:
        return None

    def ask(self) -> torch.Tensor:
        raise NotImplementedError

    # to mypy, `Any` twice is any signature: `told` says which one an optimiser has
    def tell(self, *told: Any, **named: Any) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError
