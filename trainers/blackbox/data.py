"""Dassl's loaders over pictures that are checked before anything is paid for, and decoded once.

An ordinary 8-bit picture comes out as `Image.open(path).convert("RGB")` has it. Beyond that, 16-bit
grey is scaled, transparency is composited on white, and EXIF's orientation is applied.
"""

import hashlib
import json
import os
import random
import traceback
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from itertools import count, repeat
from multiprocessing import get_start_method
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform
from PIL import Image, ImageDraw, ImageOps
from torch.utils.data import DataLoader

from .errors import BlackBoxError, first_line, printable

OF_THE_MODEL = "SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD"  # keys of INPUT
FEW, WHOLE = 2**27, 2**30  # bytes of files that are decoded to be checked, of test and of training
LONGEST = 1000  # times the shorter side: resized to a shorter side of 224, 50 million pixels
ORIENTATION = 0x0112  # EXIF's tag
# TIFF's tags about levels, which Pillow does not apply to grey of more than 8 bits. MaxSampleValue
# is not among them: by TIFF 6.0 it must not change what is seen.
BITS, PHOTOMETRIC, SAMPLE_FORMAT, LOWEST, HIGHEST = 258, 262, 339, 340, 341
# what is done to pictures that CoOp's loader reads otherwise, by the words of the note
DEEP = "of more than 8 bits (scaled to 8, where CoOp clips them)"
DIM = "nearly black for their range (12 bits in 16? Name the top in the TIFF tag SMaxSampleValue)"
CLEAR = "with transparency (composited on white, where CoOp drops it)"
TURNED = "with an EXIF orientation (applied, where CoOp ignores it)"


def look(
    path: str, decoding: bool = True, hashes: dict[str, str] | None = None
) -> tuple[Image.Image, list[str]]:
    """The RGB picture of a file, and the rules that touch it; or, not decoding, its header.

    The SHA-256 of the file goes into `hashes`.
    """
    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            raise OSError("there is no regular file of that name")
        with open(path, "rb") as file, Image.open(file) as image:
            if max(image.size) > LONGEST * min(image.size):
                width, height = image.size
                raise ValueError(f"it is {width:,} x {height:,} pixels, too narrow: crop it")
            picture = to_rgb(image) if decoding else image
            rules = rules_of(image)
            if decoding and DEEP in rules and 0 < int(np.asarray(picture).max()) < 32:
                rules.append(DIM)  # it ends below an eighth of the range
            if hashes is not None:
                file.seek(0)
                hashes[path] = hashlib.sha256(file.read()).hexdigest()
            return picture, rules
    except Exception as e:  # of many kinds on damaged data, those of `struct` and `zlib` among them
        raise BlackBoxError(
            f"The image {printable(path)} cannot be decoded ({first_line(e)}). Replace the file, "
            f"or copy the data set anew."
        ) from e


def rules_of(image: Image.Image) -> list[str]:
    """The rules that touch a picture of which the header is read."""
    deep = image.mode in ("I", "F") or image.mode.startswith("I;")
    rules = [DEEP] if deep else [CLEAR] if image.has_transparency_data else []
    return rules + [TURNED] * (orientation(image) in range(2, 9))


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 where there is none, and in a TIFF, which Pillow turns."""
    try:  # a PNG's own `getexif` would decode it
        return 1 if image.format == "TIFF" else Image.Image.getexif(image).get(ORIENTATION, 1)
    except Exception:  # what cannot be read says nothing: the picture beside it may be sound
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture, decoded by the rules."""
    image.load()
    rules, tags = rules_of(image), getattr(image, "tag_v2", {PHOTOMETRIC: 1})  # a TIFF's
    if DEEP in rules:
        picture = shallow(image, tags)
    elif 2 in np.ravel(tags.get(SAMPLE_FORMAT, 1)):
        raise ValueError("it has signed levels of 8 bits, which are not read; save it unsigned")
    elif CLEAR in rules:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        picture = Image.alpha_composite(white, clear).convert("RGB")
    else:
        picture = image.convert("RGB")
    if TURNED not in rules:
        return picture
    picture.info = {}  # the rest of EXIF may be damaged
    picture.getexif()[ORIENTATION] = orientation(image)
    return ImageOps.exif_transpose(picture)


