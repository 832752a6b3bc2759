"""What this project relies on in Dassl's optimisers and schedules: kinds, options, rates."""

import math

import pytest
import torch
from contract import COMPAT, saved
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from torch.nn import Linear, Sequential


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
