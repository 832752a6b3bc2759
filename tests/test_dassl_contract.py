"""What this project relies on in Dassl 0.6.3, asked of whichever `dassl` is importable: the real
one or `compat/dassl`.
"""

import ast
import inspect
import io
import math
import pickle
import random
import re
import sys
from contextlib import nullcontext
from itertools import count
from types import SimpleNamespace

import dassl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dassl import utils
from dassl.config import clean_cfg, get_cfg_default
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerBase, TrainerX, build_trainer
from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase, build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from PIL import Image
from torch.nn import Linear, Sequential

COMPAT = getattr(dassl, "__compat__", False)

DEFAULTS = """
: VERSION=1; OUTPUT_DIR='./output'; RESUME=''; SEED=-1; USE_CUDA=True; VERBOSE=True
INPUT: SIZE=(224, 224); INTERPOLATION='bilinear'; TRANSFORMS=(); NO_TRANSFORM=False; CROP_PADDING=4
INPUT: RRCROP_SCALE=(0.08, 1.0)
INPUT: PIXEL_MEAN=[0.485, 0.456, 0.406]; PIXEL_STD=[0.229, 0.224, 0.225]; CUTOUT_N=1; CUTOUT_LEN=16
INPUT: GN_MEAN=0.0; GN_STD=0.15
INPUT: RANDAUGMENT_N=2; RANDAUGMENT_M=10; COLORJITTER_B=0.4; COLORJITTER_C=0.4; COLORJITTER_S=0.4
INPUT: COLORJITTER_H=0.1; RGS_P=0.2
INPUT: GB_P=0.5; GB_K=21
DATASET: ROOT=''; NAME=''; SOURCE_DOMAINS=(); TARGET_DOMAINS=(); NUM_LABELED=-1; NUM_SHOTS=-1
DATASET: VAL_PERCENT=0.1; STL10_FOLD=-1
DATASET: CIFAR_C_TYPE=''; CIFAR_C_LEVEL=1; ALL_AS_UNLABELED=False
DATALOADER: NUM_WORKERS=4; K_TRANSFORMS=1; RETURN_IMG0=False; TEST.SAMPLER='SequentialSampler'
DATALOADER: TEST.BATCH_SIZE=32
DATALOADER.TRAIN_X: SAMPLER='RandomSampler'; BATCH_SIZE=32; N_DOMAIN=0; N_INS=16
DATALOADER.TRAIN_U: SAME_AS_X=True; SAMPLER='RandomSampler'; BATCH_SIZE=32; N_DOMAIN=0; N_INS=16
MODEL: INIT_WEIGHTS=''; BACKBONE.NAME=''; BACKBONE.PRETRAINED=True
MODEL.HEAD: NAME=''; HIDDEN_LAYERS=(); ACTIVATION='relu'; BN=True; DROPOUT=0.0
OPTIM: NAME='adam'; LR=0.0003; WEIGHT_DECAY=0.0005; MOMENTUM=0.9; SGD_DAMPNING=0; SGD_NESTEROV=False
OPTIM: RMSPROP_ALPHA=0.99
OPTIM: ADAM_BETA1=0.9; ADAM_BETA2=0.999; STAGED_LR=False; NEW_LAYERS=(); BASE_LR_MULT=0.1
OPTIM: LR_SCHEDULER='single_step'
OPTIM: STEPSIZE=(-1,); GAMMA=0.1; MAX_EPOCH=10; WARMUP_EPOCH=-1; WARMUP_TYPE='linear'
OPTIM: WARMUP_CONS_LR=1e-05
OPTIM: WARMUP_MIN_LR=1e-05; WARMUP_RECOUNT=True
TRAIN: CHECKPOINT_FREQ=0; PRINT_FREQ=10; COUNT_ITER='train_x'
TEST: EVALUATOR='Classification'; PER_CLASS_RESULT=False; COMPUTE_CMAT=False; NO_TEST=False
TEST: SPLIT='test'; FINAL_MODEL='last_step'
TRAINER: NAME=''; MCD.N_STEP_F=4; MME.LMDA=0.1; M3SDA.LMDA=0.5; M3SDA.N_STEP_F=4; ENTMIN.LMDA=0.001
TRAINER: SE.EMA_ALPHA=0.999; SE.CONF_THRE=0.95; SE.RAMPUP=300; DOMAINMIX.TYPE='crossdomain'
TRAINER: DOMAINMIX.ALPHA=1.0
TRAINER: DOMAINMIX.BETA=1.0; MEANTEACHER.WEIGHT_U=1.0; MEANTEACHER.EMA_ALPHA=0.999
TRAINER: MEANTEACHER.RAMPUP=5
TRAINER.CDAC: CLASS_LR_MULTI=10; RAMPUP_COEF=30; RAMPUP_ITRS=1000; TOPK_MATCH=5; P_THRESH=0.95
TRAINER.CDAC: STRONG_TRANSFORMS=()
TRAINER: DAEL.WEIGHT_U=0.5; DAEL.CONF_THRE=0.95; DAEL.STRONG_TRANSFORMS=(); DAELDG.WEIGHT_U=0.5
TRAINER: DAELDG.CONF_THRE=0.95
TRAINER: DAELDG.STRONG_TRANSFORMS=(); FIXMATCH.WEIGHT_U=1.0; FIXMATCH.CONF_THRE=0.95
TRAINER: FIXMATCH.STRONG_TRANSFORMS=()
TRAINER: CROSSGRAD.EPS_F=1.0; CROSSGRAD.EPS_D=1.0; CROSSGRAD.ALPHA_F=0.5; CROSSGRAD.ALPHA_D=0.5
TRAINER.DDAIG: G_ARCH=''; LMDA=0.3; CLAMP=False; CLAMP_MIN=-1.0; CLAMP_MAX=1.0; WARMUP=0; ALPHA=0.5
TRAINER.MIXMATCH: WEIGHT_U=100.0; TEMP=2.0; MIXUP_BETA=0.75; RAMPUP=20000
"""


