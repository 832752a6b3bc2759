"""Dassl's loaders with the input that the model expects, over pictures that are decoded once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from functools import partial
from typing import Any

from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.data_manager import build_data_loader
from dassl.data.transforms import build_transform
from torch.utils.data import DataLoader

from ..run.errors import BlackBoxError, first_line
from .checks import check_pictures, need_apart, need_val, note_rules, training_images
from .crops import Cropper
from .pictures import Pictures
from .reader import Augmentation, ImageReader

__all__ = [
    "Pictured",
    "augmented_loader",
    "build_data",
    "match_input",
    "need_val",
    "ordered_loader",
    "training_images",
]


def match_input(cfg: Any, description: Any) -> Any:
    """The configuration with the model's input size, normalisation and interpolation.

    A value that still is Dassl's default counts as not given; others must agree with the model's.

    Raises:
        BlackBoxError: `cfg.INPUT` contradicts the model.
    """
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        raise BlackBoxError(
            f"INPUT.TRANSFORMS is {list(cfg.INPUT.TRANSFORMS)}, without 'normalize', but "
            f"{description.name} expects normalised pixels. Add it, as the YAMLs in "
            f"configs/trainers do."
        )
    default, cfg = get_cfg_default().INPUT, cfg.clone()
    cfg.defrost()
    wanted = {
        "SIZE": tuple(description.image_size),
        "PIXEL_MEAN": list(description.mean),
        "PIXEL_STD": list(description.std),
        "INTERPOLATION": description.interpolation,
    }
    for key, value in wanted.items():
        given = cfg.INPUT[key]
        if given != default[key] and not same(given, value):
            raise BlackBoxError(
                f"INPUT.{key} is {given}, but {description.name} expects {value}. Remove it from "
                f"the configuration: the model's own value is used."
            )
        cfg.INPUT[key] = value
    cfg.freeze()
    return cfg


def same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return len(a) == len(b) and all(abs(x - y) < 1e-4 for x, y in zip(a, b, strict=True))


def build_data(trainer: Any) -> DataManager:
    """Give a trainer what `SimpleTrainer.build_data_loader` gives it; returns the data manager.

    Its val and test images are known to open afterwards.

    Raises:
        BlackBoxError: an image does not open; loaders that do not fit the data; evaluation on `val`
            without a validation split of its own; `INPUT.CROP_ON_DEVICE` with transforms that are
            not made there.
    """
    cfg = trainer.cfg
    trainer.augmentation = Augmentation(cfg.SEED, cfg.INPUT.VIEWS)
    trainer.pictures = Pictures(2**20 * cfg.INPUT.CACHE_MB)
    trainer.dm = dm = manage(cfg, partial(ImageReader, trainer.pictures, trainer.augmentation))
    trainer.pictures.paths.update(item.impath for item in dm.dataset.train_x)
    trainer.train_loader_x, trainer.train_loader_u = dm.train_loader_x, dm.train_loader_u
    trainer.cropper = None
    if cfg.INPUT.CROP_ON_DEVICE:
        crop_on_device(trainer)
    trainer.val_loader, trainer.test_loader = dm.val_loader, dm.test_loader
    trainer.num_classes, trainer.lab2cname = dm.num_classes, dm.lab2cname
    trainer.num_source_domains = dm.num_source_domains
    if cfg.TEST.SPLIT == "val":
        need_val(dm.dataset, cfg.DATASET.NAME)
    check_pictures(dm.dataset, cfg.DATASET.NAME)
    return dm


def manage(cfg: Any, wrapper: Any) -> DataManager:
    """Dassl's data manager; what it asserts without a word becomes a sentence."""
    try:
        return DataManager(cfg, dataset_wrapper=wrapper)
    except (AssertionError, NotImplementedError, ValueError, ZeroDivisionError) as e:
        if type(e) not in (AssertionError, NotImplementedError, ValueError, ZeroDivisionError):
            raise  # a sentence already
        raise BlackBoxError(
            f"The loaders of {cfg.DATASET.NAME} cannot be built ({first_line(e)}). Check SAMPLER, "
            f"BATCH_SIZE, N_INS and N_DOMAIN in DATALOADER, and INPUT.TRANSFORMS."
        ) from e