def shallow(image: Image.Image, tags: Any) -> Image.Image:
    """A grey picture of more than 8 bits -> RGB of 8: 0 is black, the top of its range white.

    Integers of 32 bits and floats say nothing of their range: it is the smallest of 1 (floats), 255
    and 65,535 that holds them. A TIFF's tags can name another range, or make white 0.
    """
    if image.format not in ("JPEG2000", "PNG", "PPM", "TIFF"):
        raise ValueError(f"it has more than 8 bits a level in {image.format}; save it as PNG")
    levels = np.asarray(image)
    bits, signed = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    top = 2 ** (min(bits, 16) - (signed and bits <= 16)) - 1
    tops = {"F": (1, 255, top), "I": (255, top)} if image.format == "TIFF" else {}
    low, high, lowest = levels.min(), levels.max(), float(np.ravel(tags.get(LOWEST, 0))[0])
    highest = [float(np.ravel(tags.get(HIGHEST, top))[0]) for top in tops.get(image.mode, (top,))]
    white = next((top for top in highest if lowest <= low and high <= top and lowest < top), None)
    if white is None:
        raise ValueError(f"its levels go from {low:g} to {high:g}; save it with 8 or 16 bits")
    # without the tag, Pillow takes white for 0 in 8 bits
    black, white = (lowest, white) if tags.get(PHOTOMETRIC, 0) else (white, lowest)
    grey = np.rint((levels.astype(np.float32) - black) * (255 / (white - black))).astype(np.uint8)
    if "transparency" in image.info:
        grey[levels == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


class Pictures:
    """What was seen of files: their state, SHA-256, and the decoded pictures of training images.

    Those in `paths` are kept, as RGB, within a bound of bytes.
    """

    def __init__(self, limit: int) -> None:
        self.room, self.paths = limit, set[str]()
        self.decoded: dict[str, Image.Image] = {}
        self.stats, self.hashes = dict[str, os.stat_result](), dict[str, str]()

    def stat(self, path: str) -> os.stat_result:
        """Of a file, when it was first asked for."""
        if path not in self.stats:
            self.stats[path] = os.stat(path)
        return self.stats[path]

    def open(self, path: str) -> Image.Image:
        """The picture of any file, not to be changed in place; raises as `look`."""
        return self.decoded.get(path) or look(path)[0]

    def load(self, what: str) -> None:
        """Check those in `paths`, once; what is kept is there for processes that are forked."""
        paths, most = sorted(self.paths), max(WHOLE, self.room // 8)  # JPEG's eighth
        hashed = sum(self.stat(path).st_size for path in paths) <= WHOLE
        self.check(paths, most, what, self.hashes if hashed else None)
        self.paths.clear()

    def check(
        self, paths: Sequence[str], most: int, what: str, hashes: dict[str, str] | None = None
    ) -> None:
        """Look at all files, and decode the first ones, of `most` bytes; raises as `look`."""
        counts: Counter[str] = Counter()
        decoding = (np.cumsum([self.stat(path).st_size for path in paths]) <= most).tolist()
        with ThreadPoolExecutor(4) as pool:  # Pillow and disks work beside Python
            looked = pool.map(look, paths, decoding, repeat(hashes))
            for path, decoded, (picture, rules) in zip(paths, decoding, looked, strict=True):
                counts.update(rules)
                size = picture.width * picture.height * 4  # Pillow keeps four bytes a pixel
                if decoded and path in self.paths and size <= self.room:
                    self.room -= size
                    self.decoded[path] = picture
        if counts:
            words = ", ".join(f"{number:,} {rule}" for rule, number in counts.items())
            print(f"Note: {what}: of {len(paths):,} images {words}. CoOp's results may differ")

    def shared(self, items: Sequence[Any], others: Sequence[Any]) -> str:
        """An image of the first list that is in the second, by whatever name or link, or ""."""
        files = {self.stat(item.impath)[1:3] for item in others}  # inode and device
        return next((item.impath for item in items if self.stat(item.impath)[1:3] in files), "")

    def need_val(self, dataset: Any, name: str) -> None:
        """Raise unless there are validation images, none of them a test or a training image."""
        for part, others in (("test", dataset.test), ("training", dataset.train_x)):
            same = self.shared(dataset.val or [], others)
            if same or not dataset.val:
                raise BlackBoxError(
                    f"{name} has no validation split of its own: TEST.FINAL_MODEL best_val, "
                    f"TEST.SPLIT val and ORACLE.VAL_EVERY would look at the {part} images"
                    f"{same and f' ({same})'}."
                )


def checked_training(cfg: Any, dataset: Any, pictures: Pictures) -> str:
    """Check the training images, and what they are held against; returns `training_images`."""
    name = cfg.DATASET.NAME
    if cfg.TEST.FINAL_MODEL == "best_val" or cfg.ORACLE.VAL_EVERY:
        pictures.need_val(dataset, name)
    # ImageNet's variants have nothing else
    if same := pictures.shared(dataset.train_x, dataset.test):
        raise BlackBoxError(
            f"{name}: the training image {same} and a test image are the same file. Take it out of "
            f"one of them; a data set for testing only needs --eval-only --model-dir."
        )
    if cfg.DATALOADER.NUM_WORKERS and get_start_method() != "fork":
        pictures.room = 0  # every worker would keep its own, for an epoch
    pictures.load(f"{name}, train")
    return training_images(dataset.train_x, pictures)


def training_images(items: Sequence[Any], pictures: Pictures | None = None) -> str:
    """A SHA-256 of the training images, wherever they lie: names, labels and contents.

    The content is the files' bytes where these are at most `WHOLE` together, else their sizes and
    times of change, which a copy elsewhere may not keep.
    """
    seen, every = pictures or Pictures(0), hashlib.sha256()
    whole = sum(seen.stat(item.impath).st_size for item in items) <= WHOLE
    for item in items:
        path, found = Path(item.impath), seen.stat(item.impath)
        content = f"{found.st_size} {found.st_mtime_ns}"
        if whole:
            known = seen.hashes.get(item.impath)
            content = known or hashlib.sha256(path.read_bytes()).hexdigest()
        names = (unicodedata.normalize("NFC", part) for part in path.parts[-2:])
        every.update(json.dumps([*names, item.label, item.classname, content]).encode())
    return every.hexdigest()


class Augmentation:
    """Decides every draw of an image's augmentation: from the run's seed, the image and the epoch.

    So worker processes, which get a copy at an epoch's start, draw as the main process would, whose
    random states are left as they were. `views` of an image take turns by epoch (0: ever new ones);
    a negative seed is replaced by a random one, which the run's checkpoints keep.
    """

    def __init__(self, seed: int, views: int = 0):
        self.seed = seed if seed >= 0 else int.from_bytes(os.urandom(7), "big")
        self.views, self.epoch = views, 0

    @contextmanager
    def of(self, index: int) -> Iterator[None]:
        """Within this context all random sources of transforms begin where the image decides."""
        view = self.epoch % self.views if self.views else self.epoch
        digest = hashlib.sha256(f"{self.seed} {index} {view}".encode()).digest()
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            random.seed(digest)
            np.random.seed(np.frombuffer(digest, np.uint32))
            # the CPU's generator alone: `torch.manual_seed` tells every device, which takes longer
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


class ImageReader(DatasetWrapper):
    """Items as Dassl's dataset wrapper makes them, over `pictures`, drawn by `augmentation`."""

    def __init__(self, pictures: Pictures, augmentation: Any, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.pictures, self.augmentation = pictures, augmentation

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        made = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        picture = self.pictures.open(item.impath)
        # nothing is drawn in evaluation, and it takes longer than a small picture does
        with self.augmentation.of(index) if self.is_train else nullcontext():
            return {**made, "img": self.transform(picture)}


def cutout(picture: Image.Image, share: float) -> Image.Image:
    """A rectangle of a random colour and of `share` of a picture's sides, around a random point.

    https://arxiv.org/abs/1708.04552, with a colour in place of black; a border may cut it.
    """
    picture = picture.copy()
    centre = np.array([random.randrange(side) for side in picture.size])
    half = np.rint(share * np.array(picture.size)).astype(int) // 2
    colour = tuple(random.randrange(256) for _ in range(3))
    ImageDraw.Draw(picture).rectangle([*(centre - half), *(centre + half)], fill=colour)
    return picture


def crop_or_cutout(cfg: Any, share: float) -> T.Compose:
    """Dassl's train transform; half of what it crops by random is resized whole and cut out."""
    built = build_transform(cfg, is_train=True)
    for n, step in enumerate(built.transforms):
        if isinstance(step, T.RandomResizedCrop):
            whole = T.Compose([T.Resize(step.size), partial(cutout, share=share)])
            built.transforms[n] = T.RandomChoice([step, whole])
            print(f"+ in half of the images resize and cutout ({share}) for random resized crop")
    return built


def match_input(cfg: Any, description: Any) -> Any:
    """The configuration with the model's input size, normalisation and interpolation.

    A value that is Dassl's default counts as not given; others that differ are a BlackBoxError.
    """
    default, cfg, model = get_cfg_default().INPUT, cfg.clone(), description
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        raise BlackBoxError(f"INPUT.TRANSFORMS lacks 'normalize', which {model.name} expects.")
    cfg.defrost()
    wanted = tuple(model.image_size), model.interpolation, list(model.mean), list(model.std)
    for key, value in zip(OF_THE_MODEL, wanted, strict=True):
        given = cfg.INPUT[key]
        if given not in (default[key], value):
            raise BlackBoxError(
                f"INPUT.{key} is {given}, but {model.name} expects {value}: omit it."
            )
        cfg.INPUT[key] = value
        print(f"INPUT.{key}: {value}")
    cfg.freeze()
    return cfg


def build_data(cfg: Any, transform: Any = None) -> tuple[DataManager, Pictures, Augmentation]:
    """Dassl's data set and loaders, where training pictures are kept, and what decides the draws.

    Images of val and test are known to open. `transform` is of the training images, if not Dassl's.
    """
    augmentation, name = Augmentation(cfg.SEED, cfg.INPUT.VIEWS), cfg.DATASET.NAME
    pictures = Pictures(2**20 * cfg.INPUT.CACHE_MB)
    try:
        manager = DataManager(cfg, transform, None, partial(ImageReader, pictures, augmentation))
    except (AssertionError, NotImplementedError, ValueError, ZeroDivisionError) as e:
        raise BlackBoxError(
            f"The loaders cannot be built ({first_line(e)}). Check DATALOADER and INPUT.TRANSFORMS."
        ) from e
    dataset = manager.dataset
    if cfg.TEST.SPLIT == "val":
        pictures.need_val(dataset, name)
    tested = {item.impath for item in (*(dataset.val or ()), *dataset.test)}
    pictures.check(sorted(tested), FEW, f"{name}, val and test")
    pictures.paths = {item.impath for item in dataset.train_x}
    return manager, pictures, augmentation


def ordered_loader(
    cfg: Any,
    pictures: Pictures,
    items: Sequence[Any],
    augmentation: Augmentation | None = None,
    batch_size: int = 0,
    in_turns: bool = False,
    shuffled: bool = False,
) -> DataLoader:
    """The items in order, or `shuffled`, the last batch kept; augmented with an `augmentation`.

    `in_turns`: one image of every class, then a second, …; a budget that ends leaves out no class.
    """
    with redirect_stdout(None):  # the log tells of Dassl's transforms already
        transform = build_transform(cfg, augmentation is not None)
    before: defaultdict[int, count] = defaultdict(count)
    turn = [next(before[item.label]) for item in items]
    return DataLoader(
        ImageReader(pictures, augmentation, cfg, items, transform, augmentation is not None),
        batch_size or cfg.DATALOADER.TEST.BATCH_SIZE,
        shuffled,
        sorted(range(len(items)), key=turn.__getitem__) if in_turns else None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


def of_all_classes(cfg: Any, seed: int, shots: int) -> list[Any]:
    """The training images of such a draw, of base and new classes alike."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED, cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = seed, shots, "all"
    return build_dataset(cfg).train_x


@contextmanager
def naming_workers(workers: int) -> Iterator[None]:
    """Turn a failure of the loaders' worker processes, whatever it interrupts, into a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as e:
        trace = traceback.format_exc()
        if not workers or not ("dataloader.py" in trace or "DataLoader worker" in trace):
            raise
        raise BlackBoxError(
            f"The loaders' worker processes failed ({str(e).strip().splitlines()[-1]}). They need "
            f"memory, and shared memory: make /dev/shm larger (docker run --shm-size 8g), or set "
            f"DATALOADER.NUM_WORKERS to a smaller number, or to 0."
        ) from e