@DATASET_REGISTRY.register(force=True)
class ContractToy(DatasetBase):
    """`<split>_<label>_<number>.png` under DATASET.ROOT; label 0 is dark, label 1 bright."""

    def __init__(self, cfg):
        names = {0: "dark", 1: "bright"}
        super().__init__(
            **{
                part: [
                    Datum(f"{cfg.DATASET.ROOT}/{part}_{y}_{i}.png", y, 0, names[y])
                    for y in names
                    for i in range(5)
                ]
                for part in ("train_x", "val", "test")
            }
        )


@TRAINER_REGISTRY.register(force=True)
class ContractTrainer(TrainerX):
    """A linear classifier of pixels, written as CoOp's trainers are."""

    def build_model(self):
        self.model = Linear(3 * 8 * 8, 2).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)

    def parse_batch_train(self, batch):
        image, label, _ = super().parse_batch_train(batch)
        return image, label

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model_inference(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def model_inference(self, image):
        return self.model(image.flatten(1))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    for part in ("train_x", "val", "test"):
        for i in range(5):
            Image.new("RGB", (8, 8), (10 + i, 20, 30)).save(folder / f"{part}_0_{i}.png")
            Image.new("RGB", (8, 8), (250 - i, 240, 230)).save(folder / f"{part}_1_{i}.png")
    return str(folder)


@pytest.fixture
def cfg(root, tmp_path):
    cfg = get_cfg_default()
    cfg.merge_from_list(
        [
            "OUTPUT_DIR",
            str(tmp_path / "out"),
            "USE_CUDA",
            False,
            "INPUT.SIZE",
            (8, 8),
            "INPUT.TRANSFORMS",
            ("normalize",),
            "DATASET.NAME",
            "ContractToy",
            "DATASET.ROOT",
            root,
            "TRAINER.NAME",
            "ContractTrainer",
            "DATALOADER.NUM_WORKERS",
            0,
            "DATALOADER.TRAIN_X.BATCH_SIZE",
            2,
            "OPTIM.NAME",
            "sgd",
            "OPTIM.LR",
            0.05,
            "OPTIM.LR_SCHEDULER",
            "cosine",
            "OPTIM.MAX_EPOCH",
            2,
        ]
    )
    return cfg


def items(labels, root):
    return [
        Datum(f"{root}/test_0_0.png", label=label, classname=f"class {label}") for label in labels
    ]


def saved(path):
    return torch.load(path, weights_only=True)


def test_which_dassl():
    print(
        f"\ncontract tests ran against {'compat/dassl' if COMPAT else 'the REAL Dassl'} "
        f"{dassl.__version__}: {dassl.__file__}"
    )
    assert dassl.__version__ == "0.6.3"


def test_every_default_by_value():
    expected = {}
    for line in DEFAULTS.strip().splitlines():
        node, pairs = line.split(": ")
        for key, value in (pair.split("=") for pair in pairs.split("; ")):
            expected[f"{node}.{key}".lstrip(".")] = ast.literal_eval(value)

    def flat(node, path=""):
        for key, value in node.items():
            yield from (
                flat(value, f"{path}{key}.") if isinstance(value, dict) else [(path + key, value)]
            )

    found = dict(flat(get_cfg_default()))
    assert found == expected
    assert {k: type(v) for k, v in found.items()} == {
        k: type(v) for k, v in expected.items()
    }  # yacs merges by type


def test_config_copies_and_clean_cfg():
    cfg = get_cfg_default()
    cfg.INPUT.PIXEL_MEAN[0] = cfg.OPTIM.LR = 7
    assert get_cfg_default().INPUT.PIXEL_MEAN[0] == 0.485 and get_cfg_default().OPTIM.LR == 0.0003
    clean_cfg(cfg, "MixMatch")
    assert list(cfg.TRAINER) == ["NAME", "MIXMATCH"]


def test_registry_and_nearest_name():
    registry, first, second = utils.Registry("THING"), type("Thing", (), {}), type("Thing", (), {})
    assert registry.register()(first) is first
    with pytest.raises(KeyError, match="Thing.*THING"):
        registry.register(second)
    assert registry.get("Thing") is first
    registry.register(second, force=True)
    assert registry.get("Thing") is second and registry.registered_names() == ["Thing"]
    with pytest.raises(KeyError, match="Nothing.*THING"):
        registry.get("Nothing")

    utils.check_availability("Food101", ["Food101"])
    with pytest.raises(ValueError, match=r"\[Caltech\] \(do you mean \[Caltech101\]\?\)"):
        utils.check_availability("Caltech", ["Food101", "Caltech101", "UCF101"])
    assert utils.get_most_similar_str_to_a_from_b("ab", ["ax", "ay"]) == "ay"  # the last of equals


def test_files_and_seeds(tmp_path, root):
    path = tmp_path / "new" / "x.json"
    utils.write_json({"a": [1, "b"]}, str(path))
    assert utils.read_json(str(path)) == {"a": [1, "b"]} and path.read_text().startswith(
        '{\n    "a": [\n        1,\n'
    )
    utils.mkdir_if_missing(str(path.parent))  # already there
    (path.parent / ".hidden").touch(), (path.parent / "a.json").touch()
    assert utils.listdir_nohidden(str(path.parent), sort=True) == [
        "a.json",
        "x.json",
    ] and utils.check_isfile(str(path))
    with pytest.warns(UserWarning, match="No file found"):
        assert not utils.check_isfile(str(path) + "x")
    assert utils.read_image(f"{root}/val_0_1.png").getpixel((0, 0)) == (11, 20, 30)
    assert utils.tolist_if_not("a") == ["a"] == utils.tolist_if_not(["a"])
    utils.set_random_seed(3)
    drawn = random.random(), np.random.rand(), torch.rand(1)
    assert drawn == (
        random.Random(3).random(),
        np.random.RandomState(3).rand(),
        torch.rand(1, generator=torch.manual_seed(3)),
    )


def test_logger_keeps_an_existing_log(tmp_path, monkeypatch):
    for words in ("first", "second"):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        utils.setup_logger(str(tmp_path))
        print(words, flush=True)
        assert sys.stdout.console.getvalue() == words + "\n"
    old, new = sorted(tmp_path.iterdir())
    assert old.name == "log.txt" and re.fullmatch(r"log\.txt(-\d\d\d\d)(-\d\d){5}", new.name)
    assert old.read_text() == "first\n" and new.read_text() == "second\n"


def test_meters():
    meter, mean, ema = utils.MetricMeter(), utils.AverageMeter(), utils.AverageMeter(ema=True)
    (
        meter.update({"loss": torch.tensor(1.0), "acc": 50}),
        meter.update({"loss": 2.0}),
        meter.update(None),
    )
    assert str(meter) == "loss 2.0000 (1.5000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError):
        meter.update(1.0)
    mean.update(1.0, n=3), mean.update(torch.tensor(5.0)), ema.update(1.0), ema.update(2.0)
    assert (mean.val, mean.avg, mean.sum, mean.count) == (
        5.0,
        2.0,
        8.0,
        4,
    ) and ema.avg == pytest.approx(0.29)


def test_checkpoints(tmp_path, capsys):
    source, target, folder = Linear(2, 1), Linear(2, 1), str(tmp_path / "a/b")
    optim, other = (
        torch.optim.SGD(source.parameters(), lr=0.5),
        torch.optim.SGD(target.parameters(), lr=0.1),
    )
    state = {"module." + key: value for key, value in source.state_dict().items()}
    for epoch in (1, 2):
        checkpoint = {"state_dict": dict(state), "epoch": epoch, "optimizer": optim.state_dict()}
        utils.save_checkpoint(checkpoint, folder, is_best=epoch == 1)
    utils.save_checkpoint(
        {"state_dict": state, "epoch": 9}, folder, remove_module_from_keys=False, model_name="named"
    )
    names = {"checkpoint", "model-best.pth.tar", "model.pth.tar-1", "model.pth.tar-2", "named"}
    assert {p.name for p in (tmp_path / "a/b").iterdir()} == names
    assert (tmp_path / "a/b/checkpoint").read_text() == "named\n" and saved(
        f"{folder}/model-best.pth.tar"
    )["epoch"] == 1
    assert set(saved(f"{folder}/named")["state_dict"]) == set(state)
    assert set(saved(f"{folder}/model.pth.tar-2")["state_dict"]) == {"weight", "bias"}
    lines = [
        f"Checkpoint saved to {folder}/model.pth.tar-1",
        f'Best checkpoint saved to "{folder}/model-best.pth.tar"',
    ]
    assert capsys.readouterr().out.splitlines()[:2] == lines

    (tmp_path / "a/b/checkpoint").write_text("model.pth.tar-2\n")
    assert utils.resume_from_checkpoint(folder, target, other) == 2
    assert torch.equal(target.weight, source.weight) and other.param_groups[0]["lr"] == 0.5
    with pytest.raises(FileNotFoundError):
        utils.load_checkpoint(folder + "/no")


def test_pretrained_weights_and_open_layers(tmp_path, capsys):
    source, model, path = (
        Sequential(Linear(2, 3), Linear(3, 4)),
        Sequential(Linear(2, 3), Linear(3, 5)),
        str(tmp_path / "w"),
    )
    torch.save(
        {"state_dict": {"module." + key: value for key, value in source.state_dict().items()}}, path
    )
    utils.load_pretrained_weights(model, path)
    assert torch.equal(model[0].weight, source[0].weight)
    assert "unmatched keys or size: ['1.weight', '1.bias']" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="Cannot load"):
        utils.load_pretrained_weights(Linear(7, 7), path)
    utils.open_specified_layers(model, "1")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert [m.training for m in model] == [False, True]
    utils.open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model)
    assert (
        utils.count_num_param(model) == 29 == utils.count_num_param(params=list(model.parameters()))
    )


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


