"""Dassl's loaders with the input that the model expects, over pictures that are decoded once."""

from __future__ import annotations

import hashlib
import json
import traceback
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform
from torch.utils.data import DataLoader, Subset

from ..errors import BlackBoxError, first_line
from .decoding import naming, regular
from .pictures import THREADS, Pictures, check_pictures, fits_whole, need_val
from .reader import Augmentation, ImageReader

OF_THE_MODEL = "SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD"  # keys of INPUT


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
    size, interpolation = tuple(description.image_size), description.interpolation
    wanted = size, interpolation, list(description.mean), list(description.std)
    for key, value in zip(OF_THE_MODEL, wanted, strict=True):
        given = cfg.INPUT[key]
        near = key != "INTERPOLATION" and np.allclose(given, value, rtol=0, atol=1e-4)
        if given not in (default[key], value) and not near:
            raise BlackBoxError(
                f"INPUT.{key} is {given}, but {description.name} expects {value}. Remove it from "
                f"the configuration: the model's own value is used."
            )
        cfg.INPUT[key] = value
    cfg.freeze()
    return cfg


Data = tuple[DataManager, Pictures, Augmentation]


def build_data(cfg: Any, transform: Any = None) -> Data:
    """The images that a configuration names; those of val and test are known to open.

    Dassl's data set and loaders, where training pictures are kept, and what decides the draws.

    Args:
        transform: of the training images, if not Dassl's.

    Raises:
        BlackBoxError: an image does not open; loaders that do not fit the data, which Dassl asserts
            without a word; evaluation on `val` without a validation split of its own.
    """
    augmentation, name = Augmentation(cfg.SEED, cfg.INPUT.VIEWS), cfg.DATASET.NAME
    pictures = Pictures(2**20 * cfg.INPUT.CACHE_MB)
    wrapper = partial(ImageReader, pictures, augmentation)
    try:
        manager = DataManager(cfg, custom_tfm_train=transform, dataset_wrapper=wrapper)
    except (AssertionError, NotImplementedError, ValueError, ZeroDivisionError) as e:
        if type(e) not in (AssertionError, NotImplementedError, ValueError, ZeroDivisionError):
            raise  # a sentence already
        raise BlackBoxError(
            f"The loaders of {name} cannot be built ({first_line(e)}). Check SAMPLER, BATCH_SIZE, "
            f"N_INS and N_DOMAIN in DATALOADER, and INPUT.TRANSFORMS."
        ) from e
    dataset = manager.dataset
    pictures.paths.update(item.impath for item in dataset.train_x)
    if cfg.TEST.SPLIT == "val":
        need_val(dataset, name)
    check_pictures((*(dataset.val or ()), *dataset.test), f"{name}, val and test")
    return manager, pictures, augmentation


def training_images(items: Sequence[Any], digests: Mapping[str, str] | None = None) -> str:
    """A SHA-256 of the training images, wherever they lie: names, labels and contents.

    The content is the files' bytes where these are at most `WHOLE` together, else their sizes and
    times of change, which a copy elsewhere may not keep.

    Args:
        digests: SHA-256 of files that were read already, by path.

    Raises:
        BlackBoxError: one cannot be read.
    """
    whole = fits_whole(item.impath for item in items)

    def content(path: str) -> str:
        with naming(path, "cannot be read"):
            found = regular(path)
            if whole:
                known = (digests or {}).get(path)
                return known or hashlib.sha256(Path(path).read_bytes()).hexdigest()
            return f"{found.st_size} {found.st_mtime_ns}"

    with ThreadPoolExecutor(THREADS) as pool:
        contents = list(pool.map(content, [item.impath for item in items]))
    every = hashlib.sha256()
    for item, found in zip(items, contents, strict=True):
        names = (unicodedata.normalize("NFC", part) for part in Path(item.impath).parts[-2:])
        every.update(json.dumps([*names, item.label, item.classname, found]).encode())
    return every.hexdigest()


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


def ordered_loader(
    cfg: Any,
    items: Sequence[Any],
    pictures: Pictures,
    augmentation: Augmentation | None = None,
    batch_size: int = 0,
    in_turns: bool = False,
    sampler: str = "SequentialSampler",
) -> DataLoader:
    """The items in order, the last batch kept: for fitness on a whole set, and for its views.

    Un-augmented without an `augmentation`. With `in_turns`, one image of every class, then a second
    of every class, …: what a budget leaves of the last view is then spread over the classes.
    """

    def wrapper(*args: Any, **options: Any) -> Any:
        reader = ImageReader(pictures, augmentation or Augmentation(0), *args, **options)
        return Subset(reader, turns([item.label for item in items])) if in_turns else reader

    with redirect_stdout(StringIO()):  # the log tells of Dassl's transforms already
        transform = build_transform(cfg, augmentation is not None)
    size = batch_size or cfg.DATALOADER.TEST.BATCH_SIZE
    return build_data_loader(
        cfg, sampler, items, size, tfm=transform, is_train=False, dataset_wrapper=wrapper
    )


def turns(labels: Sequence[int]) -> list[int]:
    """Numbers of the items: the first ones of all classes, the second ones, …."""
    before: Counter[int] = Counter()
    turn = []
    for label in labels:
        turn.append(before[label])
        before[label] += 1
    return sorted(range(len(labels)), key=turn.__getitem__)


def augmented_loader(
    cfg: Any, items: Sequence[Any], pictures: Pictures, augmentation: Augmentation, batch_size: int
) -> DataLoader:
    """The items shuffled and augmented, the last batch kept: for a head."""
    return ordered_loader(cfg, items, pictures, augmentation, batch_size, sampler="RandomSampler")


def of_all_classes(cfg: Any) -> list[Any]:
    """The training images of the data set's classes, of base and new ones alike."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    return build_dataset(cfg).train_x
