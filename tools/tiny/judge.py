"""How a tiny CLIP in training is judged: never by a test split."""

import numpy as np
import torch
from dassl_blackbox.datasets.generated import split_indices
from open_clip import SimpleTokenizer
from open_clip.constants import OPENAI_DATASET_MEAN as MEAN
from open_clip.constants import OPENAI_DATASET_STD as STD
from open_clip.model import CLIP
from PIL import Image
from sklearn.datasets import load_digits
from text_tower import text_features
from torchvision.transforms.functional import normalize

from .captions import DIGITS
from .images import photo_batch


@torch.no_grad()
def judge(
    model: CLIP,
    tokenizer: SimpleTokenizer,
    digits: tuple[torch.Tensor, torch.Tensor],
    photos: tuple[torch.Tensor, torch.Tensor, list[str]] | None,
) -> dict[str, float]:
    """Zero-shot accuracy on Digits' training split and on the photographs set aside."""

    def accuracy(images: torch.Tensor, labels: torch.Tensor, captions: list[str]) -> float:
        text = text_features(model, tokenizer(captions))
        found = torch.cat(
            [model.encode_image(b, normalize=True) @ text.T for b in images.split(500)]
        ).argmax(1)
        return 100 * (found == labels).float().mean().item()

    result = {"digits": accuracy(*digits, [f"a photo of the digit {w}." for w in DIGITS])}
    if photos is not None:
        images, labels, captions = photos
        result["photos"] = accuracy(photo_batch(images, None), labels, captions)
    return result


def digits_training_split() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of Digits' training split alone, through the same resize as evaluation."""
    source = load_digits()
    rows = split_indices(source.target)["train"]
    images = [
        Image.fromarray((source.images[r] * 255 / 16).round().astype(np.uint8)).resize(
            (32, 32), Image.BICUBIC
        )
        for r in rows
    ]
    x = torch.from_numpy(np.stack(images)).float()[:, None].expand(-1, 3, -1, -1) / 255
    return normalize(x, MEAN, STD), torch.from_numpy(source.target[rows])