def test_evaluator(cfg, tmp_path, capsys):
    cfg.OUTPUT_DIR, cfg.TEST.PER_CLASS_RESULT, cfg.TEST.COMPUTE_CMAT = str(tmp_path), True, True
    evaluator = build_evaluator(cfg, lab2cname={0: "a", 1: "b", 2: "c"})
    assert (
        isinstance(evaluator, EvaluatorBase)
        and "Classification" in EVALUATOR_REGISTRY.registered_names()
    )
    true, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 3, 1, 2, 2])
    evaluator.process(F.one_hot(true, 4).float(), true)
    evaluator.reset()
    for part in (slice(0, 4), slice(4, 6)):
        evaluator.process(F.one_hot(predicted[part], 4).float(), true[part])
    results = evaluator.evaluate()
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    macro_f1 = (
        4 / 5 + 2 / 3 + 2 / 3
    ) / 3  # 2 TP / (2 TP + FP + FN) of classes 0, 1 and 2; no image is truly of class 3
    assert [x / 100 for x in results.values()] == pytest.approx(
        [4 / 6, 2 / 6, macro_f1, (2 / 3 + 1 / 2 + 1) / 3]
    )
    assert capsys.readouterr().out == (
        "Loading evaluator: Classification\n"
        "=> result\n* total: 6\n* correct: 4\n"
        "* accuracy: 66.7%\n* error: 33.3%\n* macro_f1: 71.1%\n"
        "=> per-class result\n"
        "* class: 0 (a)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n"
        "* class: 1 (b)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n"
        "* class: 2 (c)\ttotal: 1\tcorrect: 1\tacc: 100.0%\n"
        "* average: 72.2%\n"
        f"Confusion matrix is saved to {tmp_path}/cmat.pt\n"
    )
    assert torch.load(tmp_path / "cmat.pt", weights_only=False)[0].tolist() == pytest.approx(
        [2 / 3, 0, 0, 1 / 3]
    )


