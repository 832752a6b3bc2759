"""Update rules: what a step does with a gradient estimate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


def clipped(g: torch.Tensor, largest: float) -> torch.Tensor:
    """g, rescaled to the norm `largest` where it is longer."""
    norm = g.norm()
    return g * (largest / norm) if norm > largest else g


class UpdateRule:
    """What `Descent` gives its estimates to.

    Attributes:
        theta: the vector in use `[d]`.
    """

    theta: torch.Tensor

    def step(self, g: torch.Tensor, k: int) -> None:
        """Move theta by the estimate g `[d]`; k counts from 1."""
        raise NotImplementedError

    def param_groups(self, k: int) -> list[dict[str, Any]]:
        """As those of a torch optimiser, with the step size of step k as `lr`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


class GradientStep(UpdateRule):
    """`theta -= a_k g`, g clipped or with momentum where asked for.

    Args:
        start: theta `[d]`; it is copied.
        size: a_k, as a function of k.
        clip: largest norm of g. With sqrt(d) it is ZIP's intrinsic-dimensional clipping (ICLR 2025,
            section 4.2).
        momentum: beta of SPSA-GC (BlackVIP, CVPR 2023), which keeps `m <- beta m + g`, from
            `m = 0`, and steps along `g + beta m`; 0 for none.
    """

    def __init__(
        self,
        start: torch.Tensor,
        size: Callable[[int], float],
        clip: float = math.inf,
        momentum: float = 0.0,
    ) -> None:
        self.theta, self.m = start.clone(), torch.zeros_like(start)
        self.size, self.clip, self.momentum = size, clip, momentum

    def step(self, g: torch.Tensor, k: int) -> None:
        g = clipped(g, self.clip)
        if self.momentum:
            self.m = self.momentum * self.m + g
            g = g + self.momentum * self.m
        self.theta = self.theta - self.size(k) * g

    def param_groups(self, k: int) -> list[dict[str, Any]]:
        return [{"params": [], "lr": self.size(k)}]

    def state_dict(self) -> dict[str, Any]:
        return {"theta": self.theta, "momentum": self.m}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.theta, self.m = state["theta"].to(self.theta), state["momentum"].to(self.m)


class TorchStep(UpdateRule):
    """A step of an optimiser of torch's, with g as the gradient.

    Args:
        optimizer: of one tensor, theta `[d]`, which it changes in place. A schedule of its learning
            rate may be built on it.
        clip: largest norm of g.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float = math.inf) -> None:
        self.optimizer, self.clip = optimizer, clip
        ((self.theta,),) = (group["params"] for group in optimizer.param_groups)
        self.name = type(optimizer).__name__.lower()  # of its state

    def step(self, g: torch.Tensor, k: int) -> None:
        self.theta.grad = clipped(g, self.clip)
        self.optimizer.step()

    def param_groups(self, k: int) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def state_dict(self) -> dict[str, Any]:
        return {"theta": self.theta, self.name: self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.theta.copy_(state["theta"])
        self.optimizer.load_state_dict(state[self.name])
