"""What methods share that read features once, and fit a head to them when training ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .collector import Collector, Gathered
from .heads.featured import FeatureHead
from .keys import Key, whole
from .optimizers import Fixed
from .prompts import ClassTexts
from .recipe import Recipe
from .run.errors import BlackBoxError
from .templates import template_for, template_keys


def feature_keys(folds: bool = False) -> dict[str, Key]:
    """Keys of `feature_recipe`; with `folds`, that of methods which choose by held-out images."""
    keys = {
        **template_keys(),
        "VIEWS": Key(4, whole(0, 1000), "augmented views of a training image, beside itself"),
    }
    about = "parts of the training images that are held out in turn"
    return keys | ({"FOLDS": Key(5, whole(2, 100), about)} if folds else {})


def feature_recipe(
    cfg: Any, views: int, head: FeatureHead, solve: Callable[[Gathered], str]
) -> Recipe:
    """Features of N images in `1 + views` views, and of the class texts once; then `solve`.

    It costs `ceil(N / 128) (1 + views) + 1` queries; a budget may end it sooner.

    Args:
        cfg: of the run.
        views: augmented ones, beside the image itself.
        head: zero-shot as it is.
        solve: fits it, in place; returns a line for the log. It begins anew every time, since a run
            that goes on with a larger budget fits again.
    """
    return Recipe(
        ClassTexts(),
        Fixed(),
        head,
        Collector(solve),
        views=views,
        features=True,
        template=template_for(cfg),
    )


def texts_of(gathered: Gathered) -> torch.Tensor:
    """Features of the class texts `[C, E]`."""
    assert gathered.text is not None  # the recipe reads features
    return gathered.text


def rows_by_view(gathered: Gathered) -> list[torch.Tensor]:
    """Numbers of the rows of each view, the un-augmented one first.

    One that the budget cut short is left out.
    """
    of_view = gathered.views
    views = [(of_view == number).nonzero()[:, 0] for number in of_view.unique()]
    return [view for view in views if len(view) == len(views[0])]


def descend(
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss: Callable[[int], torch.Tensor],
    lowest: float = 0.0,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Steps on `loss(number of the step)`, with a learning rate on a cosine to `lowest`.

    `after` is called behind each of them.

    Raises:
        BlackBoxError: what was fitted is not finite.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps), lowest)
    for number in range(steps):
        with torch.enable_grad():
            optimizer.zero_grad()
            loss(number).backward()
        optimizer.step()
        schedule.step()
        after(number)
    fitted = [part for group in optimizer.param_groups for part in group["params"]]
    if not all(part.isfinite().all() for part in fitted):
        raise BlackBoxError(
            f"The head's {steps:,} steps ended in numbers that are not finite. Lower its learning "
            f"rate (LR of the trainer)."
        )