def test_compute_accuracy():
    output, target = (
        torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.1, 0.2, 0.7]]),
        torch.tensor([1, 2, 0]),
    )
    (top1,), (same,) = compute_accuracy(output, target), compute_accuracy((output, None), target)
    assert top1.shape == (1,) and top1.item() == same.item() == pytest.approx(100 / 3)
    if COMPAT:  # the real one calls view() on what is not contiguous for k > 1, which torch refuses
        assert [x.item() for x in compute_accuracy(output, target, topk=(1, 2))] == pytest.approx(
            [100 / 3, 200 / 3]
        )


@pytest.mark.parametrize(
    "name, kind, options",
    [
        ("adam", "Adam", {"betas": (0.8, 0.999), "amsgrad": False}),
        ("amsgrad", "Adam", {"amsgrad": True}),
        ("adamw", "AdamW", {}),
        ("radam", "RAdam", {"betas": (0.8, 0.999)}),
        ("rmsprop", "RMSprop", {"alpha": 0.99, "momentum": 0.7}),
        ("sgd", "SGD", {"momentum": 0.7, "nesterov": True, "dampening": 0}),
    ],
)
def test_optimizers(name, kind, options):
    cfg, model = get_cfg_default().OPTIM, Sequential(Linear(2, 2), Linear(2, 2))
    cfg.merge_from_list(
        [
            "NAME",
            name,
            "LR",
            0.5,
            "ADAM_BETA1",
            0.8,
            "MOMENTUM",
            0.7,
            "SGD_NESTEROV",
            True,
            "WEIGHT_DECAY",
            0.3,
        ]
    )
    for source in (model, model.parameters()):
        optim = build_optimizer(source, cfg)
        assert (
            type(optim).__name__ == kind
            and optim.defaults.items() >= {"lr": 0.5, "weight_decay": 0.3, **options}.items()
        )
    assert build_lr_scheduler(optim, cfg).step_size == 10  # STEPSIZE (-1,) stands for MAX_EPOCH
    cfg.STAGED_LR, cfg.NEW_LAYERS = True, ("1",)
    base, new = build_optimizer(model, cfg).param_groups
    assert (
        (base["lr"], new["lr"]) == (0.05, 0.5)
        and new["params"][0] is model[1].weight
        and len(base["params"]) == 2
    )
    cfg.NAME = "adagrad"
    with pytest.raises(ValueError, match="adagrad"):
        build_optimizer(model, cfg)


