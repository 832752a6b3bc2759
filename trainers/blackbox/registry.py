"""Registration that survives being done twice, and replaces nobody else's trainer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

from dassl.engine import TRAINER_REGISTRY

if TYPE_CHECKING:
    from .run.trainer import ResumableTrainer

MARK = "dassl_blackbox_trainer"
Trainer = TypeVar("Trainer", bound=type)


def ours() -> dict[str, type[ResumableTrainer]]:
    """The trainers of this project that are registered, by name."""
    found = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return {name: trainer for name, trainer in found.items() if getattr(trainer, MARK, False)}


def node_of(trainer: type[ResumableTrainer]) -> str:
    """The node under TRAINER that holds a trainer's keys: its `node`, else its name in capitals.

    A subclass without `keys` of its own has those of its parent, in the parent's node.
    """
    owner = next((cls for cls in trainer.__mro__ if vars(cls).get("keys")), trainer)
    return vars(owner).get("node", owner.__name__.upper())


def register_trainer(cls: Trainer) -> Trainer:
    """Class decorator: register with Dassl under the class's name.

    The first one stays. Where that is ours (the package is installed *and* copied into a fork) it
    is silent; a foreign one (the authors' forks have a ZIP, a CBBT and a BPTVLM) is noted.
    """
    setattr(cls, MARK, True)
    name = cls.__name__
    if name not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register(cls)
    elif name not in ours():
        print(
            f"Note: a trainer named {name} is registered already, by "
            f"{TRAINER_REGISTRY.get(name).__module__}; that one stays, and ours is left out. To "
            f"have ours, rename that class or leave out its import in train.py",
            file=sys.stderr,
        )
    return cls
