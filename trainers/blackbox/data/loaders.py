"""Dassl's loaders with the input that the model expects, over pictures that are decoded once."""

from __future__ import annotations

import multiprocessing
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform
from torch.utils.data import DataLoader, Subset

from ..run.errors import BlackBoxError, first_line
from .checks import check_pictures, need_apart, need_val, note_rules, training_images
from .pictures import Pictures
from .reader import Augmentation, ImageReader

OF_THE_MODEL = "SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD"  # keys of INPUT
__all__ = [
    "OF_THE_MODEL",
    "Data",
    "Pictured",
    "augmented_loader",
    "build_data",
    "match_input",
    "naming_workers",
    "need_val",
    "of_all_classes",
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
    wanted = (
        tuple(description.image_size),
        description.interpolation,
        list(description.mean),
        list(description.std),
    )
    for key, value in zip(OF_THE_MODEL, wanted, strict=True):
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


@dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
        manager: Dassl's, with its data set and loaders.
        pictures: where training pictures are kept.
        augmentation: what decides the draws of the train loaders.
    """

    manager: DataManager
    pictures: Pictures
    augmentation: Augmentation


def build_data(cfg: Any, transform: Any = None) -> Data:
    """The images that a configuration names; those of val and test are known to open.

    Args:
        transform: of the training images, if not Dassl's.

    Raises:
        BlackBoxError: an image does not open; loaders that do not fit the data; evaluation on `val`
            without a validation split of its own.
    """
    augmentation = Augmentation(cfg.SEED, cfg.INPUT.VIEWS)
    pictures = Pictures(2**20 * cfg.INPUT.CACHE_MB)
    manager = manage(cfg, partial(ImageReader, pictures, augmentation), transform)
    pictures.paths.update(item.impath for item in manager.dataset.train_x)
    if cfg.TEST.SPLIT == "val":
        need_val(manager.dataset, cfg.DATASET.NAME)
    check_pictures(manager.dataset, cfg.DATASET.NAME)
    return Data(manager, pictures, augmentation)


def manage(cfg: Any, wrapper: Any, transform: Any) -> DataManager:
    """Dassl's data manager; what it asserts without a word becomes a sentence."""
    try:
        return DataManager(cfg, custom_tfm_train=transform, dataset_wrapper=wrapper)
    except (AssertionError, NotImplementedError, ValueError, ZeroDivisionError) as e:
        if type(e) not in (AssertionError, NotImplementedError, ValueError, ZeroDivisionError):
            raise  # a sentence already
        raise BlackBoxError(
            f"The loaders of {cfg.DATASET.NAME} cannot be built ({first_line(e)}). Check SAMPLER, "
            f"BATCH_SIZE, N_INS and N_DOMAIN in DATALOADER, and INPUT.TRANSFORMS."
        ) from e


@contextmanager
def naming_workers(workers: int) -> Iterator[None]:
    """Turn a failure of the loaders' worker processes into a sentence.

    A worker that dies is told by a signal, in the midst of whatever is done here.
    """
    try:
        yield
    except (OSError, RuntimeError) as e:
        files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(e.__traceback__))
        at_loader = any(file.endswith("dataloader.py") for file in files)
        if not workers or not (at_loader or "DataLoader worker" in str(e)):
            raise
        raise BlackBoxError(
            f"The loaders' worker processes failed ({str(e).strip().splitlines()[-1]}). They hand "
            f"over images in shared memory, /dev/shm, and need memory of their own. Make /dev/shm "
            f"larger (docker run --shm-size 8g), or set DATALOADER.NUM_WORKERS to a smaller number "
            f"or to 0."
        ) from e


class Pictured:
    """The part of a trainer that looks after its pictures, before Dassl's in the order of bases."""

    # Dassl's
    cfg: Any
    dm: DataManager
    epoch: int
    pictures: Pictures
    augmentation: Augmentation

    def take(self, data: Data) -> None:
        """Have what `SimpleTrainer.build_data_loader` gives a trainer, and where it comes from."""
        self.pictures, self.augmentation = data.pictures, data.augmentation
        self.dm = dm = data.manager
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname
        self.num_source_domains = dm.num_source_domains

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
        each keep their own, and there nothing is kept.
        """
        workers, kept = self.cfg.DATALOADER.NUM_WORKERS, self.pictures
        if workers and multiprocessing.get_start_method() != "fork":
            kept = Pictures(0)
            kept.paths.update(self.pictures.paths)
        total, counts = len(kept.paths), kept.load()
        note_rules(counts, total, f"{self.cfg.DATASET.NAME}, train")
        if workers:
            self.pictures.paths.clear()

    def before_train(self) -> None:
        self.check_training()
        super().before_train()  # type: ignore[misc]  # Dassl's

    def before_epoch(self) -> None:
        self.augmentation.epoch = self.epoch
        super().before_epoch()  # type: ignore[misc]  # Dassl's


class InTurns(Subset):
    """A data set of `items` that goes one image of every class, then a second of every class, ….

    What a budget leaves of the last view is then spread over the classes. An item keeps its number.
    """

    def __init__(self, reader: ImageReader, items: Sequence[Any]) -> None:
        before: Counter[int] = Counter()
        turns = []
        for item in items:
            turns.append(before[item.label])
            before[item.label] += 1
        super().__init__(reader, sorted(range(len(items)), key=turns.__getitem__))


def transform_of(cfg: Any, is_train: bool) -> Any:
    """Dassl's, of which the log tells already."""
    with redirect_stdout(StringIO()):
        return build_transform(cfg, is_train)


def ordered_loader(
    cfg: Any,
    items: Sequence[Any],
    pictures: Pictures,
    augmentation: Augmentation | None = None,
    batch_size: int = 0,
    in_turns: bool = False,
) -> DataLoader:
    """The items in order, the last batch kept: for fitness on a whole set, and for its views.

    Un-augmented without an `augmentation`; the classes take turns with `in_turns`.
    """

    def wrapper(cfg: Any, items: Sequence[Any], **options: Any) -> Any:
        reader = ImageReader(pictures, augmentation or Augmentation(0), cfg, items, **options)
        return InTurns(reader, items) if in_turns else reader

    return build_data_loader(
        cfg,
        "SequentialSampler",
        items,
        batch_size or cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=transform_of(cfg, augmentation is not None),
        is_train=False,
        dataset_wrapper=wrapper,
    )


def of_all_classes(cfg: Any) -> list[Any]:
    """The training images of the data set's classes, of base and new ones alike."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    return build_dataset(cfg).train_x


def augmented_loader(
    cfg: Any, items: Sequence[Any], pictures: Pictures, augmentation: Augmentation, batch_size: int
) -> DataLoader:
    """The items shuffled and augmented, the last batch kept: for a head."""
    return build_data_loader(
        cfg,
        "RandomSampler",
        items,
        batch_size,
        tfm=transform_of(cfg, True),
        is_train=False,
        dataset_wrapper=partial(ImageReader, pictures, augmentation),
    )
