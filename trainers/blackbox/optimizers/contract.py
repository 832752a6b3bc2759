"""What every optimiser here is to the loop."""


class Optimizer:
    """An optimiser that asks and is told. Each has

    - `ask()` -> candidates `[P, d]`, on the device of the start;
    - `tell(losses)` with losses `[P]` in the order of the candidates, or, where `told` is "logits", `tell(logits, labels)` with `[P, B, C]` and `[B]`;
    - `rounds`, how often it asks and is told about one mini-batch: a step;
    - `population`, the number of candidates of a step, in all its rounds; `solution`, the vector in use `[d]`;
    - `param_groups`, `state_dict` and `load_state_dict`, so that Dassl logs, saves and resumes it like any other; between steps, never between rounds.
    """

    rounds = 1
    told = "losses"
