"""What a model answers about pictures, each of which is asked about once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from dassl.data.transforms import build_transform
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from .datasets.listing import are_pictures
from .trainers.blackbox.config import check_cfg, defaults, put
from .trainers.blackbox.data import FEW, Augmentation, ImageReader, Pictures, look, match_input
from .trainers.blackbox.errors import BlackBoxError
from .trainers.blackbox.oracle import QUERY_IMAGES, Meter, Prompt, Texts, build_oracle
from .trainers.blackbox.oracle.bill import batches_of, price, total
from .trainers.blackbox.record import few

KEPT = 20_000  # pictures whose answers are kept, beside those of training
FEATURES = 2**22  # bytes of features that a local model keeps
Key = tuple[str, int]  # a picture's content, and which view of it
Bill = dict[str, int | float]
BILLED = "queries", "pictures", "calls"


class BadExamples(BlackBoxError, ValueError):
    """Pictures or labels that nothing can be made of; the text says why."""


def listed(X: Any) -> list[Any]:
    """The pictures of X one by one: the files in a folder and below it, sorted, or X's own."""
    if not isinstance(X, (str, Path)):
        return list(X)
    if Path(X).is_file():
        return [str(X)]
    if not Path(X).is_dir():
        raise BadExamples(f"{X} is neither a picture nor a folder of pictures.")
    files = [str(path) for path in sorted(Path(X).rglob("*")) if path.is_file()]
    return are_pictures(files)


def labelled(X: Any, y: Any = None) -> tuple[list[Any], list[Any]]:
    """Pictures and labels: X and y, or those in a folder's class folders, which are the labels."""
    if y is not None or not isinstance(X, (str, Path)):
        return listed(X), [] if y is None else list(y)
    folders = sorted(path for path in Path(X).glob("*") if path.is_dir())
    items = [(path, folder.name) for folder in folders for path in listed(folder)]
    deep = [path for path, name in items if Path(path).parent.name != name]
    if deep or not items:
        what = f"{deep[0]} lies in a folder within one" if deep else "it has none with pictures"
        raise BadExamples(f"{X} should hold a folder for each class, named after it: {what}.")
    return [path for path, _ in items], [name for _, name in items]


def named(given: Sequence[Any] | Mapping[Any, str] | None, labels: list[Any]) -> dict[Any, str]:
    """Names of the classes by label: as they are given, or those of the labels, sorted."""
    given = sorted(set(labels)) if given is None else given
    names = dict(given) if isinstance(given, Mapping) else {one: str(one) for one in given}
    told = few([*map(str, names)])
    for label in labels:
        if label not in names:
            raise BadExamples(f"The label {label!r} is none of the classes {told}.")
    if len(names) < 2:
        there = f"one class alone, {next(iter(names))}" if names else "no label"
        raise BadExamples(f"There is {there}: give two classes or more.")
    if len(set(names.values())) < len(names):
        raise BadExamples(f"Two of the classes {told} have one name.")
    return names


class Gallery:
    """Pictures, and the digests of their contents; of the first ones these are known already, and
    they need not be there. Files stay decoded, up to 128 MB.

    Raises BlackBoxError for one that cannot be decoded: all within 128 MB, others by their header.
    """

    def __init__(self, given: Sequence[Any], known: Sequence[str] = ()) -> None:
        self.pictures, self.items, digests = Pictures(FEW), list[Any](), dict[str, str]()
        for number, one in enumerate(given):
            is_path = isinstance(one, (str, os.PathLike))
            name = os.fspath(one) if is_path else f"picture {number}"
            self.items.append(SimpleNamespace(impath=name, label=0, domain=0))
            if not is_path:
                self.pictures.decoded[name] = picture = in_memory(one, number)
                content = repr(picture.size).encode() + picture.tobytes()
                digests[name] = hashlib.sha256(content).hexdigest()
        new = [item.impath for item in self.items[len(known) :]]
        files = sorted(set(new) - digests.keys())
        for name in files:
            if not os.path.isfile(name):
                look(name)  # which says so
        self.pictures.paths.update(files)
        self.pictures.check(files, FEW, "the pictures", digests)
        self.contents = [*known, *(digests[name] for name in new)]

    def there(self, number: int) -> bool:
        """Whether a picture can be asked about."""
        name = self.items[number].impath
        return name in self.pictures.decoded or os.path.isfile(name)

    def keys(self, view: int = 0) -> list[Key]:
        return [(content, view) for content in self.contents]


