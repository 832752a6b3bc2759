"""All data sets, one row each: CoOp's, those of the later papers, our own, the user's. Sizes are
those of CoOp's splits (CoOp's appendix) and of the sets' own pages.
"""

from . import listing
from .generated import PICTURES, generated
from .listing import Row


def coops(
    name: str, config: str, folder: str, images: str, *sizes: int | None, by: str = "zhou"
) -> Row:
    return Row(name, config, folder, images, f"split_{by}_{name}.json", sizes)


def variant(name: str, config: str, folder: str, images: str, classes: int, test: int) -> Row:
    """A variant of ImageNet, for testing only."""
    return Row(name, config, folder, images, "", (classes, None, None, test), listing.read_variant)


IMAGENET, AIRCRAFT = (1000, 1281167, None, 50000), (100, 3334, 3333, 3333)
V2 = "imagenetv2-matched-frequency-format-val"
# the file is offered as split_mlai_SVHN.json, and the authors' loader looks for split_SVHN.json
SVHN = ("split_SVHN.json", "split_mlai_SVHN.json"), (10, 51280, 21977, 26032)
CIFAR = {"read": listing.read_folders}
ROWS = (
    Row("ImageNet", "imagenet", "imagenet", "images", "", IMAGENET, listing.read_imagenet),
    coops("Caltech101", "caltech101", "caltech-101", "101_ObjectCategories", 100, 4128, 1649, 2465),
    coops("OxfordPets", "oxford_pets", "oxford_pets", "images", 37, 2944, 736, 3669),
    coops("StanfordCars", "stanford_cars", "stanford_cars", "", 196, 6509, 1635, 8041),
    coops("OxfordFlowers", "oxford_flowers", "oxford_flowers", "jpg", 102, 4093, 1633, 2463),
    coops("Food101", "food101", "food-101", "images", 101, 50500, 20200, 30300),
    Row("FGVCAircraft", *("fgvc_aircraft",) * 2, "images", "", AIRCRAFT, listing.read_aircraft),
    coops("SUN397", "sun397", "sun397", "SUN397", 397, 15880, 3970, 19850),
    coops("DescribableTextures", "dtd", "dtd", "images", 47, 2820, 1128, 1692),
    coops("EuroSAT", "eurosat", "eurosat", "2750", 10, 13500, 5400, 8100),
    coops("UCF101", "ucf101", "ucf101", "UCF-101-midframes", 101, 7639, 1898, 3783),
    variant("ImageNetV2", "imagenetv2", "imagenetv2", V2, 1000, 10000),
    variant("ImageNetSketch", "imagenet_sketch", "imagenet-sketch", "images", 1000, 50889),
    variant("ImageNetA", "imagenet_a", "imagenet-adversarial", "imagenet-a", 200, 7500),
    variant("ImageNetR", "imagenet_r", "imagenet-rendition", "imagenet-r", 200, 30000),
    Row("Svhn", "svhn", "svhn", "train", *SVHN, listing.read_svhn),
    coops("Resisc45", "resisc45", "resisc45", "NWPU-RESISC45", 45, 15750, 6300, 9450, by="mlai"),
    coops("CLEVR", "clevr", "CLEVR_v1.0", "images", 8, None, None, 15000, by="mlai"),
    Row("CIFAR10", "cifar10", "cifar10", sizes=(10, 50000, None, 10000), **CIFAR),
    Row("CIFAR100", "cifar100", "cifar100", sizes=(100, 50000, None, 10000), **CIFAR),
    generated("Digits", PICTURES["Digits"], (10, 896, 176, 725)),
    generated("Letters", PICTURES["Letters"], (26, 1040, 208, 1040)),
    generated("Shapes", PICTURES["Shapes"], (24, 960, 192, 960)),
    # its folder is DATASET.ROOT itself
    Row("ImageFolder", "imagefolder", "", "", "split_imagefolder.json", (), listing.read_pictures),
)
