"""Small data sets in the folders, file names and quirks of the real ones.

Four classes of pictures that the embedded model can read.
"""

import json
import sys

from dassl_blackbox.datasets import __main__ as check_command
from dassl_blackbox.datasets.generated import PICTURES as GENERATED
from dassl_blackbox.datasets.table import ROWS
from support import REPO, run

COUNTS = {"train": 4, "val": 2, "test": 2}
ROW = {row.name: row for row in ROWS}
JSON_SPLITS = [
    "Caltech101",
    "OxfordPets",
    "StanfordCars",
    "OxfordFlowers",
    "Food101",
    "SUN397",
    "DescribableTextures",
    "EuroSAT",
    "UCF101",
    "Resisc45",
    "CLEVR",
]
VARIANTS = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
OTHERS = ["ImageNet", "FGVCAircraft", "Svhn", "CIFAR10", "CIFAR100", "ImageFolder"]
NAMES = [
    "red circle",
    "blue heart",
    "green triangle",
    "yellow star",
]  # in label order, which is not the alphabet's
WNIDS = ["n01440764", "n01443537", "n02007558", "n02012849"]
PICTURES = {}


def picture(name, i):
    """The i-th picture of a class of Shapes, all drawn once."""
    if not PICTURES:
        for _, _, drawn, image in GENERATED["Shapes"]():
            PICTURES.setdefault(drawn, []).append(image)
    return PICTURES[name][i % len(PICTURES[name])]


def save(path, name, i):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(name, i).save(path)


def json_split(row, folder, parts=tuple(COUNTS), file=None, names=NAMES):
    """Labels first appear in the order 2, 0, 3, 1."""
    split, i = {part: [] for part in parts}, 0
    for part in parts:
        for label in (2, 0, 3, 1):
            for _ in range(COUNTS[part]):
                image, i = f"{names[label].replace(' ', '_')}/{i:03d}.jpg", i + 1
                save(folder / row.images / image, NAMES[label], i)
                split[part].append([image, label, names[label]])
    (folder / (file or row.split)).write_text(json.dumps(split))


def classnames(folder, absent=("n09999999 absent thing",)):
    """Real ones name 1,000 folders: here there is one besides, which has no images."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES)]
    (folder / "classnames.txt").write_text("\n".join([*lines, *absent]) + "\n")


def in_folders(path, folders, count):
    for folder, name in zip(folders, NAMES):
        for i in range(count):
            save(path / folder / f"{i}.JPEG", name, i)


def aircraft(row, folder):
    for n, (part, count) in enumerate(COUNTS.items()):
        lines = []
        for i in range(4 * count):
            image, name = f"{n}{i:06d}", NAMES[(i + n) % 4]
            save(folder / "images" / f"{image}.jpg", name, i)
            lines.append(f"{image} {name}")
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    (folder / "variants.txt").write_text("\n".join(NAMES) + "\n")


def make(name, root):
    """A data set below `root`; returns its class names in label order and its parts' sizes."""
    row, (train, val, test) = ROW[name], (4 * count for count in COUNTS.values())
    folder = root / row.folder
    folder.mkdir(parents=True, exist_ok=True)
    if name in JSON_SPLITS:
        json_split(row, folder)
    elif name == "ImageNet":
        classnames(folder)
        in_folders(folder / "images" / "train", WNIDS, COUNTS["train"])
        in_folders(folder / "images" / "val", WNIDS, COUNTS["test"])
        (folder / "images" / "train" / ".DS_Store").touch()
        return NAMES, (train, None, test)
    elif name in VARIANTS:
        # ImageNetV2's folders are counted
        classnames(folder, *([()] if name == "ImageNetV2" else []))
        images = folder / row.images
        in_folders(images, ["0", "1", "2", "3"] if name == "ImageNetV2" else WNIDS, COUNTS["test"])
        if name in ("ImageNetA", "ImageNetR"):
            (images / "README.txt").touch()
        return NAMES, (test, None, test)
    elif name == "FGVCAircraft":
        aircraft(row, folder)
    elif name == "Svhn":
        digits = ["0", "1", "2", "3"]
        json_split(row, folder, ("train", "val"), "split_mlai_SVHN.json", names=digits)
        in_folders(folder / "test", digits, COUNTS["test"])
        return digits, (train, val, test)
    else:
        folders = sorted(name.replace(" ", "_") for name in NAMES)
        for part in COUNTS if name == "ImageFolder" else ("train", "test"):
            for class_folder in folders:
                for i in range(COUNTS[part]):
                    save(
                        folder / part / class_folder / f"{i}.png", class_folder.replace("_", " "), i
                    )
        return folders, (train, val if name == "ImageFolder" else None, test)
    return NAMES, (train, val, test)


def said(capsys, name, root, out, *options, trainer="ZIP", code=1, done=False):
    """The sentence with which a run ends."""
    flags = ["--dataset-config-file", REPO / "configs" / "datasets" / f"{ROW[name].config}.yaml"]
    flags += ["--skip-done"] if done else []
    capsys.readouterr()
    assert run(trainer, root, out, "ORACLE.MAX_QUERIES", 20, *options, flags=flags) == code
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return told.err.splitlines()[-1] if code else told.out


def check_lines(root, capsys):
    """(exit status, lines of the table by data set) of the check command."""
    arguments, sys.argv = sys.argv, ["check", "check", "--root", str(root)]
    capsys.readouterr()
    try:
        code = check_command.main()
    finally:
        sys.argv = arguments
    return code, {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}
