"""What this project relies on in Dassl's data: sets, shots, transforms, samplers, loaders."""

import inspect
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
from dassl import utils
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from PIL import Image


def items(labels, root):
    return [
        Datum(f"{root}/test_0_0.png", label=label, classname=f"class {label}") for label in labels
    ]


def test_datum_and_dataset_base(root):
    first = Datum(f"{root}/test_0_0.png", label=2, domain=1, classname="two")
    assert (first.impath, first.label, first.domain, first.classname) == (
        f"{root}/test_0_0.png",
        2,
        1,
        "two",
    )
    assert set(vars(first)) == {
        "_impath",
        "_label",
        "_domain",
        "_classname",
    }  # CoOp's pickles of either Dassl fit the other
    assert (
        Datum.__module__ == "dassl.data.datasets.base_dataset"
        and pickle.loads(pickle.dumps(first)).label == 2
    )
    with pytest.warns(UserWarning), pytest.raises(AssertionError):
        Datum(f"{root}/absent.png")
    data = DatasetBase(train_x=[first, *items([0, 3, 0], root)], test=[first])
    assert data.num_classes == 4 and data.lab2cname == {0: "class 0", 2: "two", 3: "class 3"}
    assert data.classnames == ["class 0", "two", "class 3"] and len(data.train_x) == 4
    assert data.train_u is None and data.val is None and data.test == [first]


@pytest.mark.parametrize("repeat", [False, True])
def test_fewshot_draw(root, repeat, capsys):
    train, val = items([2, 0, 2, 1, 0, 2, 0, 2, 0, 1], root), items([1, 0, 0, 0], root)
    data = DatasetBase(train_x=train, val=val, test=val)
    assert data.generate_fewshot_dataset(train) is train
    assert list(data.generate_fewshot_dataset(train, val, num_shots=0)) == [train, val]
    utils.set_random_seed(5)
    drawn, rng, expected = (
        data.generate_fewshot_dataset(train, val, num_shots=3, repeat=repeat),
        random.Random(5),
        [],
    )
    for source, order in (
        (train, (2, 0, 1)),
        (val, (1, 0)),
    ):  # labels in the order of their first appearance
        pools = [[item for item in source if item.label == label] for label in order]

        def draw(pool):
            if len(pool) >= 3:
                return rng.sample(pool, 3)
            return rng.choices(pool, k=3) if repeat else pool

        expected.append([item for pool in pools for item in draw(pool)])
    assert drawn == expected and capsys.readouterr().out == "Creating a 3-shot dataset\n"
    assert list(data.split_dataset_by_label(val)) == [1, 0]


@pytest.mark.parametrize(
    "is_train, number, batches",
    [
        (True, 7, [3, 3]),
        (True, 3, [3]),
        (True, 2, [2]),
        (False, 7, [3, 3, 1]),
        (False, 2, [2]),
    ],
)
def test_drop_last(cfg, root, is_train, number, batches):
    tfm = build_transform(cfg, is_train)
    loader = build_data_loader(
        cfg, "SequentialSampler", items([1] * number, root), 3, tfm=tfm, is_train=is_train
    )
    assert [len(batch["label"]) for batch in loader] == batches


def test_dataset_wrapper(cfg, root):
    cfg.DATALOADER.K_TRANSFORMS = 3
    source, tfm = items([4], root), lambda image: image.getpixel((0, 0))[0]
    assert DatasetWrapper(cfg, source)[0]["img"].size == (8, 8)
    one = DatasetWrapper(cfg, source, transform=tfm)[0]
    assert one == {"label": 4, "domain": 0, "impath": source[0].impath, "index": 0, "img": 10}
    cfg.DATALOADER.RETURN_IMG0 = True
    many = DatasetWrapper(cfg, source, transform=[tfm, lambda image: "second"], is_train=True)[0]
    assert many["img"] == [10] * 3 and many["img2"] == ["second"] * 3
    normalized = (np.array([10, 20, 30]) / 255 - cfg.INPUT.PIXEL_MEAN) / cfg.INPUT.PIXEL_STD
    assert many["img0"].shape == (3, 8, 8) and many["img0"][:, 0, 0].tolist() == pytest.approx(
        normalized, abs=1e-5
    )
    with pytest.raises(ValueError, match="3"):
        DatasetWrapper(cfg, source, is_train=True)


NORMALIZATION = "normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])"
TENSOR = "to torch tensor of range [0, 1]"