SCHEDULES = {  # the rate in epoch t, for LR 0.1, STEPSIZE (2, 3), MAX_EPOCH 8
    "cosine": lambda t: 0.05 * (1 + math.cos(math.pi * t / 8)),
    "single_step": lambda t: 0.1 * 0.1 ** (t // 3),
    "multi_step": lambda t: 0.1 * 0.1 ** ((t >= 2) + (t >= 3)),
}
WARMUPS = {
    "constant": lambda t: 0.001,
    "linear": lambda t: 0.1 * t / 3 if t else 0.002,
}  # for WARMUP_EPOCH 3


@pytest.mark.parametrize("recount", [True, False])
@pytest.mark.parametrize("warmup", [None, *WARMUPS])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rates(tmp_path, kind, warmup, recount):
    cfg, length, main = get_cfg_default().OPTIM, 3 if warmup else 0, SCHEDULES[kind]
    cfg.merge_from_list(
        [
            "NAME",
            "sgd",
            "LR",
            0.1,
            "LR_SCHEDULER",
            kind,
            "STEPSIZE",
            (2, 3),
            "MAX_EPOCH",
            8,
            "WARMUP_EPOCH",
            length,
            "WARMUP_TYPE",
            warmup or "linear",
            "WARMUP_CONS_LR",
            0.001,
            "WARMUP_MIN_LR",
            0.002,
            "WARMUP_RECOUNT",
            recount,
        ]
    )

    def build():
        optim = build_optimizer([torch.nn.Parameter(torch.zeros(1))], cfg)
        try:
            return optim, build_lr_scheduler(optim, cfg)
        except TypeError as error:
            if COMPAT or "positional argument" not in str(error):
                raise
            pytest.skip(
                "the real Dassl's warm-up passes `verbose`, which torch >= 2.7 does not take: "
                f"{error}"
            )

    def expected(t):
        if t < length:
            return WARMUPS[warmup](t)
        if recount:
            return main(t - length)
        return (
            0.1 * main(t) / main(length)
        )  # the base rate after the warm-up, then the schedule's factors from there

    def epochs(optim, sched, number):
        for _ in range(number):
            assert sched.get_last_lr() == [optim.param_groups[0]["lr"]]
            yield sched.get_last_lr()[0]
            optim.step(), sched.step()

    whole = list(epochs(*build(), 8))
    assert whole == pytest.approx([expected(t) for t in range(8)])
    for stop in (2, 5):  # resumed inside the warm-up and after it
        first, again = build(), build()
        before = list(epochs(*first, stop))
        torch.save([part.state_dict() for part in first], tmp_path / "state")
        for part, state in zip(again, saved(tmp_path / "state")):
            part.load_state_dict(state)
        assert before + list(epochs(*again, 8 - stop)) == whole


@pytest.mark.parametrize(
    "error, options",
    [
        (ValueError, {"LR_SCHEDULER": "exp"}),
        (TypeError, {"LR_SCHEDULER": "multi_step", "STEPSIZE": 3}),
        (TypeError, {"STEPSIZE": (0.5,)}),
        (ValueError, {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "cubic"}),
    ],
)
def test_unknown_schedules_are_errors(error, options):
    cfg = get_cfg_default().OPTIM
    for key, value in options.items():
        cfg[key] = value
    with pytest.raises(error):
        build_lr_scheduler(torch.optim.SGD(Linear(1, 1).parameters(), lr=0.1), cfg)


def matches(lines, patterns):
    """Each line against the pattern at its place; a failure shows the first that differs."""
    found = [
        pattern if re.fullmatch(pattern, line) else line for line, pattern in zip(lines, patterns)
    ]
    assert found + lines[len(patterns) :] == patterns


def batches(epoch, max_epoch, numbers, lr, next_lr="never shown"):
    """Patterns of an epoch's lines; the fifth and last batch already shows the next epoch's rate,
    as in CoOp.
    """
    value = r"\d+\.\d{4} \(\d+\.\d{4}\)"
    return [
        rf"epoch \[{epoch}/{max_epoch}\] batch \[{i}/5\] "
        rf"time 2\.000 \(2\.000\) data 1\.000 \(1\.000\) loss {value} acc {value} "
        rf"lr {re.escape(next_lr if i == 5 else lr)} "
        rf"eta 0:00:{2 * (5 * (max_epoch - epoch + 1) - i):02d}"
        for i in numbers
    ]


@pytest.fixture
def clock(monkeypatch):
    """Every reading of the clock takes a second: 1 for a batch of data, 2 for the whole step."""
    monkeypatch.setattr("dassl.engine.trainer.time", SimpleNamespace(time=count().__next__))


RESULT = [
    "=> result",
    r"\* total: 10",
    r"\* correct: 10",
    r"\* accuracy: 100\.0%",
    r"\* error: 0\.0%",
    r"\* macro_f1: 100\.0%",
]
VAL, TEST = [r"Evaluate on the \*val\* set", *RESULT], [r"Evaluate on the \*test\* set", *RESULT]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_training_and_resuming(cfg, tmp_path, capsys, clock, elsewhere):
    cfg.TRAIN.PRINT_FREQ, cfg.TRAIN.CHECKPOINT_FREQ, out = 2, 1, cfg.OUTPUT_DIR
    utils.set_random_seed(0)
    trainer = build_trainer(cfg)
    assert (
        isinstance(trainer, SimpleTrainer)
        and "Loading trainer: ContractTrainer" in capsys.readouterr().out
    )
    trainer.train()
    printed = capsys.readouterr()
    finish = ["Finish training", "Deploy the last-epoch model", *TEST, r"Elapsed: 0:00:\d\d"]
    matches(
        printed.out.splitlines(),
        [
            "No checkpoint found, train from scratch",
            rf"Initialize tensorboard \(log_dir={out}/tensorboard\)",
            *batches(1, 2, (2, 4), "5.0000e-02"),
            f"Checkpoint saved to {out}/linear/model.pth.tar-1",
            *batches(2, 2, (2, 4), "2.5000e-02"),
            f"Checkpoint saved to {out}/linear/model.pth.tar-2",
            *finish,
        ],
    )
    assert "100%" in printed.err and not trainer.model.training  # tqdm's bar; eval mode
    assert {p.name for p in (tmp_path / "out/linear").iterdir()} == {
        "checkpoint",
        "model.pth.tar-1",
        "model.pth.tar-2",
    }
    assert list((tmp_path / "out/tensorboard").glob("events.out.tfevents.*"))
    checkpoint = saved(f"{out}/linear/model.pth.tar-2")
    assert (
        set(checkpoint) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
        and checkpoint["epoch"] == 2
    )
    assert checkpoint["val_result"] is None and torch.equal(
        checkpoint["state_dict"]["weight"], trainer.model.weight
    )

    cfg.OPTIM.MAX_EPOCH = 3
    if elsewhere:
        cfg.RESUME, cfg.OUTPUT_DIR = out, str(tmp_path / "new")
    resumed = build_trainer(cfg)
    capsys.readouterr()
    resumed.train()
    matches(
        capsys.readouterr().out.splitlines(),
        [
            rf"Found checkpoint at {out} \(will resume training\)",
            f'Loading checkpoint from "{out}/linear/model.pth.tar-2"',
            "Loaded model weights",
            "Loaded optimizer",
            "Loaded scheduler",
            "Previous epoch: 2",
            rf"Initialize tensorboard \(log_dir={cfg.OUTPUT_DIR}/tensorboard\)",
            *batches(3, 3, (2, 4), "0.0000e+00"),
            f"Checkpoint saved to {cfg.OUTPUT_DIR}/linear/model.pth.tar-3",
            *finish,
        ],
    )
    assert resumed.start_epoch == 2 and torch.equal(
        resumed.model.weight, trainer.model.weight
    )  # epoch 3's rate is 0


def test_best_val(cfg, tmp_path, capsys, clock):
    cfg.TEST.FINAL_MODEL, out = "best_val", cfg.OUTPUT_DIR
    utils.set_random_seed(0)
    trainer = build_trainer(cfg)
    assert trainer.best_result == -np.inf and capsys.readouterr().out
    trainer.train()
    matches(
        capsys.readouterr().out.splitlines()[2:-1],
        [
            *batches(1, 2, range(1, 6), "5.0000e-02", "2.5000e-02"),
            *VAL,
            f"Checkpoint saved to {out}/linear/model-best.pth.tar",
            *batches(2, 2, range(1, 6), "2.5000e-02", "0.0000e+00"),
            *VAL,
            f"Checkpoint saved to {out}/linear/model.pth.tar-2",
            "Finish training",
            "Deploy the model with the best val performance",
            rf"Load {out}/linear/model-best.pth.tar to linear \(epoch=1, val_result=100\.0\)",
            *TEST,
        ],
    )
    best = saved(f"{out}/linear/model-best.pth.tar")
    assert (
        torch.equal(best["state_dict"]["weight"], trainer.model.weight)
        and best["val_result"] == 100.0
    )
    assert (
        tmp_path / "out/linear/checkpoint"
    ).read_text() == "model.pth.tar-2\n" and trainer.best_result == 100.0

    trainer.save_model(6, out, val_result=1.75)
    torch.nn.init.zeros_(trainer.model.weight)
    assert trainer.test() == 50.0
    trainer.load_model(out, epoch=7)
    trainer.val_loader = None
    assert (
        capsys.readouterr()
        and trainer.test(split="val") == 100.0
        and "*test*" in capsys.readouterr().out
    )
    with pytest.raises(FileNotFoundError, match="model.pth.tar-8"):
        trainer.load_model(out, epoch=8)


def test_trainer_base(capsys):
    base, part = TrainerBase(), Linear(1, 1)
    base.register_model("a", part)
    base.register_model("b", Linear(1, 1), torch.optim.SGD(part.parameters(), lr=0.1))
    assert base.get_model_names() == ["a", "b"] and base.get_model_names("b") == ["b"]
    base.set_model_mode("eval", "a")
    assert not part.training and base._models["b"].training
    base.update_lr(), base.write_scalar("x", 1.0), base.close_writer(), base.load_model("")
    assert capsys.readouterr().out.startswith(
        "Note that load_model() is skipped as no pretrained model is given"
    )
    base.model_backward_and_update(part(torch.ones(1, 1)).sum())
    assert part.weight.grad.item() == 1.0
    for error, call in (
        (AssertionError, lambda: base.register_model("a", part)),
        (AssertionError, lambda: base.get_model_names("c")),
        (KeyError, lambda: base.set_model_mode("walk")),
        (NotImplementedError, lambda: base.run_epoch()),
        (FloatingPointError, lambda: base.detect_anomaly(torch.tensor([1.0, math.nan]))),
        (AttributeError, lambda: TrainerBase.__new__(TrainerBase).register_model("a", part)),
    ):
        with pytest.raises(error):
            call()


def test_load_model_without_a_result_and_what_needs_the_real_dassl(cfg, capsys):
    trainer = build_trainer(cfg)
    trainer.save_model(0, cfg.OUTPUT_DIR)
    with (
        nullcontext() if COMPAT else pytest.raises(TypeError)
    ):  # the real one cannot format a val_result of None
        trainer.load_model(cfg.OUTPUT_DIR, epoch=1)
    assert ("(epoch=1, val_result=None)" in capsys.readouterr().out) == COMPAT
    left_out = (
        lambda: build_transform(cfg, True, ("randaugment",)),
        lambda: build_sampler("RandomDomainSampler"),
        lambda: TrainerX(cfg),
    )
    for call in left_out if COMPAT else ():
        with pytest.raises(NotImplementedError, match="real Dassl"):
            call()
