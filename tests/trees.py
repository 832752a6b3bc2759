"""Small data sets of four classes in the folders, file names and quirks of the real ones."""

import json
from functools import cache
from itertools import islice

import pytest
from dassl_blackbox.datasets import __main__ as check_command
from dassl_blackbox.datasets.generated import PICTURES
from dassl_blackbox.datasets.table import ROWS
from support import REPO, run, sentence

COUNTS = {"train": 4, "val": 2, "test": 2}
ROW = {row.name: row for row in ROWS}
JSON_SPLITS = [row.name for row in ROWS if row.read is None]
VARIANTS = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
# in label order, which is not the alphabet's
NAMES = ["red circle", "blue heart", "green triangle", "yellow star"]
WNIDS = ["n01440764", "n01443537", "n02007558", "n02012849"]


@cache
def drawn():
    """The training pictures of each class of Shapes."""
    pictures = {}
    for _, _, name, image in islice(PICTURES["Shapes"](), 960):
        pictures.setdefault(name, []).append(image)
    return pictures


def picture(name, i):
    return drawn()[name][i % 40]


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


def classnames(folder, counted=False):
    """Real ones name 1,000 folders: here there is one besides, which has no images."""
    lines = [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES)]
    lines += [] if counted else ["n09999999 absent thing"]
    (folder / "classnames.txt").write_text("\n".join(lines))


def in_folders(path, folders, count, names=NAMES, end="JPEG"):
    for folder, name in zip(folders, names):
        for i in range(count):
            save(path / folder / f"{i}.{end}", name, i)


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
    folder, names = root / row.folder, NAMES
    images = folder / row.images
    images.mkdir(parents=True, exist_ok=True)
    if name in JSON_SPLITS:
        json_split(row, folder)
    elif name == "ImageNet":
        classnames(folder)
        in_folders(images / "train", WNIDS, COUNTS["train"])
        in_folders(images / "val", WNIDS, COUNTS["test"])
        (images / "train" / ".DS_Store").touch()
        val = None
    elif name in VARIANTS:
        counted = name == "ImageNetV2"  # its folders are
        classnames(folder, counted)
        in_folders(images, "0123" if counted else WNIDS, COUNTS["test"])
        train, val = test, None
    elif name == "FGVCAircraft":
        aircraft(row, folder)
    elif name == "Svhn":
        names = list("0123")
        json_split(row, folder, ("train", "val"), "split_mlai_SVHN.json", names)
        in_folders(folder / "test", names, COUNTS["test"])
    else:
        names = [name.replace(" ", "_") for name in sorted(NAMES)]
        for part in COUNTS if name == "ImageFolder" else ("train", "test"):
            in_folders(folder / part, names, COUNTS[part], sorted(NAMES), "png")
        val = val if name == "ImageFolder" else None
    return names, (train, val, test)


def everything(root):
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in root.rglob("*")
    }


def said(capsys, name, root, out, *options, trainer="ZIP", code=1, flags=()):
    """The sentence with which a run ends, or all that it prints."""
    flags = "--dataset-config-file", REPO / f"configs/datasets/{ROW[name].config}.yaml", *flags
    options = "ORACLE.MAX_QUERIES", 20, *options
    if code:
        return sentence(capsys, trainer, root, out, *options, flags=flags)
    capsys.readouterr()
    assert run(trainer, root, out, *options, flags=flags) == 0
    return capsys.readouterr().out


def checked(root, capsys):
    """(exit status, what is printed, its line about each data set) of the check command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["check", "check", "--root", str(root)])
        capsys.readouterr()
        code = check_command.main()
    out = capsys.readouterr().out
    return code, out, {line.split()[0]: line for line in out.splitlines()[2:] if line.split()}
