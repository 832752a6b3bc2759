"""All data sets, one row each: CoOp's, those of the later papers, our own, the user's.

A row has the folder, the split file and the class names that its users have on the disk.
"""

from . import digits, letters, shapes
from .base import Row
from .folders import read_folders, read_pictures
from .generated import generated
from .readers import read_aircraft, read_imagenet, read_svhn, read_variant

# sizes: (classes, train, val, test), of CoOp's splits (CoOp's appendix) and of the sets' own pages
ROWS = (
    Row(
        "ImageNet",
        "imagenet",
        "imagenet",
        "images",
        read=read_imagenet,
        sizes=(1000, 1281167, None, 50000),
    ),
    Row(
        "Caltech101",
        "caltech101",
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        sizes=(100, 4128, 1649, 2465),
    ),
    Row(
        "OxfordPets",
        "oxford_pets",
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        sizes=(37, 2944, 736, 3669),
    ),
    Row(
        "StanfordCars",
        "stanford_cars",
        "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
        sizes=(196, 6509, 1635, 8041),
    ),
    Row(
        "OxfordFlowers",
        "oxford_flowers",
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        sizes=(102, 4093, 1633, 2463),
    ),
    Row(
        "Food101",
        "food101",
        "food-101",
        "images",
        "split_zhou_Food101.json",
        sizes=(101, 50500, 20200, 30300),
    ),
    Row(
        "FGVCAircraft",
        "fgvc_aircraft",
        "fgvc_aircraft",
        "images",
        read=read_aircraft,
        sizes=(100, 3334, 3333, 3333),
    ),
    Row(
        "SUN397",
        "sun397",
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        sizes=(397, 15880, 3970, 19850),
    ),
    Row(
        "DescribableTextures",
        "dtd",
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        sizes=(47, 2820, 1128, 1692),
    ),
    Row(
        "EuroSAT",
        "eurosat",
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        sizes=(10, 13500, 5400, 8100),
    ),
    Row(
        "UCF101",
        "ucf101",
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        sizes=(101, 7639, 1898, 3783),
    ),
    Row(
        "ImageNetV2",
        "imagenetv2",
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        read=read_variant,
        sizes=(1000, None, None, 10000),
    ),
    Row(
        "ImageNetSketch",
        "imagenet_sketch",
        "imagenet-sketch",
        "images",
        read=read_variant,
        sizes=(1000, None, None, 50889),
    ),
    Row(
        "ImageNetA",
        "imagenet_a",
        "imagenet-adversarial",
        "imagenet-a",
        read=read_variant,
        sizes=(200, None, None, 7500),
    ),
    Row(
        "ImageNetR",
        "imagenet_r",
        "imagenet-rendition",
        "imagenet-r",
        read=read_variant,
        sizes=(200, None, None, 30000),
    ),
    # The file is offered as split_mlai_SVHN.json, and the authors' loader looks for split_SVHN.json
    Row(
        "Svhn",
        "svhn",
        "svhn",
        "train",
        ("split_SVHN.json", "split_mlai_SVHN.json"),
        read_svhn,
        sizes=(10, 51280, 21977, 26032),
    ),
    Row(
        "Resisc45",
        "resisc45",
        "resisc45",
        "NWPU-RESISC45",
        "split_mlai_Resisc45.json",
        sizes=(45, 15750, 6300, 9450),
    ),
    Row(
        "CLEVR",
        "clevr",
        "CLEVR_v1.0",
        "images",
        "split_mlai_CLEVR.json",
        sizes=(8, None, None, 15000),
    ),
    Row("CIFAR10", "cifar10", "cifar10", read=read_folders, sizes=(10, 50000, None, 10000)),
    Row("CIFAR100", "cifar100", "cifar100", read=read_folders, sizes=(100, 50000, None, 10000)),
    generated("Digits", digits.pictures, (10, 896, 176, 725)),
    generated("Letters", letters.pictures, (26, 1040, 208, 1040)),
    generated("Shapes", shapes.pictures, (24, 960, 192, 960)),
    Row(
        "ImageFolder", "imagefolder", "", split="split_imagefolder.json", read=read_pictures
    ),  # its folder is DATASET.ROOT itself
)
