"""Dassl's loaders with the input that the model expects, and errors that name the image."""

import hashlib
import multiprocessing
from functools import partial

import torch
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.transforms import build_transform

from .crops import Cropper
from ..run.errors import BlackBoxError
from .pictures import Pictures

VIEWED = {
    "random_resized_crop",
    "random_flip",
    "normalize",
}  # transforms that draw from torch's generator alone


class ImageReader(DatasetWrapper):
    """Dassl's dataset wrapper over pictures that are decoded once; an image that cannot be decoded is named."""

    def __init__(self, pictures, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pictures = pictures

    def view(self, index, picture):
        """What the transform makes of a picture. With `INPUT.VIEWS` it draws from the run's seed, the image and the epoch's view alone."""
        views = self.cfg.INPUT.VIEWS
        if not views:
            return self.transform(picture)
        name = f"{self.cfg.SEED} {index} {self.pictures.epoch % views}"
        state = torch.get_rng_state()
        try:  # of the CPU's generator alone: `torch.manual_seed` tells every device, which takes longer than the crop
            torch.default_generator.manual_seed(
                int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
            )
            return self.transform(picture)
        finally:
            torch.set_rng_state(state)

    def __getitem__(self, index):
        item = self.data_source[index]
        try:
            if self.k_tfm > 1 or self.return_img0 or not callable(self.transform):
                return super().__getitem__(index)
            image = self.view(index, self.pictures.open(item.impath))
        except (
            OSError,
            SyntaxError,
            ValueError,
        ) as e:  # Pillow raises any of them on a broken file
            raise BlackBoxError(
                f"The image {item.impath} cannot be decoded ({e}). Replace the file, or copy the data set anew."
            ) from e
        return {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": index,
            "img": image,
        }


def match_input(cfg, description):
    """The configuration with the model's input size, normalisation and interpolation.

    A value that still is Dassl's default counts as not given; any other must agree with the model's.

    Raises:
        BlackBoxError: `cfg.INPUT` contradicts the model.
    """
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        raise BlackBoxError(
            f"INPUT.TRANSFORMS is {list(cfg.INPUT.TRANSFORMS)}, without 'normalize', but {description.name} expects normalised pixels. "
            f"Add it, as the YAMLs in configs/trainers do."
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
                f"INPUT.{key} is {given}, but {description.name} expects {value}. Remove it from the configuration: "
                f"the model's own value is used."
            )
        cfg.INPUT[key] = value
    cfg.freeze()
    return cfg


def same(a, b):
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return len(a) == len(b) and all(abs(x - y) < 1e-4 for x, y in zip(a, b))


def build_data(trainer):
    """Give a trainer what `SimpleTrainer.build_data_loader` gives it, over pictures that are decoded once; returns the data manager.

    Raises:
        BlackBoxError: `INPUT.VIEWS` with a transform that draws from other sources than torch's; `INPUT.CROP_ON_DEVICE` with one that is not made there; evaluation on `val`
            without a validation split of its own.
    """
    cfg = trainer.cfg
    other = set(cfg.INPUT.TRANSFORMS) - VIEWED
    if cfg.INPUT.VIEWS and other:
        raise BlackBoxError(
            f"INPUT.VIEWS keeps views that are drawn by {', '.join(sorted(VIEWED))}; INPUT.TRANSFORMS has {', '.join(sorted(other))} besides. Leave them "
            f"out, or set INPUT.VIEWS to 0."
        )
    trainer.pictures = Pictures(2**20 * cfg.INPUT.CACHE_MB)
    trainer.dm = dm = DataManager(cfg, dataset_wrapper=partial(ImageReader, trainer.pictures))
    trainer.pictures.paths.update(item.impath for item in dm.dataset.train_x)
    trainer.train_loader_x, trainer.train_loader_u = dm.train_loader_x, dm.train_loader_u
    trainer.cropper = None
    if cfg.INPUT.CROP_ON_DEVICE:
        node = cfg.DATALOADER.TRAIN_X
        if cfg.DATALOADER.K_TRANSFORMS > 1 or cfg.DATALOADER.RETURN_IMG0:
            raise BlackBoxError(
                "INPUT.CROP_ON_DEVICE makes one view of a picture by random_resized_crop; DATALOADER.K_TRANSFORMS or RETURN_IMG0 asks for more. Set it to False, or them to 1 "
                "and False."
            )
        trainer.cropper = Cropper(
            dm.train_loader_x.dataset.transform, trainer.device, 2**20 * cfg.INPUT.CACHE_MB
        )
        trainer.cropper.pictures.paths.update(trainer.pictures.paths)
        trainer.train_loader_x = device_loader(
            trainer, node.SAMPLER, node.BATCH_SIZE, True, n_domain=node.N_DOMAIN, n_ins=node.N_INS
        )
    trainer.val_loader, trainer.test_loader = dm.val_loader, dm.test_loader
    trainer.num_classes, trainer.num_source_domains, trainer.lab2cname = (
        dm.num_classes,
        dm.num_source_domains,
        dm.lab2cname,
    )
    if cfg.TEST.SPLIT == "val":
        need_val(dm.dataset, cfg.DATASET.NAME)
    return dm


def need_val(dataset, name):
    """Raise unless there are validation images, and none of them is a test image."""
    test = {item.impath for item in dataset.test}
    if not dataset.val or any(item.impath in test for item in dataset.val):
        raise BlackBoxError(
            f"{name} has no validation split of its own, so TEST.FINAL_MODEL best_val (or TEST.SPLIT val, or "
            f"ORACLE.VAL_EVERY) would look at the test images. Use TEST.FINAL_MODEL last_step, or a data set with a val split."
        )


class Pictured:
    """The part of a trainer that looks after its training pictures, before Dassl's trainer in the order of bases."""

    def check_training(self):
        """Raise where training would look at test images: as training images (ImageNet's variants have nothing else), or as validation images."""
        cfg, dataset, name = self.cfg, self.dm.dataset, self.cfg.DATASET.NAME
        if cfg.TEST.FINAL_MODEL == "best_val" or cfg.ORACLE.VAL_EVERY:
            need_val(dataset, name)
        test = {item.impath for item in dataset.test}
        shared = next((item.impath for item in dataset.train_x if item.impath in test), None)
        if shared is not None:
            raise BlackBoxError(
                f"{name} is for testing only: its training images are test images ({shared}). Train on another data set, and evaluate here with "
                f"--eval-only --model-dir DIR."
            )

    def before_train(self):
        self.check_training()
        self.share_pictures()
        super().before_train()

    def share_pictures(self):
        """With worker processes, which live for an epoch, decode the training pictures before they are forked; without, each is decoded when it is first used.

        Workers that are not forked would each keep pictures of their own for an epoch: there nothing is kept. Nor where they are cropped on the device, which has them then.
        """
        workers = self.cfg.DATALOADER.NUM_WORKERS
        if self.cropper is not None:
            self.cropper.pictures.load(workers)
        elif workers and multiprocessing.get_start_method() == "fork":
            self.pictures.load(workers)
        if workers or self.cropper is not None:
            self.pictures.paths.clear()

    def before_epoch(self):
        self.pictures.epoch = self.epoch
        if self.cropper is not None:
            self.cropper.pictures.epoch = self.epoch


def ordered_loader(cfg, items, pictures):
    """The items in order, un-augmented, the last batch kept: for fitness on a whole set."""
    return build_data_loader(
        cfg,
        "SequentialSampler",
        items,
        cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=build_transform(cfg, is_train=False),
        is_train=False,
        dataset_wrapper=partial(ImageReader, pictures),
    )


def augmented_loader(trainer, batch_size):
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
        dataset_wrapper=partial(ImageReader, trainer.pictures),
    )


def device_loader(trainer, sampler, batch_size, is_train, **options):
    """Dassl's loader of the training images, cropped on the device and therefore without worker processes."""
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
        dataset_wrapper=partial(ImageReader, cropper.pictures),
        **options,
    )
    loader.collate_fn, loader.pin_memory = cropper.collate, False  # the pixels are there already
    return loader
