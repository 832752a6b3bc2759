"""Prompt spaces: vectors `[P, d]` to the `Prompt` that an oracle is asked about."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..config import SIZE, Key, number, one, text, where, whole
from ..errors import BlackBoxError
from ..oracle import Description, Prompt


class Space(nn.Module):
    """Turns vectors `theta [P, d]` into a `Prompt` of P candidates; `origin [d]` is the start.

    `forward(theta, pixels)` has the pixels `[B, 3, H, W]` of the batch where the space
    `changes_pictures`; `grants` must let the prompt in. `start` is a context `[n, D]`.
    """

    grants: tuple[str, ...] = ("contexts",)
    changes_pictures = False
    origin: Tensor

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Learn from the un-augmented training pictures `[B, 3, H, W]`, before the first step."""


class TokenSpace(Space):
    """`theta` is the context itself, flattened (CBBT)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.shape, self.origin = start.shape, nn.Buffer(start.flatten())

    def forward(self, theta: Tensor, pixels: Tensor | None = None) -> Prompt:
        return Prompt(theta.view(-1, *self.shape))


class RandomProjection(Space):
    """`context = start + A z`, A drawn once with entries `N(0, std^2)` (CraFT, section 3.2)."""

    def __init__(self, start: Tensor, d: int, std: float, generator: Generator) -> None:
        super().__init__()
        self.start, self.origin = nn.Buffer(start), nn.Buffer(torch.zeros(d))
        self.A = nn.Buffer(std * torch.randn(start.numel(), d, generator=generator))

    def forward(self, z: Tensor, pixels: Tensor | None = None) -> Prompt:
        return Prompt(self.start + (z @ self.A.T).view(-1, *self.start.shape))


class TwoProjections(Space):
    """BPT-VLM's (IJCAI 2023): `z = (z_L, z_V)` to text tokens `start + A_L z_L`, image `A_V z_V`.

    `A_L ~ N(0, (s_tok / (sqrt(d_L) sigma))^2)`;
    `A_V ~ N(mu_conv 3072 / d_V, (s_conv sqrt(3072 / d_V) sigma)^2)`: by the moments of the model's
    description, so that tokens begin at the size of its own. The published start is zero.
    """

    def __init__(
        self,
        model: Description,
        start: Tensor,
        n_image: int,  # n_V; 0 is text alone
        d_text: int,
        d_image: int,
        sigma: float,  # step size that CMA-ES starts with
        generator: Generator,
    ) -> None:
        super().__init__()
        self.sizes, self.start = (d_text, d_image if n_image else 0), nn.Buffer(start)
        self.origin = nn.Buffer(torch.zeros(sum(self.sizes)))
        std = model.token_std / (math.sqrt(d_text) * sigma)
        self.A_text = nn.Buffer(std * torch.randn(start.numel(), d_text, generator=generator))
        if n_image:
            if not model.image_width or model.patch_mean is None or model.patch_std is None:
                raise BlackBoxError(f"{model.name} takes no image tokens: take a ViT or N_IMAGE 0.")
            self.grants, self.image = ("contexts", "image_tokens"), (n_image, model.image_width)
            inputs = 3 * 32 * 32  # of ViT-B/32's patch embedding, for which this was derived
            mean = model.patch_mean * inputs / d_image
            std = model.patch_std * math.sqrt(inputs / d_image) * sigma
            drawn = torch.randn(n_image * model.image_width, d_image, generator=generator)
            self.A_image = nn.Buffer(mean + std * drawn)

    def forward(self, z: Tensor, pixels: Tensor | None = None) -> Prompt:
        text, image = z.split(self.sizes, dim=-1)
        contexts = self.start + (text @ self.A_text.T).view(-1, *self.start.shape)
        if "image_tokens" not in self.grants:
            return Prompt(contexts)
        return Prompt(contexts, (image @ self.A_image.T).view(-1, *self.image))


def walsh_hadamard(x: Tensor) -> Tensor:
    """`x @ H` along the last dimension, a power of two: H of 1 and -1 in natural order."""
    shape, half = x.shape, 1
    while half < shape[-1]:
        a, b = x.reshape(*shape[:-1], -1, 2, half).unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).reshape(shape)
        half *= 2
    return x


class Fastfood(nn.Module):
    """n fixed projections from `R^m` to `R^D`, one a context token (Le et al., ICML 2013).

    Each is `x -> H G Pi H B x`, cut to D and divided by `sqrt(L sum(G^2)) sqrt(D / L)` as ZIP's, to
    keep lengths. B are random signs, Pi a permutation, G a Gaussian diagonal, L the next power of
    two from D on, to which x is padded. It costs L log L and stores 3 L numbers instead of m D.
    """

    def __init__(self, n: int, m: int, D: int, generator: Generator) -> None:
        super().__init__()
        self.D, self.L = D, 1 << max(0, D - 1).bit_length()
        if not 1 <= m <= self.L:
            most = n * self.L + n - 1
            raise BlackBoxError(f"ID // n = {m}, a token: choose an ID between {n} and {most}.")
        signs = torch.randint(0, 2, (n, self.L), generator=generator)
        permutations = [torch.randperm(self.L, generator=generator) for _ in range(n)]
        self.signs = nn.Buffer(signs.float() * 2 - 1)
        self.permutation = nn.Buffer(torch.stack(permutations))
        self.gaussian = nn.Buffer(torch.randn(n, self.L, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """`[P, n, m]` -> `[P, n, D]`; row i goes through projection i."""
        x = walsh_hadamard(self.signs * nn.functional.pad(x, (0, self.L - x.shape[-1])))
        x = x.gather(-1, self.permutation.expand_as(x))
        x = walsh_hadamard(self.gaussian * x)[..., : self.D]
        return x / (self.D * self.gaussian.square().sum(-1, keepdim=True)).sqrt()


class LowRankSpace(Space):
    """ZIP's (ICLR 2025, section 4.1): `theta = (U, s, V, v)`, `W = U diag(s) V^T + 1 v^T`.

    Row i of W `[n, m]`, m = ID // n, projected by Fastfood, is added to token i of the start. U
    starts at zero, s at one, V standard normal, v at zero: the origin is exactly the start.
    """

    def __init__(self, start: Tensor, ID: int, rank: int, generator: Generator) -> None:
        super().__init__()
        n, D = start.shape
        self.n, self.m, self.r = n, ID // n, rank
        self.start, self.projection = nn.Buffer(start), Fastfood(n, self.m, D, generator)
        self.sizes = (n * rank, rank, self.m * rank, self.m)
        U, s, V, v = (torch.zeros(size) for size in self.sizes)
        self.origin = nn.Buffer(torch.cat([U, s + 1, V.normal_(generator=generator), v]))

    def forward(self, theta: Tensor, pixels: Tensor | None = None) -> Prompt:
        U, s, V, v = theta.split(self.sizes, dim=-1)
        U, V = U.reshape(-1, self.n, self.r), V.reshape(-1, self.m, self.r)
        W = (U * s[:, None]) @ V.transpose(1, 2) + v[:, None]
        return Prompt(self.start + self.projection(W))


def context_keys(tokens: int, words: str, none: str = "random, N(0, 0.02^2)") -> dict[str, Key]:
    """The keys that `initial_context` is given, with these defaults; `none` is without words."""
    count = "context tokens n (ignored where CTX_INIT gives words)"
    return {
        "N_CTX": Key(tokens, whole(1, 1000), count, where("CTX_INIT", "")),
        "CTX_INIT": Key(words, text(), f"words to start from; empty: {none}"),
    }


def initial_context(oracle: Any, words: str, n: int, generator: Generator) -> Tensor:
    """Embeddings `[n, D]` of the words, which then set n, or else `N(0, 0.02^2)` as CoOp has it."""
    oracle.require("contexts")
    words = words.replace("_", " ").strip()
    if words:
        context = oracle.embed(words).cpu()
    else:
        context = 0.02 * torch.randn(n, oracle.description.width, generator=generator)
    print(f'Initial context: "{words or " ".join(["X"] * len(context))}" ({len(context)} tokens)')
    return context


def space_keys(default: str) -> dict[str, Key]:
    """The further keys of `build_space`: `SPACE` with this default, and the spaces' sizes."""
    lowrank, projection = where("SPACE", "lowrank"), where("SPACE", "projection")
    return {
        "SPACE": Key(default, one("context", "lowrank", "projection"), "prompt space"),
        "ID": Key(500, whole(1, 10**7), "intrinsic dimension; ID // n numbers a token", lowrank),
        "RANK": Key(5, whole(1, SIZE), "rank r of the low-rank part", lowrank),
        "DIM": Key(512, whole(1, SIZE), "length of the vector z that is projected", projection),
        "STD": Key(0.2, number(above=0), "deviation of the projection's entries", projection),
    }


def build_space(oracle: Any, node: Any, generator: Generator) -> Space:
    """The space that a method's `node` of the configuration names, around its first context."""
    start = initial_context(oracle, node.CTX_INIT, node.N_CTX, generator)
    if node.SPACE == "lowrank":
        return LowRankSpace(start, node.ID, node.RANK, generator)
    if node.SPACE == "projection":
        return RandomProjection(start, node.DIM, node.STD, generator)
    return TokenSpace(start)
