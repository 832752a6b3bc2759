"""The context itself as the vector that is tuned (CBBT)."""

from torch import nn

from .context import Prompt


class TokenSpace(nn.Module):
    """`theta` is the context, flattened: `[P, n D]` -> contexts `[P, n, D]`.

    Args:
        start: initial context `[n, D]`.
    """

    def __init__(self, start):
        super().__init__()
        self.shape = tuple(start.shape)
        self.register_buffer("origin", start.flatten())

    def forward(self, theta):
        return Prompt(theta.view(-1, *self.shape))
