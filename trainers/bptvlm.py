"""BPT-VLM: evolutionary prompt tuning of text and image (IJCAI 2023), shallow variant."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import blackbox as bb

LOSSES = {"ce": bb.losses.mean_cross_entropies, "focal": bb.losses.mean_focal_losses}
INPUTS = 3 * 32 * 32  # of ViT-B/32's patch embedding, for which the image tokens' size was derived


class TwoProjections(bb.prompts.Space):
    """`z = (z_L, z_V)` to text tokens `start + A_L z_L` and image tokens `A_V z_V`.

    `A_L ~ N(0, (s_tok / (sqrt(d_L) sigma))^2)`;
    `A_V ~ N(mu_conv 3072 / d_V, (s_conv sqrt(3072 / d_V) sigma)^2)`: by the moments of the model's
    description, so that tokens begin at the size of its own; sigma is CMA-ES's first step size.
    """

    def __init__(
        self, model: bb.Description, start: Tensor, node: Any, generator: torch.Generator
    ) -> None:
        super().__init__()
        n, d_text, d_image, sigma = node.N_IMAGE, node.DIM_TEXT, node.DIM_IMAGE, node.SIGMA
        self.sizes, self.start = (d_text, d_image if n else 0), nn.Buffer(start)
        self.origin = nn.Buffer(torch.zeros(sum(self.sizes)))
        std = model.token_std / (math.sqrt(d_text) * sigma)
        self.A_text = nn.Buffer(std * torch.randn(start.numel(), d_text, generator=generator))
        if n:
            if not model.image_width or model.patch_mean is None or model.patch_std is None:
                raise bb.BlackBoxError(f"{model.name} takes no image tokens: N_IMAGE 0, or a ViT.")
            self.grants, self.image = ("contexts", "image_tokens"), (n, model.image_width)
            mean = model.patch_mean * INPUTS / d_image
            std = model.patch_std * math.sqrt(INPUTS / d_image) * sigma
            drawn = torch.randn(n * model.image_width, d_image, generator=generator)
            self.A_image = nn.Buffer(mean + std * drawn)

    def forward(self, z: Tensor, pixels: Tensor | None = None) -> bb.Prompt:
        text, image = z.split(self.sizes, dim=-1)
        contexts = self.start + (text @ self.A_text.T).view(-1, *self.start.shape)
        if "image_tokens" not in self.grants:
            return bb.Prompt(contexts)
        return bb.Prompt(contexts, (image @ self.A_image.T).view(-1, *self.image))


@bb.register_trainer
class BPTVLM(bb.SearchTrainer):
    """CMA-ES over two random projections, one to text tokens and one to image tokens.

    Told the losses of the whole training set. Access: contexts, logits, and `image_tokens` unless
    `N_IMAGE` is 0. The candidate with the lowest training loss so far is the prompt in use, and is
    what is saved.
    """

    keys = {
        **bb.prompts.context_keys(8, "", "zeros"),
        "N_IMAGE": bb.Key(5, bb.whole(0, 1000), "image tokens n_V (grant image_tokens); 0: none"),
        "DIM_TEXT": bb.Key(500, bb.whole(1, bb.SIZE), "d_L"),
        "DIM_IMAGE": bb.Key(500, bb.whole(1, bb.SIZE), "d_V", lambda node: node.N_IMAGE > 0),
        **bb.config.CMA_KEYS,
        "POPULATION": bb.Key(30, bb.whole(2, bb.SIZE), "candidates of a generation"),
        "LOSS": bb.Key("ce", bb.one(*LOSSES), "focal: with gamma 2"),
    }

    def build_recipe(self, generator: torch.Generator) -> bb.Recipe:
        node, model = self.cfg.TRAINER.BPTVLM, self.description
        start = bb.prompts.initial_context(self.oracle, node.CTX_INIT, node.N_CTX, generator)
        if not node.CTX_INIT:
            start = torch.zeros_like(start)
        space = TwoProjections(model, start, node, generator)
        origin, seed = space.origin.to(self.device), bb.child_seed(generator)
        optimizer = bb.optimizers.CMAES(
            origin, node.SIGMA, node.POPULATION, 0, node.COVARIANCE, "best", node.CMA_OPTIONS, seed
        )
        return bb.Recipe(space, optimizer, fitness=LOSSES[node.LOSS], whole_set=True)