def in_memory(one: Any, number: int) -> Image.Image:
    """The RGB picture of a PIL image, or of an array of 8-bit levels."""
    if isinstance(one, Image.Image):
        return one.convert("RGB")
    levels = np.asarray(one)
    if levels.dtype != np.uint8 or levels.shape[2:] not in ((), (3,)) or not levels.size:
        raise BadExamples(
            f"Picture {number} is of {levels.dtype}, {levels.shape}: a path, a PIL image, or 8-bit "
            f"levels [H, W, 3] or [H, W] are expected."
        )
    return Image.fromarray(levels).convert("RGB")


class Question(NamedTuple):
    """What pictures are scored on: the class texts, and some of the further texts, by number."""

    classes: Texts
    further: Texts | None = None
    part: Sequence[int] = ()

    @property
    def texts(self) -> Texts | None:
        if self.further is None or not len(self.part):
            return None
        return Texts.of((self.further.names[i] for i in self.part), self.further.template)


class Answers:
    """A model's scores of pictures, kept by content: nothing is asked twice.

    Args:
        model, options, flip: see `ScoreClassifier`.
    """

    def __init__(self, model: str, options: Mapping[str, Any], flip: bool) -> None:
        self.cfg = cfg = defaults()
        cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.DATALOADER.NUM_WORKERS = "SONAR", "ImageFolder", 0
        cfg.INPUT.TRANSFORMS = ["random_resized_crop", *["random_flip"] * flip, "normalize"]
        cfg.INPUT.RRCROP_SCALE = (0.5, 1.0)
        url = {"ORACLE.URL": model} if model.startswith(("http://", "https://")) else {}
        put(cfg, {"MODEL.BACKBONE.NAME": model, **url, **options}, "options")
        check_cfg(cfg)
        # by list of texts, of each picture and view
        self.known: dict[Key, dict[str, Tensor]] = {}
        self.learnt = set[Key]()  # those of training, which are kept in any case
        self.spent: Bill = {}  # by former processes
        self.weights = ""  # the fingerprint of the model that was asked

    @cached_property
    def oracle(self) -> Meter:
        """The model, opened when it is first asked."""
        device = "cuda" if self.cfg.USE_CUDA and torch.cuda.is_available() else "cpu"
        self.calls = 0
        oracle = build_oracle(self.cfg, torch.device(device), "ScoreClassifier")
        if hasattr(oracle, "store"):  # a local model's features; answers are kept here
            oracle.store.limit = FEATURES
        return Meter(oracle)

    def match(self) -> None:
        """Take the input's size from the model, if it is the one that was asked before."""
        description = self.oracle.description
        with redirect_stdout(None):  # which tells of it
            self.cfg = match_input(self.cfg, description)
        if self.weights not in ("", description.fingerprint):
            raise BlackBoxError(
                f"The head is of another model than {description.name}, which answers: their "
                f"weights differ. Give the model that it was fitted to, or fit a new head."
            )
        self.weights = description.fingerprint

    def __getstate__(self) -> dict[str, Any]:
        """Without the model, which is opened again."""
        state = {**vars(self), "spent": self.bill()}
        return {name: value for name, value in state.items() if name != "oracle"}

    def bill(self) -> Bill:
        """What was asked so far."""
        counts = self.oracle.counts["training"] if "oracle" in vars(self) else {}
        now: Bill = {}
        if counts:
            now = {"queries": counts["queries"], "pictures": counts["image_queries"]}
            sent = self.oracle.usage()  # of a service; what it knew already was not sent
            now |= {"calls": self.calls, **sent}
            now = {name: n for name, n in now.items() if not name.endswith("_cached")}
        names = dict.fromkeys((*BILLED, *self.spent, *now))
        return {name: self.spent.get(name, 0) + now.get(name, 0) for name in names}

    def missing(self, keys: Sequence[Key], asked: Question) -> dict[Prompt, list[int]]:
        """Numbers of the keys that are asked about, by what they are asked."""
        texts, full = asked.texts, asked.further
        more, alone = list[int](), list[int]()
        for key, number in {key: i for i, key in reversed([*enumerate(keys)])}.items():
            known = self.known.get(key, {}).keys()
            if texts is not None and full is not None and not {texts.id, full.id} & known:
                more.append(number)
            elif asked.classes.id not in known:
                alone.append(number)
        return {Prompt(texts=texts): sorted(more), Prompt(): sorted(alone)}

    def drawn(self, gallery: Gallery, view: int, numbers: list[int], seed: int) -> Iterator[Any]:
        """Batches of some pictures, or of a view of each."""
        augmentation, workers = Augmentation(seed), self.cfg.DATALOADER.NUM_WORKERS
        augmentation.epoch = view
        with redirect_stdout(None):  # as Dassl does of the transform
            transform = build_transform(self.cfg, view > 0)
        given = self.cfg, gallery.items, transform, view > 0
        reader = ImageReader(gallery.pictures, augmentation, *given)
        yield from DataLoader(reader, QUERY_IMAGES, sampler=numbers, num_workers=workers)

    def price(self, gallery: Gallery, views: int, asked: Question, seed: int = -1) -> Bill:
        """What `ask` adds to the bill; without a seed at most: what looks alike is sent once."""
        bill: Bill = dict.fromkeys(BILLED, 0)
        questions: list[Any] = []
        for view in range(1 + views):
            for prompt, numbers in self.missing(gallery.keys(view), asked).items():
                sizes = batches_of(len(numbers), QUERY_IMAGES)
                prices = [price(prompt, len(asked.classes), size) for size in sizes]
                for name, more in zip(BILLED, (*total(prices), len(sizes)), strict=True):
                    bill[name] += more
                drawn = self.drawn(gallery, view, numbers, seed)  # once it is asked for
                batches: Any = sizes if seed < 0 else (batch["img"] for batch in drawn)
                if sizes:
                    lists = [one for one in (asked.classes, prompt.texts) if one]
                    questions.append((batches, lists))
        return bill | self.oracle.quote(questions)

    @torch.no_grad()
    def ask(
        self, gallery: Gallery, views: int, asked: Question, seed: int, bar: tqdm
    ) -> list[Tensor]:
        """Scores `[N, C + M]` of the pictures, and of so many augmented views of each."""
        self.match()
        oracle = self.oracle
        oracle.set_classes(asked.classes.names, asked.classes.template)
        for view in range(1 + views):
            keys = gallery.keys(view)
            for prompt, numbers in self.missing(keys, asked).items():
                for batch in self.drawn(gallery, view, numbers, seed):
                    answer = oracle.query(oracle.upload(batch["img"]), prompt)[0].cpu()
                    self.calls += 1
                    shown = [keys[number] for number in batch["index"].tolist()]
                    self.put(shown, answer, asked.classes, prompt.texts)
                    bar.update(len(answer))
        if views:
            self.learnt.update(key for view in range(1 + views) for key in gallery.keys(view))
        rows = [self.rows(gallery.keys(view), asked) for view in range(1 + views)]
        for key in [key for key in self.known if key not in self.learnt][:-KEPT]:
            del self.known[key]
        return rows

    def put(self, keys: Sequence[Key], rows: Tensor, classes: Texts, texts: Texts | None) -> None:
        """Keep scores `[N, C + M]`."""
        for key, row in zip(keys, rows, strict=True):
            found = self.known.setdefault(key, {})
            found[classes.id] = row[: len(classes)]
            if texts is not None:
                found[texts.id] = row[len(classes) :]

    def impute(self, gallery: Gallery, views: int, before: Question, asked: Question) -> None:
        """Give the classes that came later a score of pictures that are gone: their mean score of a
        class that they do not show. They were asked about the first classes, `before`.
        """
        first, new = before.classes.id, len(asked.classes) - len(before.classes)
        gone = [content for n, content in enumerate(gallery.contents) if not gallery.there(n)]
        for key in [(content, view) for content in gone for view in range(1 + views)]:
            known = self.known.get(key, {})
            if new and first in known:
                row = known[first]
                others = (row.sum() - row.max()) / max(1, len(row) - 1)
                known[asked.classes.id] = torch.cat([row, others.expand(new)])

    def rows(self, keys: Sequence[Key], asked: Question) -> Tensor:
        """Known scores `[N, C + M]`."""
        found, texts, part = [], asked.texts, list(asked.part)
        for known in map(self.known.__getitem__, keys):
            more = [known[asked.classes.id]]
            if texts is not None and asked.further is not None:
                full = known.get(asked.further.id)
                more.append(known[texts.id] if full is None else full[part])
            found.append(torch.cat(more))
        return torch.stack(found)
