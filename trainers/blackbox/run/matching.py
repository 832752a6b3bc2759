"""Whether a checkpoint belongs to the run that reads it: to its method, model, classes, sizes and,
where the run goes on from it, to its settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import BlackBoxError
from .files import load_state
from .settings import (
    BUDGETS,
    NOT_TRAINING,
    as_text,
    differences,
    inferred_with,
    settings,
)

PARTS = {"state_dict", "epoch", "optimizer", "scheduler", "blackbox"}


def load(path: Path, trainer: Any) -> dict[str, Any]:
    """Read a checkpoint and check that it belongs to this method, backbone and prompt size.

    Raises:
        BlackBoxError: it does not fit; the text tells the two values.
    """
    state, trainer_name = load_state(path), trainer.cfg.TRAINER.NAME
    if not PARTS <= state.keys() or not isinstance(state["blackbox"], dict):
        raise BlackBoxError(
            f"{path} was not written by this version of a black-box trainer, nor by its WhiteBox "
            f"(a checkpoint of CoOp's, perhaps). Give the folder of a {trainer_name} run."
        )
    made, here = state["blackbox"]["identity"], identity(trainer)
    if made["method"] != here["method"]:
        raise BlackBoxError(
            f"{path} is a checkpoint of {made['method']}, this run is {here['method']}. Give the "
            "same --trainer as in training."
        )
    check_model(path, state, made, here)
    check_classes(path, state, made.get("classes", here["classes"]), trainer)
    check_shapes(path, state, trainer)
    return state


def check_classes(path: Path, state: dict[str, Any], made: list[str] | None, trainer: Any) -> None:
    """Raise unless both sides have a head for the same classes, or neither has one."""
    here = bound_classes(trainer)
    if (made is None) != (here is None):
        heads = ["a head" if names else "no head" for names in (made, here)]
        raise BlackBoxError(
            f"{path} was trained with {heads[0]} that is tied to its classes, and this run has "
            f"{heads[1]}. Give the same settings as in training{method_settings(state, trainer)}."
        )
    if made and here and made != here and not getattr(trainer.head, "moves", False):
        raise BlackBoxError(
            f"{path} has a head for the classes {few(made)}; here they are {few(here)}. This head "
            "is tied to the classes that it was trained on and cannot move to others: evaluate on "
            "the same ones, or train the prompt alone, which moves."
        )


def method_settings(state: dict[str, Any], trainer: Any) -> str:
    """What of the method's settings is not as in training, in brackets, for an error's cure."""
    differ = {
        name: pair
        for name, pair in differing(state, trainer).items()
        if name.startswith("TRAINER.")
    }
    return f" ({as_text(differ)})" if differ else ""


def differing(state: dict[str, Any], trainer: Any) -> dict[str, tuple[str | None, str | None]]:
    """{name: (in training, here)} of the settings that are not the same."""
    return differences(state["blackbox"].get("settings", {}), settings(trainer.cfg.dump()))


def check_model(path: Path, state: dict[str, Any], made: dict, here: dict) -> None:
    """Raise unless a checkpoint was made with this model, as far as the checkpoint can tell."""
    key = "weights"
    if "format" not in state["blackbox"]:
        key = "backbone"
        print(
            f"Note: {path} was written by version 0.1.0, without a digest and with the model's "
            "name as its only certain mark: neither damage nor other weights of that name would "
            "show"
        )
    elif "digest" not in state:
        raise BlackBoxError(
            f"{path} is damaged: its digest is missing. Put a sound copy in its place."
        )
    if made[key] != here[key]:
        raise BlackBoxError(
            f"{path} was made with the backbone {made['backbone']}, this run uses "
            f"{here['backbone']}, and their weights or architectures differ. Give the same "
            "MODEL.BACKBONE.NAME as in training."
        )


def check_shapes(path: Path, state: dict[str, Any], trainer: Any) -> None:
    saved, here = state["state_dict"], trainer.learner.state_dict()
    # what is no tensor, such as texts, has no shape and must only be there
    there, ours = (
        {k: tuple(getattr(v, "shape", ())) for k, v in side.items()} for side in (saved, here)
    )
    for k in {**ours, **there}:
        if ours.get(k) != there.get(k):
            part, cure = "a prompt of another size", "N_CTX, CTX_INIT and dimensions as in training"
            if k.startswith("head."):
                part = "a head of another shape, or of an earlier version"
                cure = "settings of the head as in training, or train anew"
            raise BlackBoxError(
                f"{path} has {part}: '{k}' is {there.get(k, 'absent')} there and "
                f"{ours.get(k, 'absent')} here. Give the same "
                f"{cure}{method_settings(state, trainer)}."
            )


def identity(trainer: Any) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that loads it.

    Class names, in their order, only where a head is tied to them.
    """
    description = trainer.description
    return {
        "method": trainer.cfg.TRAINER.NAME,
        "backbone": description.name,
        "weights": description.fingerprint,
        "classes": bound_classes(trainer),
    }


def bound_classes(trainer: Any) -> list[str] | None:
    """The classes that the trainer's head is tied to, if it has such a head."""
    tied = getattr(trainer.head, "class_bound", False)
    return list(trainer.dm.dataset.classnames) if tied else None


def few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''} ({len(names)})"


def check_inference(path: Path, state: dict[str, Any], trainer: Any) -> None:
    """Compare what evaluation reads beside the checkpoint with what training read.

    A prompt may be tried with another value, which is noted; a head that is tied to its classes
    was fitted to these very answers.

    Raises:
        BlackBoxError: they differ, and there is such a head.
    """
    read = inferred_with(trainer.cfg.TRAINER.NAME)
    differ = {name: pair for name, pair in differing(state, trainer).items() if name in read}
    if not differ:
        return
    if bound_classes(trainer):
        raise BlackBoxError(
            f"{path} has a head that was fitted with other settings ({as_text(differ)}), which "
            f"decide what it is given. Give the same in evaluation."
        )
    print(f"Note: {path} was trained with other settings that evaluation reads: {as_text(differ)}")


def check_settings(
    path: Path, extra: dict[str, Any], here: dict[str, str], scheduled: bool
) -> None:
    """Raise unless a checkpoint was made with these settings, budgets aside.

    Args:
        extra: the checkpoint's section `blackbox`.
        here: settings of the run that would go on from it.
        scheduled: whether the run has a schedule, which was laid over the epochs and would not be
            the same over more of them.
    """
    if "format" not in extra:
        raise BlackBoxError(
            f"{path} was written by version 0.1.0, which drew other crops and knew its "
            "pictures by name alone: it can be evaluated, but a run cannot go on from it. "
            "Choose another --output-dir."
        )
    budgets = BUDGETS[:2] if scheduled else BUDGETS
    differ = {
        name: pair
        for name, pair in differences(extra["settings"], here).items()
        if not name.startswith(budgets + NOT_TRAINING)
    }
    if differ:
        grow = "the epochs are its schedule's" if BUDGETS[2] in differ else "budgets may grow"
        raise BlackBoxError(
            f"{path} was made with other settings ({as_text(differ)}), and a run goes on only "
            f"as it began. Choose another --output-dir, or give the same configuration; {grow}."
        )
