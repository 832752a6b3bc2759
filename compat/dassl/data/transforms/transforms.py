import random

import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from torchvision.transforms import InterpolationMode

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}
NEED_REAL_DASSL = [
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
]
AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "random_crop",
    "random_translation",
    "center_crop",  # no step of its own: testing always crops the centre
    "normalize",
    "instance_norm",
    "cutout",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
    *NEED_REAL_DASSL,
]


class Random2DTranslation:
    """With probability p, a crop of the image enlarged by 1/8; else the image at target size."""

    def __init__(self, height, width, p=0.5, interpolation=InterpolationMode.BILINEAR):
        self.size = [height, width]
        self.p = p
        self.interpolation = interpolation

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return F.resize(img, self.size, self.interpolation)
        enlarged = [round(side * 1.125) for side in self.size]
        left = round(random.uniform(0, enlarged[1] - self.size[1]))
        top = round(random.uniform(0, enlarged[0] - self.size[0]))
        return F.crop(F.resize(img, enlarged, self.interpolation), top, left, *self.size)


class InstanceNormalization:
    """Each channel of an image `[C, H, W]` to mean 0 and deviation 1."""

    def __init__(self, eps=1e-8):
        self.eps = eps

    def __call__(self, img):
        std, mean = torch.std_mean(img, dim=(1, 2), keepdim=True)
        return (img - mean) / (std + self.eps)


class Cutout:
    """`n_holes` squares of an image `[C, H, W]` to 0; a border may cut them short.

    https://arxiv.org/abs/1708.04552
    """

    def __init__(self, n_holes=1, length=16):
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img):
        half = self.length // 2
        img = img.clone()
        for _ in range(self.n_holes):
            y, x = (np.random.randint(side) for side in img.shape[1:])
            img[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return img


class GaussianNoise:
    """With probability p, normal noise on an image `[C, H, W]`."""

    def __init__(self, mean=0, std=0.15, p=0.5):
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean


def build_transform(cfg, is_train=True, choices=None):
    """The transform from a PIL image to a tensor `[3, H, W]`; None with NO_TRANSFORM.

    `choices`, by default INPUT.TRANSFORMS, says which steps are in it; their order is fixed.
    Testing knows only normalisation.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        assert choice in AVAI_CHOICES, (
            f"INPUT.TRANSFORMS must be among {AVAI_CHOICES}, but got {choice}"
        )
        if choice in NEED_REAL_DASSL and is_train:
            raise NotImplementedError(
                f'The transform "{choice}" needs the real Dassl: install it, or choose another'
            )

    print(f"Building transform_{'train' if is_train else 'test'}")
    steps = [
        *_image_steps(cfg, is_train, choices),
        ("to torch tensor of range [0, 1]", T.ToTensor()),
    ]
    steps += _tensor_steps(cfg, is_train, choices)
    for words, _ in steps:
        print(f"+ {words}")
    return T.Compose([step for _, step in steps])


def _image_steps(cfg, is_train, choices):
    """The steps before the tensor, each with its words for the log."""
    cfg = cfg.INPUT
    size, interpolation = cfg.SIZE, INTERPOLATION_MODES[cfg.INTERPOLATION]
    target = f"{size[0]}x{size[1]}"
    if not is_train:
        yield f"resize the smaller edge to {max(size)}", T.Resize(max(size), interpolation)
        yield f"{target} center crop", T.CenterCrop(size)
        return
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        yield f"resize to {target}", T.Resize(size, interpolation)
    if "random_translation" in choices:
        yield "random translation", Random2DTranslation(*size)
    if "random_crop" in choices:
        yield (
            f"random crop (padding = {cfg.CROP_PADDING})",
            T.RandomCrop(size, padding=cfg.CROP_PADDING),
        )
    if "random_resized_crop" in choices:
        words = f"random resized crop (size={size}, scale={cfg.RRCROP_SCALE})"
        yield words, T.RandomResizedCrop(size, scale=cfg.RRCROP_SCALE, interpolation=interpolation)
    if "random_flip" in choices:
        yield "random flip", T.RandomHorizontalFlip()
    if "colorjitter" in choices:
        b, c, s, h = cfg.COLORJITTER_B, cfg.COLORJITTER_C, cfg.COLORJITTER_S, cfg.COLORJITTER_H
        yield (
            f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})",
            T.ColorJitter(b, c, s, h),
        )
    if "randomgrayscale" in choices:
        yield "random gray scale", T.RandomGrayscale(cfg.RGS_P)
    if "gaussian_blur" in choices:
        yield (
            f"gaussian blur (kernel={cfg.GB_K})",
            T.RandomApply([T.GaussianBlur(cfg.GB_K)], cfg.GB_P),
        )


def _tensor_steps(cfg, is_train, choices):
    """The steps after the tensor, each with its words for the log."""
    cfg = cfg.INPUT
    if is_train and "cutout" in choices:
        yield (
            f"cutout (n_holes={cfg.CUTOUT_N}, length={cfg.CUTOUT_LEN})",
            Cutout(cfg.CUTOUT_N, cfg.CUTOUT_LEN),
        )
    if "normalize" in choices:
        mean, std = cfg.PIXEL_MEAN, cfg.PIXEL_STD
        yield f"normalization (mean={mean}, std={std})", T.Normalize(mean, std)
    if is_train and "gaussian_noise" in choices:
        yield (
            f"gaussian noise (mean={cfg.GN_MEAN}, std={cfg.GN_STD})",
            GaussianNoise(cfg.GN_MEAN, cfg.GN_STD),
        )
    if "instance_norm" in choices:
        yield "instance normalization", InstanceNormalization()