@pytest.mark.parametrize(
    "is_train, choices, steps, lines",
    [
        (True, "center_crop", "Resize ToTensor", ["resize to 8x8", TENSOR]),
        (
            True,
            "normalize random_flip random_resized_crop",
            "RandomResizedCrop RandomHorizontalFlip ToTensor Normalize",
            [
                "random resized crop (size=(8, 8), scale=(0.08, 1.0))",
                "random flip",
                TENSOR,
                NORMALIZATION,
            ],
        ),
        (
            True,
            "cutout random_translation instance_norm gaussian_noise",
            "Resize Random2DTranslation ToTensor Cutout GaussianNoise InstanceNormalization",
            [
                "resize to 8x8",
                "random translation",
                TENSOR,
                "cutout (n_holes=1, length=4)",
                "gaussian noise (mean=0.0, std=0.15)",
                "instance normalization",
            ],
        ),
        (
            True,
            "random_crop colorjitter randomgrayscale gaussian_blur",
            "RandomCrop ColorJitter RandomGrayscale RandomApply ToTensor",
            [
                "random crop (padding = 4)",
                "color jitter (brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)",
                "random gray scale",
                "gaussian blur (kernel=5)",
                TENSOR,
            ],
        ),
        (
            False,
            "random_flip normalize cutout",
            "Resize CenterCrop ToTensor Normalize",
            ["resize the smaller edge to 8", "8x8 center crop", TENSOR, NORMALIZATION],
        ),
    ],
)
def test_transforms(cfg, root, capsys, is_train, choices, steps, lines):
    cfg.INPUT.INTERPOLATION, cfg.INPUT.GB_K, cfg.INPUT.CUTOUT_LEN = "bicubic", 5, 4
    tfm = build_transform(cfg, is_train, choices.split())
    heading = f"Building transform_{'train' if is_train else 'test'}"
    assert capsys.readouterr().out.splitlines() == [heading] + ["+ " + line for line in lines]
    assert " ".join(type(step).__name__ for step in tfm.transforms) == steps
    bicubic = INTERPOLATION_MODES["bicubic"]
    assert getattr(tfm.transforms[0], "interpolation", bicubic) is bicubic  # RandomCrop has none
    assert tfm(utils.read_image(f"{root}/test_1_0.png").resize((12, 16))).shape == (3, 8, 8)


def test_own_transforms_and_sampler_draw_as_the_real_ones_do(cfg):
    """The numbers are those of the real Dassl 0.6.3."""
    cfg.INPUT.CUTOUT_LEN, image = 4, Image.linear_gradient("L").resize((8, 8)).convert("RGB")
    utils.set_random_seed(2)
    tfm = build_transform(cfg, True, ("random_translation", "cutout", "gaussian_noise"))
    assert [tfm(image).sum().item() for _ in range(4)] == pytest.approx(
        [93.96, 90.68, 61.49, 84.19], abs=0.01
    )
    with pytest.raises(AssertionError):
        build_transform(cfg, True, ("no_such_transform",))
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None

    source = [SimpleNamespace(label=label) for label in [2] * 3 + [0] + [1] * 5]
    utils.set_random_seed(0)
    sampler = build_sampler("RandomClassSampler", data_source=source, batch_size=4, n_ins=2)
    assert [list(map(int, sampler)) for _ in range(2)] == [[3, 3, 2, 0], [3, 3, 1, 0]] and len(
        sampler
    ) == 8
    for name, size in (("RandomClassSampler", 1), ("NoSampler", 4)):
        with pytest.raises(ValueError):
            build_sampler(name, data_source=source, batch_size=size, n_ins=2)


def test_data_manager(cfg, capsys):
    parameters = list(inspect.signature(build_data_loader).parameters.values())
    assert [p.name for p in parameters[:4]] == ["cfg", "sampler_type", "data_source", "batch_size"]
    assert [p.name for p in parameters[4:]] == [
        "n_domain",
        "n_ins",
        "tfm",
        "is_train",
        "dataset_wrapper",
    ]
    assert [p.default for p in parameters[1:]] == [
        "SequentialSampler",
        None,
        64,
        0,
        2,
        None,
        True,
        None,
    ]
    dm = DataManager(
        cfg,
        custom_tfm_train=build_transform(cfg),
        dataset_wrapper=type("Mine", (DatasetWrapper,), {}),
    )
    lines = capsys.readouterr().out.splitlines()
    assert (
        "Loading dataset: ContractToy" in lines and "* Using custom transform for training" in lines
    )
    assert lines[-6:-1] == [
        "Dataset    ContractToy",
        "# classes  2",
        "# train_x  10",
        "# val      10",
        "# test     10",
    ]
    assert [len(x) for x in (dm.train_loader_x, dm.val_loader, dm.test_loader)] == [
        5,
        1,
        1,
    ] and dm.train_loader_u is None
    assert (
        dm.num_classes == 2
        and dm.num_source_domains == 0
        and dm.lab2cname == {0: "dark", 1: "bright"}
    )
    assert type(dm.test_loader.dataset).__name__ == "Mine"
    cfg.DATASET.NAME = "ContractTony"
    with pytest.raises(ValueError, match=r"do you mean \[ContractToy\]"):
        build_dataset(cfg)
