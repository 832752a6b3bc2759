"""Prompt spaces: vectors `[P, d]` to the `Prompt` that an oracle is asked about."""

from collections.abc import Iterable
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from .config import SIZE, Key, number, one, text, where, whole
from .errors import BlackBoxError
from .oracle import Description, Prompt
from .rng import seeded


class Space(nn.Module):
    """Turns vectors `theta [P, d]` into a `Prompt` of P candidates; `origin [d]` is the start.

    `forward(theta, pixels)` has the pixels `[B, 3, H, W]` of the batch where the space
    `changes_pictures`; `grants` must let the prompt in. `start` is a context `[n, D]`.
    """

    grants: tuple[str, ...] = ("contexts",)
    changes_pictures = False
    origin: Tensor


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


def space_keys(default: str, tokens: int, words: str) -> dict[str, Key]:
    """The keys of `build_space`: of the context, `SPACE` with this default, and spaces' sizes."""
    lowrank, projection = where("SPACE", "lowrank"), where("SPACE", "projection")
    return {
        **context_keys(tokens, words),
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


CHANNELS = 32  # of the maps that the coordinator's decoder begins with
# (channels of its upsampling, channels that leave it) of each stage of the decoder but the last
DECODER = ((64, 64), (64, 32), (32, 32), (32, 16))
GRID, COMPONENTS = 16, 98  # of the PCA: sides of a reduced picture, numbers that it becomes


class PictureSpace(Space):
    """A space whose candidates are changed pictures `[P, B, 3, H, W]`: nothing else is let in."""

    grants: tuple[str, ...] = ()
    changes_pictures = True

    def __init__(self, model: Description) -> None:
        super().__init__()
        self.size = tuple(model.image_size)
        self.mean = nn.Buffer(torch.tensor(model.mean).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(model.std).view(3, 1, 1))

    def clipped(self, pictures: Tensor) -> Tensor:
        """Normalised pixels `[..., 3, H, W]`, none darker than 0 or brighter than 1; in place."""
        return pictures.clamp_(-self.mean / self.std, (1 - self.mean) / self.std)


class PaddingSpace(PictureSpace):
    """VP's (arXiv:2203.17274): `N(0, 1)` at the start, added to all channels of a border."""

    share = 30 / 224  # width of the border, of the picture's side; at least a pixel

    def __init__(self, model: Description, generator: Generator) -> None:
        super().__init__(model)
        self.mode, outside = model.interpolation, torch.ones(self.size, dtype=torch.bool)
        borders = [max(1, round(self.share * side)) for side in self.size]
        self.rows, self.columns = (slice(border, -border) for border in borders)
        outside[self.rows, self.columns] = False
        self.outside = nn.Buffer(outside)
        self.origin = nn.Buffer(torch.randn(3 * int(outside.sum()), generator=generator))

    def spread(self, theta: Tensor) -> Tensor:
        """`[P, d]` in its place in `[P, 1, 3, H, W]`, with zeros inside."""
        placed = theta.new_zeros(len(theta), 1, 3, *self.size)
        placed[..., self.outside] = theta.view(len(theta), 1, 3, -1)
        return placed

    def forward(self, theta: Tensor, pixels: Tensor) -> Prompt:
        return Prompt(pictures=self.clipped(pixels + self.spread(theta)))


def build_encoder(stages: int) -> nn.Sequential:
    """Random convolutions, never tuned, of s stages: to maps `[B, 32, H / 2^s, W / 2^s]`."""
    encoder = nn.Sequential()
    for channels, out in pairwise([3, *(32, 64, 64, 128)[: stages - 1], CHANNELS]):
        inner = max(channels, 32)
        encoder.append(nn.Conv2d(channels, inner, 3, padding=1))
        encoder.append(nn.Conv2d(inner, out, 2, stride=2, bias=False))
        encoder.append(nn.BatchNorm2d(out, momentum=None))  # the mean over the batches of `fit`
        encoder.append(nn.GELU())
    return encoder


class PCAEncoder(nn.Module):
    """Principal components `[B, 98]` of pictures that are reduced to 16 x 16, in units of the first
    one's standard deviation; those that the pictures do not have are 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reduced = nn.Sequential(nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
        self.mean = nn.Buffer(torch.zeros(3 * GRID**2))
        self.basis = nn.Buffer(torch.zeros(COMPONENTS, 3 * GRID**2))

    def forward(self, pixels: Tensor) -> Tensor:
        return (self.reduced(pixels) - self.mean) @ self.basis.T

    def fit(self, batches: Iterable[Tensor]) -> None:
        x = torch.cat([self.reduced(pixels).double().cpu() for pixels in batches])
        mean = x.sum(0) / len(x)
        values, vectors = torch.linalg.eigh(x.T @ x / len(x) - mean[:, None] * mean)
        values, vectors = values.flip(0)[:COMPONENTS], vectors.flip(1)[:, :COMPONENTS]
        found = (values > 1e-6 * values[0]).double()
        self.mean.copy_(mean)
        self.basis.copy_(vectors.T * (found / values[0].clamp_min(1e-12).sqrt())[:, None])


def build_decoder(stages: int) -> nn.Sequential:
    """Maps `[B, 32, h, w]` to prompts `[B, 3, 2^s h, 2^s w]`, s stages: the last ones of five.

    The 1 x 1 layers are transposed too, as the authors' are: torch takes the fan-in of a transposed
    layer from the channels that leave it, so that 64 to 32 starts wider by sqrt(2).
    """
    decoder, channels = nn.Sequential(), CHANNELS
    for inner, out in DECODER[len(DECODER) + 1 - stages :]:
        decoder.append(nn.ConvTranspose2d(channels, inner, 2, stride=2, groups=channels))
        decoder.append(nn.ConvTranspose2d(inner, out, 1, bias=False))
        decoder.append(nn.BatchNorm2d(out))
        decoder.append(nn.GELU())
        channels = out
    return decoder.append(nn.ConvTranspose2d(channels, 3, 2, stride=2, bias=False))


class CoordinatorSpace(PictureSpace):
    """BlackVIP's (CVPR 2023): `x' = clip(x + eps decoder(encoder(x) ‖ trigger))`.

    theta is the trigger and the decoder, which doubles 5 times, or as often as leaves a side of 4
    to begin with. Its batch normalisation takes the statistics of the batch in training, of each
    candidate by itself, which moves the running ones by a tenth, in order; evaluation takes these.
    With `zero_init` the last layer, thus the prompt, starts at zero.
    """

    def __init__(
        self, model: Description, encoder: str, generator: Generator, eps: float, zero_init: bool
    ) -> None:
        super().__init__(model)
        stages = max(1, min(len(DECODER) + 1, (min(self.size) // 4).bit_length() - 1))
        self.eps, unit, (height, width) = eps, 2**stages, self.size
        # until the stages divide the sides: at the right and below, of the mean colour
        self.margins = 0, -width % unit, 0, -height % unit
        self.maps = CHANNELS, -(-height // unit), -(-width // unit)
        self.encoder: nn.Module = PCAEncoder()
        self.triggers = prod(self.maps) - COMPONENTS
        if encoder != "pca":
            with seeded(generator):
                self.encoder, self.triggers = build_encoder(stages), 0
        with seeded(generator):
            trigger, self.decoder = 0.1 * torch.rand(self.triggers), build_decoder(stages)
        if zero_init:
            nn.init.zeros_(list(self.decoder.parameters())[-1])
        self.requires_grad_(False)
        tuned = parameters_to_vector(self.decoder.parameters())
        self.origin = nn.Buffer(torch.cat([trigger, tuned]))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Learn from the un-augmented training pictures `[B, 3, H, W]`, before the first step."""
        padded = (F.pad(pixels, self.margins) for pixels in batches)
        if isinstance(self.encoder, PCAEncoder):
            self.encoder.fit(padded)
        else:
            for pixels in padded:
                self.encoder.train()(pixels)

    def prompts(self, z: Tensor, theta: Tensor) -> Tensor:
        """Codes `[B, width]` to the prompts `[B, 3, H, W]` of one candidate `[d]`."""
        named = dict(self.decoder.named_parameters())
        trigger, *parts = theta.split([self.triggers, *map(Tensor.numel, named.values())])
        weights = map(Tensor.view_as, parts, named.values())
        maps = torch.cat([z, trigger.expand(len(z), -1)], 1).unflatten(1, self.maps)
        made = functional_call(self.decoder, dict(zip(named, weights, strict=True)), maps)
        return made[..., : self.size[0], : self.size[1]]

    def forward(self, theta: Tensor, pixels: Tensor) -> Prompt:
        # `eval`: the encoder's statistics are those of `fit`
        z = self.encoder.eval()(F.pad(pixels, self.margins)).flatten(1)
        # one after the other: at 224 pixels a stage of one candidate takes hundreds of megabytes
        changed = [pixels + self.eps * self.prompts(z, one) for one in theta]
        return Prompt(pictures=self.clipped(torch.stack(changed)))
