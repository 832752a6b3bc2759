"""Spaces that change pictures: VP's padding, BAR's frame, and BlackVIP's coordinator."""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from ..oracle import Description, Prompt
from ..rng import seeded
from . import Space

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


class FrameSpace(PaddingSpace):
    """BAR's (ICML 2020): the picture, made smaller, in a frame of `sigmoid(W)`."""

    share = 15 / 224

    def forward(self, theta: Tensor, pixels: Tensor) -> Prompt:
        frames = (self.spread(theta).sigmoid() - self.mean) / self.std
        pictures = frames.repeat(1, len(pixels), 1, 1, 1)
        inside = pictures[..., self.rows, self.columns]
        inside[:] = F.interpolate(pixels, inside.shape[-2:], mode=self.mode, antialias=True)
        return Prompt(pictures=self.clipped(pictures))  # bicubic overshoots


class ConvEncoder(nn.Sequential):
    """Random convolutions, never tuned, of s stages: to maps `[B, 32, H / 2^s, W / 2^s]`."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        for channels, out in pairwise([3, *(32, 64, 64, 128)[: stages - 1], CHANNELS]):
            inner = max(channels, 32)
            self.append(nn.Conv2d(channels, inner, 3, padding=1))
            self.append(nn.Conv2d(inner, out, 2, stride=2, bias=False))
            self.append(nn.BatchNorm2d(out, momentum=None))  # the mean over the batches of `fit`
            self.append(nn.GELU())

    def fit(self, batches: Iterable[Tensor]) -> None:
        for pixels in batches:
            self.train()(pixels)


class PCAEncoder(nn.Module):
    """Principal components `[B, 98]` of pictures that are reduced to 16 x 16.

    In units of the first one's standard deviation; components that the pictures do not have are 0.
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

    encoder: ConvEncoder | PCAEncoder

    def __init__(
        self, model: Description, encoder: str, generator: Generator, eps: float, zero_init: bool
    ) -> None:
        super().__init__(model)
        stages = max(1, min(len(DECODER) + 1, (min(self.size) // 4).bit_length() - 1))
        self.unit, self.eps = 2**stages, eps
        self.side = height, width = [-(-side // self.unit) for side in self.size]
        if encoder == "pca":
            self.encoder, self.triggers = PCAEncoder(), CHANNELS * height * width - COMPONENTS
        else:
            with seeded(generator):
                self.encoder, self.triggers = ConvEncoder(stages), 0
        with seeded(generator):
            trigger, self.decoder = 0.1 * torch.rand(self.triggers), build_decoder(stages)
        if zero_init:
            nn.init.zeros_(list(self.decoder.parameters())[-1])
        self.requires_grad_(False)
        tuned = parameters_to_vector(self.decoder.parameters())
        self.origin = nn.Buffer(torch.cat([trigger, tuned]))

    def padded(self, pixels: Tensor) -> Tensor:
        """Pictures whose sides the stages divide; what is added has the mean colour."""
        (height, width), (h, w) = self.size, self.side
        return F.pad(pixels, (0, w * self.unit - width, 0, h * self.unit - height))

    def fit(self, batches: Iterable[Tensor]) -> None:
        self.encoder.fit(map(self.padded, batches))

    def prompts(self, z: Tensor, theta: Tensor) -> Tensor:
        """Codes `[B, width]` to the prompts `[B, 3, H, W]` of one candidate `[d]`."""
        named = dict(self.decoder.named_parameters())
        trigger, *parts = theta.split([self.triggers, *map(Tensor.numel, named.values())])
        weights = map(Tensor.view_as, parts, named.values())
        maps = torch.cat([z, trigger.expand(len(z), -1)], 1).unflatten(1, (CHANNELS, *self.side))
        made = functional_call(self.decoder, dict(zip(named, weights, strict=True)), maps)
        return made[..., : self.size[0], : self.size[1]]

    def forward(self, theta: Tensor, pixels: Tensor) -> Prompt:
        # `eval`: the encoder's statistics are those of `fit`
        z = self.encoder.eval()(self.padded(pixels)).flatten(1)
        # one after the other: at 224 pixels a stage of one candidate takes hundreds of megabytes
        changed = [pixels + self.eps * self.prompts(z, one) for one in theta]
        return Prompt(pictures=self.clipped(torch.stack(changed)))
