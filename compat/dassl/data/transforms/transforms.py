import random
from functools import partial

import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from torchvision.transforms import InterpolationMode

INTERPOLATION_MODES = {name: InterpolationMode(name) for name in ("bilinear", "bicubic", "nearest")}
AVAI_CHOICES = (
    *("random_flip", "random_resized_crop", "random_crop", "random_translation", "colorjitter"),
    *("randomgrayscale", "gaussian_blur", "cutout", "normalize", "gaussian_noise"),
    "center_crop",  # no step of its own: testing always crops the centre
)


def translated(img, size, interpolation=InterpolationMode.BILINEAR):
    """Of every other image a crop of it enlarged by 1/8; else the image at target size."""
    if random.uniform(0, 1) > 0.5:
        return F.resize(img, size, interpolation)
    enlarged = [round(side * 1.125) for side in size]
    left = round(random.uniform(0, enlarged[1] - size[1]))
    top = round(random.uniform(0, enlarged[0] - size[0]))
    return F.crop(F.resize(img, enlarged, interpolation), top, left, *size)


def cutout(img, n_holes, length):
    """Squares of `[C, H, W]` to 0, cut short by borders (https://arxiv.org/abs/1708.04552)."""
    half = length // 2
    img = img.clone()
    for _ in range(n_holes):
        y, x = (np.random.randint(side) for side in img.shape[1:])
        img[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return img


def noisy(img, mean, std):
    """Normal noise on every other image."""
    return img if random.uniform(0, 1) > 0.5 else img + torch.randn(img.size()) * std + mean


def build_transform(cfg, is_train=True, choices=None):
    """The transform from a PIL image to a tensor `[3, H, W]`; None with NO_TRANSFORM.

    `choices`, by default INPUT.TRANSFORMS, says which steps are in it; their order is fixed.
    Testing knows only normalisation.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    others = [choice for choice in choices if choice not in AVAI_CHOICES]
    if others:
        raise NotImplementedError(
            f"The transforms {others} need the real Dassl: install it, or choose among "
            f"{AVAI_CHOICES}"
        )
    print(f"Building transform_{'train' if is_train else 'test'}")
    tensor = "to torch tensor of range [0, 1]", T.ToTensor()
    steps = [*_image_steps(cfg.INPUT, is_train, choices), tensor]
    steps += _tensor_steps(cfg.INPUT, is_train, choices)
    for words, _ in steps:
        print(f"+ {words}")
    return T.Compose([step for _, step in steps])


def _image_steps(cfg, is_train, choices):
    """The steps before the tensor, each with its words for the log."""
    size, interpolation = cfg.SIZE, INTERPOLATION_MODES[cfg.INTERPOLATION]
    target = f"{size[0]}x{size[1]}"
    if not is_train:
        yield f"resize the smaller edge to {max(size)}", T.Resize(max(size), interpolation)
        yield f"{target} center crop", T.CenterCrop(size)
        return
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        yield f"resize to {target}", T.Resize(size, interpolation)
    if "random_translation" in choices:
        yield "random translation", partial(translated, size=list(size))
    if "random_crop" in choices:
        padding = cfg.CROP_PADDING
        yield f"random crop (padding = {padding})", T.RandomCrop(size, padding=padding)
    if "random_resized_crop" in choices:
        words = f"random resized crop (size={size}, scale={cfg.RRCROP_SCALE})"
        yield words, T.RandomResizedCrop(size, scale=cfg.RRCROP_SCALE, interpolation=interpolation)
    if "random_flip" in choices:
        yield "random flip", T.RandomHorizontalFlip()
    if "colorjitter" in choices:
        b, c, s, h = cfg.COLORJITTER_B, cfg.COLORJITTER_C, cfg.COLORJITTER_S, cfg.COLORJITTER_H
        words = f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})"
        yield words, T.ColorJitter(b, c, s, h)
    if "randomgrayscale" in choices:
        yield "random gray scale", T.RandomGrayscale(cfg.RGS_P)
    if "gaussian_blur" in choices:
        blur = T.RandomApply([T.GaussianBlur(cfg.GB_K)], cfg.GB_P)
        yield f"gaussian blur (kernel={cfg.GB_K})", blur


def _tensor_steps(cfg, is_train, choices):
    """The steps after the tensor, each with its words for the log."""
    if is_train and "cutout" in choices:
        holes, length = cfg.CUTOUT_N, cfg.CUTOUT_LEN
        words = f"cutout (n_holes={holes}, length={length})"
        yield words, partial(cutout, n_holes=holes, length=length)
    if "normalize" in choices:
        mean, std = cfg.PIXEL_MEAN, cfg.PIXEL_STD
        yield f"normalization (mean={mean}, std={std})", T.Normalize(mean, std)
    if is_train and "gaussian_noise" in choices:
        mean, std = cfg.GN_MEAN, cfg.GN_STD
        words = f"gaussian noise (mean={mean}, std={std})"
        yield words, partial(noisy, mean=mean, std=std)
