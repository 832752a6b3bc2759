"""What this project relies on in Dassl's training: its loop, its lines, its checkpoints."""

import math
import re
from contextlib import nullcontext
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contract import COMPAT, saved
from dassl import utils
from dassl.data.samplers import build_sampler
from dassl.data.transforms import build_transform
from dassl.engine import SimpleTrainer, TrainerBase, TrainerX, build_trainer
from torch.nn import Linear


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