def crop_on_device(trainer: Any) -> None:
    """Give a trainer its cropper, and a train loader that makes pixels with it."""
    cfg, node = trainer.cfg, trainer.cfg.DATALOADER.TRAIN_X
    trainer.cropper = Cropper(
        trainer.train_loader_x.dataset.transform, trainer.device, 2**20 * cfg.INPUT.CACHE_MB
    )
    trainer.cropper.pictures.paths.update(trainer.pictures.paths)
    trainer.train_loader_x = device_loader(
        trainer, node.SAMPLER, node.BATCH_SIZE, True, n_domain=node.N_DOMAIN, n_ins=node.N_INS
    )


class Pictured:
    """The part of a trainer that looks after its pictures, before Dassl's in the order of bases."""

    # set by Dassl's trainer and by `build_data`
    cfg: Any
    dm: Any
    epoch: int
    pictures: Pictures
    augmentation: Augmentation
    cropper: Cropper | None

    def check_training(self) -> None:
        """Raise where training would look at test images, or at pictures that cannot be decoded."""
        cfg, dataset, name = self.cfg, self.dm.dataset, self.cfg.DATASET.NAME
        if cfg.TEST.FINAL_MODEL == "best_val" or cfg.ORACLE.VAL_EVERY:
            need_val(dataset, name)
        need_apart(dataset, name)
        self.read_pictures()

    def read_pictures(self) -> None:
        """Decode the training pictures that were not decoded yet, and keep what there is room for.

        Worker processes live for an epoch: those that are forked find the pictures, others would
        each keep their own, and there nothing is kept. Nor where they are cropped on the device,
        which has them then.
        """
        workers, kept = self.cfg.DATALOADER.NUM_WORKERS, self.pictures
        if self.cropper is not None:
            kept = self.cropper.pictures
        elif workers and multiprocessing.get_start_method() != "fork":
            kept = Pictures(0)
            kept.paths.update(self.pictures.paths)
        total, counts = len(kept.paths), kept.load()
        note_rules(counts, total, f"{self.cfg.DATASET.NAME}, train")
        if workers or self.cropper is not None:
            self.pictures.paths.clear()

    def before_train(self) -> None:
        self.check_training()
        super().before_train()  # type: ignore[misc]  # Dassl's

    def before_epoch(self) -> None:
        self.augmentation.epoch = self.epoch
        super().before_epoch()  # type: ignore[misc]  # Dassl's


def ordered_loader(cfg: Any, items: Sequence[Any], pictures: Pictures) -> DataLoader:
    """The items in order, un-augmented, the last batch kept: for fitness on a whole set."""
    return build_data_loader(
        cfg,
        "SequentialSampler",
        items,
        cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=build_transform(cfg, is_train=False),
        is_train=False,
        dataset_wrapper=partial(ImageReader, pictures, Augmentation(0)),
    )


def augmented_loader(trainer: Any, batch_size: int) -> DataLoader:
    """The training images shuffled and augmented, the last batch kept: for a head."""
    if trainer.cropper is not None:
        return device_loader(trainer, "RandomSampler", batch_size, False)
    return build_data_loader(
        trainer.cfg,
        "RandomSampler",
        trainer.dm.dataset.train_x,
        batch_size,
        tfm=build_transform(trainer.cfg, is_train=True),
        is_train=False,
        dataset_wrapper=partial(ImageReader, trainer.pictures, trainer.augmentation),
    )


def device_loader(
    trainer: Any, sampler: str, batch_size: int, is_train: bool, **options: Any
) -> DataLoader:
    """Dassl's loader of the training images, cropped on the device, thus without workers."""
    cfg, cropper = trainer.cfg.clone(), trainer.cropper
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_data_loader(
        cfg,
        sampler,
        trainer.dm.dataset.train_x,
        batch_size,
        tfm=cropper.draw,
        is_train=is_train,
        dataset_wrapper=partial(ImageReader, cropper.pictures, trainer.augmentation),
        **options,
    )
    loader.collate_fn, loader.pin_memory = cropper.collate, False  # the pixels are there already
    return loader
