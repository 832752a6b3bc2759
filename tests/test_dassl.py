"""What CoOp's code and ours rely on in Dassl 0.6.3, asked of the real one or of `compat/dassl`."""

import hashlib
import io
import math
import pickle
import re
import sys
from itertools import count
from types import SimpleNamespace

import dassl
import pytest
import torch
import torch.nn.functional as F
from dassl import config, data, engine, evaluation, metrics, optim, utils
from dassl.data import datasets, samplers, transforms
from PIL import Image
from torch.nn import Linear

COMPAT = getattr(dassl, "__compat__", False)
PARTS = "train_x", "val", "test"


@datasets.DATASET_REGISTRY.register(force=True)
class ContractToy(datasets.DatasetBase):
    """`<split>_<label>_<number>.png` under DATASET.ROOT; label 0 is dark, label 1 bright."""

    def __init__(self, cfg):
        def items(part):
            path, names = f"{cfg.DATASET.ROOT}/{part}", {0: "dark", 1: "bright"}
            paths = [(f"{path}_{y}_{i}.png", y, 0, names[y]) for y in names for i in range(5)]
            return [datasets.Datum(*about) for about in paths]

        super().__init__(**{part: items(part) for part in PARTS})


@engine.TRAINER_REGISTRY.register(force=True)
class ContractTrainer(engine.TrainerX):
    """A linear classifier of pixels, written as CoOp's trainers are."""

    def build_model(self):
        self.model = Linear(3 * 8 * 8, 2).to(self.device)
        self.optim = optim.build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = optim.build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        output = self.model_inference(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": metrics.compute_accuracy(output, label)[0].item()}

    def model_inference(self, image):
        return self.model(image.flatten(1))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATASET.ROOT of `ContractToy`, with its pictures."""
    folder = tmp_path_factory.mktemp("toy")
    for part in PARTS:
        for i in range(5):
            for label, colour in enumerate([(10 + i, 20, 30), (250 - i, 240, 230)]):
                Image.new("RGB", (8, 8), colour).save(folder / f"{part}_{label}_{i}.png")
    return str(folder)


@pytest.fixture
def cfg(root, tmp_path):
    """Configuration of a small run of `ContractTrainer`, which writes to `tmp_path / "out"`."""
    cfg = config.get_cfg_default()
    dataset = "DATASET.NAME", "ContractToy", "DATASET.ROOT", root
    trainer = "TRAINER.NAME", "ContractTrainer", "USE_CUDA", False
    pictures = "INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ("normalize",)
    loaders = "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 2
    optim = "OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, "OPTIM.LR_SCHEDULER", "cosine"
    options = *dataset, *trainer, *pictures, *loaders, *optim, "OPTIM.MAX_EPOCH", 2
    cfg.merge_from_list([*options, "OUTPUT_DIR", str(tmp_path / "out")])
    return cfg


def saved(path):
    return torch.load(path, weights_only=True)


def test_every_default_by_value():
    def lines(node, path=""):
        for key, value in node.items():
            name = f"{path}{key}"
            yield from lines(value, f"{name}.") if isinstance(value, dict) else [(name, value)]

    found = "\n".join(sorted(map(repr, lines(config.get_cfg_default()))))
    assert hashlib.sha256(found.encode()).hexdigest()[:16] == "c559b5bcc79cbb73", found


def items(labels, root):
    path = f"{root}/test_0_0.png"
    return [datasets.Datum(path, label=label, classname=f"class {label}") for label in labels]


def test_datum_and_dataset_base(root):
    first = datasets.Datum(f"{root}/test_0_0.png", label=2, domain=1, classname="two")
    # CoOp's pickles of either Dassl fit the other
    values = {"_impath": first.impath, "_label": 2, "_domain": 1, "_classname": "two"}
    assert vars(pickle.loads(pickle.dumps(first))) == vars(first) == values
    assert datasets.Datum.__module__ == "dassl.data.datasets.base_dataset"
    with pytest.warns(UserWarning), pytest.raises(AssertionError):
        datasets.Datum(f"{root}/absent.png")
    base = datasets.DatasetBase(train_x=[first, *items([0, 3, 0], root)], test=[first])
    assert base.num_classes == 4 and base.lab2cname == {0: "class 0", 2: "two", 3: "class 3"}
    assert base.classnames == ["class 0", "two", "class 3"] and base.val is None


@pytest.mark.parametrize("repeat", [False, True])
def test_fewshot_draw(root, repeat):
    train, val = items([2, 0, 2, 1, 0, 2, 0, 2, 0, 1], root), items([1, 0, 0, 0], root)
    base = datasets.DatasetBase(train_x=train, val=val, test=val)
    assert base.generate_fewshot_dataset(train) is train
    utils.set_random_seed(5)
    drawn = base.generate_fewshot_dataset(train, val, num_shots=3, repeat=repeat)
    found = [[source.index(item) for item in one] for source, one in zip((train, val), drawn)]
    # as the real Dassl 0.6.3 draws them
    twice = [[5, 7, 2, 1, 4, 8, 9, 9, 3], [0, 0, 0, 3, 1, 2]]
    assert found == (twice if repeat else [[5, 7, 2, 1, 4, 8, 3, 9], [0, 3, 1, 2]])


def test_transforms(cfg, root, capsys):
    cfg.INPUT.INTERPOLATION = "bicubic"
    for is_train, choices in ((True, ["normalize", "random_flip"]), (False, [])):
        tfm = transforms.build_transform(cfg, is_train, choices)
        resized, *others = tfm.transforms
        assert resized.interpolation is transforms.INTERPOLATION_MODES["bicubic"]
        assert tfm(utils.read_image(f"{root}/test_1_0.png").resize((12, 16))).shape == (3, 8, 8)
        assert len(others) == len(capsys.readouterr().out.splitlines()) - 2
    cfg.INPUT.CUTOUT_LEN, image = 4, Image.linear_gradient("L").resize((8, 8)).convert("RGB")
    utils.set_random_seed(2)
    tfm = transforms.build_transform(cfg, True, ("random_translation", "cutout", "gaussian_noise"))
    found, told = [tfm(image).sum().item() for _ in range(4)], [93.96, 90.68, 61.49, 84.19]
    assert found == pytest.approx(told, abs=0.01)  # as the real Dassl 0.6.3 draws


def test_data_manager(cfg):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE, wrapper = 4, type("Mine", (data.DatasetWrapper,), {})
    dm = data.DataManager(cfg, transforms.build_transform(cfg), dataset_wrapper=wrapper)
    # the last two of ten pictures are dropped in training alone
    assert [len(x) for x in (dm.train_loader_x, dm.val_loader, dm.test_loader)] == [2, 1, 1]
    assert dm.num_classes == 2 and dm.lab2cname == {0: "dark", 1: "bright"}
    assert isinstance(dm.test_loader.dataset, wrapper)
    assert {*dm.test_loader.dataset[0]} == {"img", "label", "domain", "impath", "index"}


@pytest.mark.skipif(not COMPAT, reason="asks only compat: the real Dassl has these")
def test_what_is_left_out_asks_for_the_real_dassl(cfg):
    staged, views = cfg.OPTIM.clone(), cfg.clone()
    staged.STAGED_LR, views.DATALOADER.K_TRANSFORMS = True, 2
    for call, *given in (
        *((transforms.build_transform, cfg, True, ["randaugment"]), (engine.TrainerX, cfg)),
        *((optim.build_optimizer, Linear(1, 1), staged), (data.DatasetWrapper, views, [])),
        (samplers.build_sampler, "RandomDomainSampler"),
    ):
        with pytest.raises(NotImplementedError, match="real Dassl"):
            call(*given)


OPTIMIZERS = {  # what they are in torch, and what of OPTIM they read besides
    "adam": ("Adam", {"betas": (0.8, 0.999), "amsgrad": False}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "adamw": ("AdamW", {}),
    "radam": ("RAdam", {"betas": (0.8, 0.999)}),
    "rmsprop": ("RMSprop", {"alpha": 0.99, "momentum": 0.7}),
    "sgd": ("SGD", {"momentum": 0.7, "nesterov": True, "dampening": 0}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    cfg, model, (kind, own) = config.get_cfg_default().OPTIM, Linear(2, 2), OPTIMIZERS[name]
    cfg.update(NAME=name, LR=0.5, ADAM_BETA1=0.8, MOMENTUM=0.7, SGD_NESTEROV=True, WEIGHT_DECAY=0.3)
    groups = [{"params": model.parameters(), "lr": 0.5}]
    for given in ((model, cfg), (model.parameters(), cfg), (None, cfg, groups)):
        built = optim.build_optimizer(*given)
        expected = {"lr": 0.5, "weight_decay": 0.3, **own}
        assert type(built).__name__ == kind and built.defaults.items() >= expected.items()
    assert optim.build_lr_scheduler(built, cfg).step_size == 10  # MAX_EPOCH for STEPSIZE (-1,)


SCHEDULES = {  # the rate in epoch t, for LR 0.1, STEPSIZE (2, 3), MAX_EPOCH 8
    "cosine": lambda t: 0.05 * (1 + math.cos(math.pi * t / 8)),
    "single_step": lambda t: 0.1 * 0.1 ** (t // 3),
    "multi_step": lambda t: 0.1 * 0.1 ** ((t >= 2) + (t >= 3)),
}
WARMUPS = {"constant": lambda t: 0.001, "linear": lambda t: 0.1 * t / 3 if t else 0.002}


@pytest.mark.parametrize("recount", [True, False])
@pytest.mark.parametrize("warmup", [None, *WARMUPS])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rates(tmp_path, kind, warmup, recount):
    cfg, length, main = config.get_cfg_default().OPTIM, 3 if warmup else 0, SCHEDULES[kind]
    cfg.update(NAME="sgd", LR=0.1, LR_SCHEDULER=kind, STEPSIZE=(2, 3), MAX_EPOCH=8)
    cfg.update(WARMUP_EPOCH=length, WARMUP_TYPE=warmup or "linear", WARMUP_CONS_LR=0.001)
    cfg.update(WARMUP_MIN_LR=0.002, WARMUP_RECOUNT=recount)

    def build():
        sgd = optim.build_optimizer([torch.nn.Parameter(torch.zeros(1))], cfg)
        if warmup and not COMPAT:
            pytest.skip("the real Dassl's warm-up passes `verbose`, which torch >= 2.7 has not")
        return sgd, optim.build_lr_scheduler(sgd, cfg)

    def expected(t):
        if t < length:
            return WARMUPS[warmup](t)
        return main(t - length) if recount else 0.1 * main(t) / main(length)

    def epochs(optim, sched, number):
        for _ in range(number):
            assert sched.get_last_lr() == [optim.param_groups[0]["lr"]]
            yield sched.get_last_lr()[0]
            optim.step()
            sched.step()

    whole = list(epochs(*build(), 8))
    assert whole == pytest.approx([expected(t) for t in range(8)])
    for stop in (2, 5):  # resumed inside the warm-up and after it
        first, again = build(), build()
        before = list(epochs(*first, stop))
        torch.save([part.state_dict() for part in first], tmp_path / "state")
        for part, state in zip(again, saved(tmp_path / "state")):
            part.load_state_dict(state)
        assert before + list(epochs(*again, 8 - stop)) == whole


def test_evaluator(cfg, tmp_path, capsys):
    cfg.OUTPUT_DIR, cfg.TEST.PER_CLASS_RESULT, cfg.TEST.COMPUTE_CMAT = str(tmp_path), True, True
    evaluator = evaluation.build_evaluator(cfg, lab2cname={0: "a", 1: "b", 2: "c"})
    true, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 3, 1, 2, 2])
    evaluator.process(F.one_hot(true, 4).float(), true)
    evaluator.reset()
    for part in (slice(0, 4), slice(4, 6)):
        evaluator.process(F.one_hot(predicted[part], 4).float(), true[part])
    # F1: 2 TP / (2 TP + FP + FN) of classes 0, 1 and 2; no image is truly of class 3
    f1, classes = (4 / 5 + 2 / 3 + 2 / 3) / 3, (2 / 3 + 1 / 2 + 1) / 3
    accuracy = metrics.compute_accuracy((F.one_hot(predicted, 4), None), true)[0].item()
    results = evaluator.evaluate()
    assert accuracy == pytest.approx(results["accuracy"])
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    assert [x / 100 for x in results.values()] == pytest.approx([4 / 6, 2 / 6, f1, classes])
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


RESULT = "=> result|* total: 10|* correct: 10|* accuracy: 100.0%|* error: 0.0%|* macro_f1: 100.0%"
VAL, TEST = (f"Evaluate on the *{part}* set|{RESULT}".split("|") for part in ("val", "test"))


def printed(capsys):
    """Lines, with x for values that depend on weights and times."""
    values = r"\d+\.\d{4} \(\d+\.\d{4}\)|(?<=Elapsed: ).+"
    return re.sub(values, "x", capsys.readouterr().out).splitlines()


def batches(epoch, max_epoch, lr):
    """The lines of an epoch of five batches."""
    return [
        f"epoch [{epoch}/{max_epoch}] batch [{i}/5] time 2.000 (2.000) data 1.000 (1.000) "
        f"loss x acc x lr {lr} eta 0:00:{2 * (5 * (max_epoch - epoch + 1) - i):02d}"
        for i in (2, 4)
    ]


def test_training_and_resuming(cfg, tmp_path, capsys, monkeypatch):
    # every reading of the clock takes a second: 1 for a batch of data, 2 for the whole step
    monkeypatch.setattr("dassl.engine.trainer.time", SimpleNamespace(time=count().__next__))
    utils.set_random_seed(0)
    cfg.TRAIN.PRINT_FREQ, cfg.TRAIN.CHECKPOINT_FREQ, out = 2, 1, cfg.OUTPUT_DIR
    cfg.TEST.FINAL_MODEL = "best_val"
    trainer = engine.build_trainer(cfg)
    assert "Loading trainer: ContractTrainer" in capsys.readouterr().out
    trainer.train()
    best = f"{out}/linear/model-best.pth.tar"
    assert printed(capsys) == [
        "No checkpoint found, train from scratch",
        f"Initialize tensorboard (log_dir={out}/tensorboard)",
        *batches(1, 2, "5.0000e-02"),
        *VAL,
        f"Checkpoint saved to {best}",
        f"Checkpoint saved to {out}/linear/model.pth.tar-1",
        *batches(2, 2, "2.5000e-02"),
        *VAL,
        f"Checkpoint saved to {out}/linear/model.pth.tar-2",
        *("Finish training", "Deploy the model with the best val performance"),
        f"Load {best} to linear (epoch=1, val_result=100.0)",
        *TEST,
        "Elapsed: x",
    ]
    assert torch.equal(saved(best)["state_dict"]["weight"], trainer.model.weight)
    assert saved(best)["val_result"] == trainer.best_result == 100.0
    assert (tmp_path / "out/linear/checkpoint").read_text() == "model.pth.tar-2\n"
    checkpoint = saved(f"{out}/linear/model.pth.tar-2")
    assert set(checkpoint) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert checkpoint["epoch"] == 2 and checkpoint["val_result"] is None

    cfg.OPTIM.MAX_EPOCH, cfg.RESUME, cfg.OUTPUT_DIR = 3, out, str(tmp_path / "new")
    cfg.TEST.FINAL_MODEL = "last_step"
    resumed = engine.build_trainer(cfg)
    capsys.readouterr()
    resumed.train()
    assert printed(capsys) == [
        f"Found checkpoint at {out} (will resume training)",
        f'Loading checkpoint from "{out}/linear/model.pth.tar-2"',
        *("Loaded model weights", "Loaded optimizer", "Loaded scheduler", "Previous epoch: 2"),
        f"Initialize tensorboard (log_dir={cfg.OUTPUT_DIR}/tensorboard)",
        *batches(3, 3, "0.0000e+00"),
        f"Checkpoint saved to {cfg.OUTPUT_DIR}/linear/model.pth.tar-3",
        *("Finish training", "Deploy the last-epoch model", *TEST, "Elapsed: x"),
    ]
    # epoch 3's rate is 0
    assert torch.equal(resumed.model.weight, checkpoint["state_dict"]["weight"])

    trainer.save_model(6, out, val_result=1.75)
    torch.nn.init.zeros_(trainer.model.weight)
    assert trainer.test() == 50.0
    trainer.load_model(out, epoch=7)
    trainer.val_loader = None
    capsys.readouterr()
    assert trainer.test(split="val") == 100.0 and "*test*" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="model.pth.tar-8"):
        trainer.load_model(out, epoch=8)


def test_a_name_is_registered_once():
    registry, first, second = utils.Registry("THING"), type("Thing", (), {}), type("Thing", (), {})
    assert registry.register()(first) is registry.get("Thing") is first
    with pytest.raises(KeyError, match="Thing.*THING"):
        registry.register(second)
    registry.register(second, force=True)
    assert registry.get("Thing") is second


def test_logger_keeps_an_existing_log(tmp_path, monkeypatch):
    for words in ("first", "second"):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        utils.setup_logger(str(tmp_path))
        print(words, flush=True)
        assert sys.stdout.console.getvalue() == words + "\n"
    old, new = sorted(tmp_path.iterdir())
    assert old.name == "log.txt" and re.fullmatch(r"log\.txt(-\d\d\d\d)(-\d\d){5}", new.name)
    assert old.read_text() == "first\n" and new.read_text() == "second\n"


def test_checkpoints_and_pretrained_weights(tmp_path, capsys):
    source, target, folder = Linear(2, 1), Linear(2, 1), str(tmp_path / "a/b")
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.5) for m in (source, target))
    other.param_groups[0]["lr"] = 0.1
    state = {"module." + key: value for key, value in source.state_dict().items()}
    for epoch in (1, 2):
        kept = {"state_dict": state, "epoch": epoch, "optimizer": optimizer.state_dict()}
        utils.save_checkpoint({**kept}, folder, is_best=epoch == 1)
    utils.save_checkpoint(kept, folder, remove_module_from_keys=False, model_name="named")
    assert saved(f"{folder}/model-best.pth.tar")["epoch"] == 1
    assert set(saved(f"{folder}/named")["state_dict"]) == set(state)
    assert set(saved(f"{folder}/model.pth.tar-2")["state_dict"]) == {"weight", "bias"}
    (tmp_path / "a/b/checkpoint").write_text("model.pth.tar-2\n")
    assert utils.resume_from_checkpoint(folder, target, other) == 2
    assert torch.equal(target.weight, source.weight) and other.param_groups[0]["lr"] == 0.5
    model = Linear(2, 1, bias=False)
    utils.load_pretrained_weights(model, f"{folder}/named")
    assert torch.equal(model.weight, source.weight) and utils.count_num_param(model) == 2
    assert "unmatched keys or size: ['bias']" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="Cannot load"):
        utils.load_pretrained_weights(Linear(7, 7), f"{folder}/named")
