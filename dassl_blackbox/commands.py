"""What can be run:

    dassl-blackbox draw FOLDER                   pictures to try the others on
    dassl-blackbox quote FOLDER --model photo    what the next line costs
    dassl-blackbox fit FOLDER --model photo --out head.safetensors
    dassl-blackbox predict head.safetensors PICTURES > labels.csv
    dassl-blackbox predict output/digits/ZIP/tiny_16shots/seed1 PICTURES
    dassl-blackbox results output                tables of finished runs
    dassl-blackbox plots shots output --out FILE
    dassl-blackbox datasets check                which are there, and whole
    dassl-blackbox configs FOLDER                copies of the YAMLs
    dassl-blackbox serve --backbone NAME         lets others query it over HTTP

FOLDER has a folder for each class, called by its name; PICTURES is a folder too, which is labelled
by a saved head or by a finished run of any trainer. Each command tells its options with --help. In
a checkout there are:

    bash scripts/quickstart.sh      a first look; downloads no data
    bash scripts/main.sh            one method on one data set, all seeds
    python train.py                 one run, with CoOp's flags
    python parse_test_res.py        CoOp's summary of several seeds
    python interpret_prompt.py      the words nearest to a learned prompt
    python scripts/compare.py       all methods on one data set and budget
    python scripts/sweep.py         a grid of methods, data sets, shots, seeds
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from PIL import Image
from tqdm import tqdm

from .answers import Gallery, labelled, listed
from .classifier import ScoreClassifier
from .console import Help, note, tool
from .datasets.generated import digits
from .trainers.blackbox.config import defaults, merge_files, pairs, put
from .trainers.blackbox.data import look, ordered_loader
from .trainers.blackbox.errors import BlackBoxError
from .trainers.blackbox.files import MODEL, load_state, newest, write_atomically
from .trainers.blackbox.oracle.bill import in_words
from .trainers.blackbox.record import NAME, read

OTHERS = "results", "plots", "datasets", "configs", "serve"  # modules of their own
# of ScoreClassifier, which are options of `fit` and `quote` too
SETTINGS = "model", "template", "texts", "views", "max_queries", "max_pictures"
THUMBNAIL = 160  # pixels of the longer side


def sound(paths: Sequence[str], skip: bool) -> list[int]:
    """Numbers of the pictures that are used: all, or those that can be decoded."""
    kept = []
    for number, path in enumerate(paths):
        try:
            if skip:
                look(path)
            kept.append(number)
        except BlackBoxError as e:
            note(f"left out: {e}")
    return kept


def fresh(args: argparse.Namespace) -> ScoreClassifier:
    given = {name: getattr(args, name) for name in SETTINGS}
    return ScoreClassifier(
        **given, flip=not args.no_flip, random_state=args.seed, options=pairs(args.opts)
    )


def quote(args: argparse.Namespace) -> None:
    if args.head:
        clf = ScoreClassifier.load(args.head, options=pairs(args.opts))
        print(in_words(clf.quote(args.folder, purpose="predict")))
    else:
        print(in_words(fresh(args).quote(args.folder)))


def fit(args: argparse.Namespace) -> None:
    pictures, labels = labelled(args.folder)
    kept = sound(pictures, args.skip_broken)
    clf = fresh(args).fit([pictures[i] for i in kept], [labels[i] for i in kept])
    clf.save(args.out)
    print(f"{args.out}: {len(kept):,} pictures of {len(clf.classes_):,} classes")
    print(f"asked: {in_words(clf.bill_)}")


def predict(args: argparse.Namespace) -> None:
    pictures = listed(args.folder)
    pictures = [pictures[i] for i in sound(pictures, args.skip_broken)]
    with redirect_stdout(sys.stderr):  # the labels alone go to stdout
        options = pairs(args.opts)
        of_run = Path(args.head).is_dir()
        clf: Any = (FinishedRun if of_run else ScoreClassifier.load)(args.head, options=options)
        found = clf.predict_proba(pictures, pool=args.pool)
    best = (-found).argsort(axis=1)[:, :2]
    rows = [
        {
            "path": path,
            "label": clf.classes_[first],
            "probability": f"{share[first]:.4f}",
            "second": clf.classes_[second],
        }
        for path, share, (first, second) in zip(pictures, found, best, strict=True)
    ]
    table = io.StringIO()
    if args.format == "csv":
        writer = csv.DictWriter(table, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        table.writelines(json.dumps(row, default=str) + "\n" for row in rows)
    if args.html:
        write_atomically(args.html, page(rows).encode(errors="replace"))
    if args.out:
        write_atomically(args.out, table.getvalue().encode(errors="surrogateescape"))
    else:
        print(table.getvalue(), end="")
    print(f"asked: {in_words(clf.bill_)}", file=sys.stderr)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """An HTML page of the pictures, the most doubtful first."""
    cells = []
    for row in sorted(rows, key=lambda row: float(row["probability"])):
        picture, _ = look(row["path"])
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        picture.save(file, "JPEG")
        coded = base64.b64encode(file.getvalue()).decode()
        words = f"{row['label']} {row['probability']}, or {row['second']}"
        cells.append(
            f'<figure><img src="data:image/jpeg;base64,{coded}" title="{escape(row["path"])}">'
            f"<figcaption>{escape(words)}</figcaption></figure>"
        )
    style = "figure{display:inline-block;margin:8px;width:170px;font:13px sans-serif}"
    style += "img{min-width:96px;image-rendering:pixelated}"  # of a few pixels
    head = f'<!doctype html><meta charset="utf-8"><title>labels</title><style>{style}</style>'
    return "\n".join([head, *cells, ""])


def draw(args: argparse.Namespace) -> None:
    """Write scans of digits: `train/<class>/`, so many a class, and `new/` with 200 others."""
    counts: Counter[tuple[str, str]] = Counter()
    for part, _, name, picture in digits():
        counts[part, name] += 1
        place, most = {"train": (f"train/{name}", args.shots), "test": ("new", 20)}.get(
            part, ("", 0)
        )
        if counts[part, name] <= most:
            path = Path(args.folder, place, f"{name}_{counts[part, name]:02}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    print(f"{args.folder}: {args.shots} digits a class in train, 200 others in new")


@contextmanager
def standing_in(name: str, classnames: Sequence[str], labels: Sequence[int]) -> Iterator[None]:
    """Within this context a data set has blank pictures with these labels, if there are any."""
    former = DATASET_REGISTRY.get(name)
    with TemporaryDirectory() as folder:
        blank = f"{folder}/blank.png"
        Image.new("RGB", (8, 8)).save(blank)
        items = [Datum(blank, label, classname=classnames[label]) for label in labels]

        def blanks(cfg: Any) -> DatasetBase:
            return DatasetBase(train_x=items, test=items[:1])

        blanks.__name__ = name
        try:
            if items:
                DATASET_REGISTRY.register(blanks, force=True)
            yield
        finally:
            DATASET_REGISTRY.register(former, force=True)


class FinishedRun:
    """The method of a run's folder, for pictures of one's own. Its checkpoint tells the classes, or
    its metrics.json; for a run of an earlier version the run's data set is read for them.
    """

    def __init__(self, folder: str, options: Mapping[str, str]) -> None:
        cfg = defaults()
        merge_files(cfg, [f"{folder}/config.yaml"])
        own = {"OUTPUT_DIR": "", "RESUME": "", "TEST.SPLIT": "test", "ORACLE.FEATURES": ""}
        put(cfg, {**own, "DATALOADER.NUM_WORKERS": 0, **options}, "options")
        path = newest(Path(folder, MODEL))
        if path:
            told = load_state(path).get("blackbox", {})
        else:
            told = [{}, *read(Path(folder, NAME)).values()][-1]
        classes = told.get("classnames", [])
        with standing_in(cfg.DATASET.NAME, classes, told.get("labels", range(len(classes)))):
            self.trainer = trainer = build_trainer(cfg)
        if not getattr(trainer, "counted", False):
            raise BlackBoxError(f"{folder} is of {cfg.TRAINER.NAME}, which asks no oracle.")
        trainer.load_model(folder)
        trainer.set_model_mode("eval")
        self.classes_ = np.array(trainer.dm.dataset.classnames)

    @torch.no_grad()
    def predict_proba(self, pictures: Sequence[str], pool: bool = False) -> np.ndarray:
        trainer, gallery, found = self.trainer, Gallery(pictures), []
        if pool:
            raise BlackBoxError("--pool is for a saved head; a run's has TRAINER.SONAR.POOL True.")
        with trainer.oracle.evaluation():
            loader = ordered_loader(trainer.cfg, gallery.pictures, gallery.items, None, 128)
            for batch in tqdm(loader):
                logits = trainer.model_inference(batch["img"].to(trainer.device))
                found.append(logits[:, : len(self.classes_)].double().softmax(1).cpu())
        return torch.cat(found).numpy()

    @property
    def bill_(self) -> dict[str, float]:
        counts = self.trainer.oracle.counts["evaluation"]
        asked = {"queries": counts["queries"], "pictures": counts["image_queries"]}
        return asked | self.trainer.oracle.usage()


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("dassl-blackbox", description=__doc__, formatter_class=Help)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> Any:
        new = commands.add_parser(name, description=about, formatter_class=Help)
        new.set_defaults(run=run)
        return new

    make = command("fit", fit, "Fit a head to the pictures in a folder of class folders.")
    price = command("quote", quote, "What `fit` would cost; with --head, what `predict` would.")
    label = command("predict", predict, "Label the pictures in a folder.")
    sketch = command("draw", draw, "Write pictures to try the others on: scans of digits.")
    sketch.add_argument("folder", help="where they are written")
    sketch.add_argument("--shots", type=int, default=16, help="pictures of a class in train")
    label.add_argument("head", help="a file of `fit`, or the output folder of a training run")
    for one in (make, price, label):
        one.add_argument("folder", help="of the pictures")
        one.add_argument("--skip-broken", action="store_true", help="leave out broken pictures")
        one.epilog = "At the end: KEY VALUE of docs/KEYS.md, such as ORACLE.URL https://..."
    defaults_of = ScoreClassifier().get_params()
    for one in (make, price):
        one.add_argument("--model", help="its name, or the URL of a server")
        one.add_argument("--template", help="of the class texts")
        one.add_argument("--texts", type=int, help="further texts")
        one.add_argument("--views", type=int, help="augmented views of a picture")
        one.add_argument("--no-flip", action="store_true", help="no mirror images (of letters)")
        one.add_argument("--max-queries", type=int, help="budget; 0: none")
        one.add_argument("--max-pictures", type=int, help="budget; 0: none")
        one.add_argument("--seed", type=int, default=0, help="of the views and the further texts")
        one.set_defaults(**{name: defaults_of[name] for name in SETTINGS})
    make.add_argument("--out", required=True, help="file of the head, such as head.safetensors")
    price.add_argument("--head", default="", help="a file of `fit`")
    label.add_argument("--format", choices=["csv", "jsonl"], default="csv", help="of the labels")
    label.add_argument("--out", default="", help="file of the labels; without it, stdout")
    label.add_argument("--html", default="", help="page of the pictures, the most doubtful first")
    label.add_argument("--pool", action="store_true", help="label them together, not one by one")
    return whole


def main() -> int:
    """The entry point `dassl-blackbox` and `python -m dassl_blackbox`, which alone are --help."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in OTHERS:
        sys.argv = [f"dassl-blackbox {name}", *sys.argv[2:]]
        runpy.run_module(f"dassl_blackbox.{name}", run_name="__main__", alter_sys=True)
        return 0
    whole = parser()
    args, words = whole.parse_known_args([name, *sys.argv[2:]])
    args.opts = words
    if unknown := [word for word in words if word.startswith("-")]:
        whole.error(f"unknown options: {' '.join(unknown)}")
    return tool(lambda: args.run(args))
