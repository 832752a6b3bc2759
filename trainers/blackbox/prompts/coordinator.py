"""BlackVIP's coordinator (CVPR 2023): a prompt for every picture, made from what it shows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from ..errors import BlackBoxError
from ..oracle.interface import Description
from ..oracle.prompt import Prompt
from ..run.rng import seeded
from .frame import PictureSpace

CHANNELS = 32  # of the maps that the decoder begins with
# (channels of its upsampling, channels that leave it) of each stage of the decoder but the last
DECODER = ((64, 64), (64, 32), (32, 32), (32, 16))
ENCODER = (32, 64, 64, 128)  # channels that leave each stage of the encoder but the last
GRID, COMPONENTS = 16, 98  # of the PCA: sides of a reduced picture, numbers that it becomes


class ConvEncoder(nn.Module):
    """Random convolutions of s stages, never tuned: the authors' `coordinator_init`.

    Pictures `[B, 3, H, W]` to maps `[B, 32, H / 2^s, W / 2^s]`.
    """

    def __init__(self, stages: int, generator: torch.Generator) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        with seeded(generator):
            for out in (*ENCODER[: stages - 1], CHANNELS):
                inner = max(channels, 32)
                layers += [
                    nn.Conv2d(channels, inner, 3, padding=1),
                    nn.Conv2d(inner, out, 2, stride=2, bias=False),
                    nn.BatchNorm2d(out, momentum=None),  # the mean over the batches of `fit`
                    nn.GELU(),
                ]
                channels = out
        self.body = nn.Sequential(*layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.body(pixels)

    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        for layer in self.body:
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
        self.train()
        for pixels in batches:
            self(pixels)
        self.eval()


class PCAEncoder(nn.Module):
    """Principal components of pictures that are reduced to 16 x 16: `[B, 3, H, W]` to `[B, 98]`.

    In units of the first one's standard deviation; components that the pictures do not have are 0.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3 * GRID**2))
        self.register_buffer("basis", torch.zeros(COMPONENTS, 3 * GRID**2))

    def reduced(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(pixels, GRID).flatten(1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (self.reduced(pixels) - self.mean) @ self.basis.T

    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        d = len(self.mean)
        count, total, squares = 0, torch.zeros(d).double(), torch.zeros(d, d).double()
        for pixels in batches:
            x = self.reduced(pixels).double().cpu()
            count, total, squares = count + len(x), total + x.sum(0), squares + x.T @ x
        mean = total / count
        values, vectors = torch.linalg.eigh(squares / count - mean[:, None] * mean)
        values, vectors = values.flip(0)[:COMPONENTS], vectors.flip(1)[:, :COMPONENTS]
        found = (values > 1e-6 * values[0]).double()
        self.mean.copy_(mean)
        self.basis.copy_(vectors.T * (found / values[0].clamp_min(1e-12).sqrt())[:, None])


def build_decoder(stages: int) -> nn.Sequential:
    """Maps `[B, 32, h, w]` to prompts `[B, 3, 2^s h, 2^s w]`, s stages: the last ones of five.

    The 1 x 1 layers are transposed too, as the authors' are: torch takes the fan-in of a transposed
    layer from the channels that leave it, so that 64 to 32 starts wider by sqrt(2).
    """
    layers: list[nn.Module] = []
    channels = CHANNELS
    for inner, out in DECODER[len(DECODER) + 1 - stages :]:
        layers += [
            nn.ConvTranspose2d(channels, inner, 2, stride=2, groups=channels),
            nn.ConvTranspose2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.GELU(),
        ]
        channels = out
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 2, stride=2, bias=False))


class CoordinatorSpace(PictureSpace):
    """`x' = clip(x + eps decoder(encoder(x) ‖ trigger))`; theta is the trigger and the decoder.

    The decoder doubles 5 times, or as often as leaves a side of 4 to begin with. Its batch
    normalisation takes the statistics of the batch in training, of each candidate by itself, and
    running ones in evaluation. Every candidate that is asked for in training moves the running
    ones, by a tenth, in order; a checkpoint holds them.

    Args:
        description: of the model.
        method: the encoder, `scratch` or `pca`.
        generator: of the encoder's weights and of the start.
        eps: factor of the prompt.
        zero_init: whether the last layer starts from zeros, thus the run at zero-shot.
    """

    encoder: ConvEncoder | PCAEncoder

    def __init__(
        self,
        description: Description,
        method: str,
        generator: torch.Generator,
        eps: float = 1.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__(description)
        stages = max(1, min(len(DECODER) + 1, (min(self.size) // 4).bit_length() - 1))
        self.unit, self.eps = 2**stages, eps
        self.side = height, width = -(-self.size[0] // self.unit), -(-self.size[1] // self.unit)
        room = CHANNELS * height * width
        self.triggers = room - COMPONENTS if method == "pca" else 0
        if self.triggers < 0:
            raise BlackBoxError(
                f"Pictures of {self.size[0]} x {self.size[1]} pixels are too small for an encoder "
                f"of {COMPONENTS} numbers (METHOD pca). Choose METHOD scratch."
            )
        self.encoder = PCAEncoder() if method == "pca" else ConvEncoder(stages, generator)
        with seeded(generator):
            trigger, self.decoder = 0.1 * torch.rand(self.triggers), build_decoder(stages)
        if zero_init:
            (last,) = self.decoder[-1].parameters()
            nn.init.zeros_(last)
        self.requires_grad_(False)
        start = torch.cat([trigger, parameters_to_vector(self.decoder.parameters())])
        self.register_buffer("origin", start)

    def train(self, mode: bool = True) -> CoordinatorSpace:
        super().train(mode)
        self.encoder.eval()  # its statistics are those of `fit`
        return self

    def padded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures whose sides the stages divide; what is added has the mean colour."""
        (height, width), (h, w) = self.size, self.side
        return F.pad(pixels, (0, w * self.unit - width, 0, h * self.unit - height))

    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Show the encoder the training pictures, batches `[B, 3, H, W]`, in one pass."""
        self.encoder.fit(map(self.padded, batches))

    def prompts(self, z: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """Codes `[B, width]` to the prompts `[B, 3, H, W]` of one candidate `[d]`."""
        trigger, numbers = theta[: self.triggers], theta[self.triggers :]
        weights: dict[str, torch.Tensor] = dict(self.decoder.named_parameters())
        parts = numbers.split([value.numel() for value in weights.values()])
        for (name, value), part in zip(weights.items(), parts, strict=True):
            weights[name] = part.view_as(value)
        maps = torch.cat([z, trigger.expand(len(z), -1)], 1).unflatten(1, (CHANNELS, *self.side))
        made = functional_call(self.decoder, weights, maps)
        return made[..., : self.size[0], : self.size[1]]

    def forward(self, theta: torch.Tensor, pixels: torch.Tensor | None = None) -> Prompt:
        """`[P, d]` -> Prompt with pictures `[P, B, 3, H, W]`."""
        assert pixels is not None  # it changes pictures
        z = self.encoder(self.padded(pixels)).flatten(1)
        # one after the other: at 224 pixels a stage of one candidate takes hundreds of megabytes
        changed = [self.clipped(pixels + self.eps * self.prompts(z, one)) for one in theta]
        return Prompt(pictures=torch.stack(changed))
