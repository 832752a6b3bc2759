import warnings

import torch
import torch.nn as nn

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def build_optimizer(model, optim_cfg, param_groups=None):
    """The optimizer that `optim_cfg.NAME` names.

    Args:
        model: a module, or its parameters; `param_groups`, where given, wins over it and over
            STAGED_LR.
        optim_cfg: `cfg.OPTIM`.
    """
    cfg = optim_cfg
    if cfg.NAME not in AVAI_OPTIMS:
        raise ValueError(f"optim must be one of {AVAI_OPTIMS}, but got {cfg.NAME}")
    if param_groups is not None:
        if cfg.STAGED_LR:
            warnings.warn(
                "STAGED_LR is ignored because param_groups are given: put the learning rates into "
                "those",
                stacklevel=2,
            )
    elif cfg.STAGED_LR:
        param_groups = _staged(model, cfg)
    else:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model

    common = dict(lr=cfg.LR, weight_decay=cfg.WEIGHT_DECAY)
    adaptive = dict(common, betas=(cfg.ADAM_BETA1, cfg.ADAM_BETA2))
    if cfg.NAME == "adam":
        return torch.optim.Adam(param_groups, **adaptive)
    if cfg.NAME == "amsgrad":
        return torch.optim.Adam(param_groups, amsgrad=True, **adaptive)
    if cfg.NAME == "adamw":
        return torch.optim.AdamW(param_groups, **adaptive)
    if cfg.NAME == "radam":  # Dassl's own RAdam decays the weights apart from the gradient
        return torch.optim.RAdam(param_groups, decoupled_weight_decay=True, **adaptive)
    if cfg.NAME == "rmsprop":
        return torch.optim.RMSprop(
            param_groups, momentum=cfg.MOMENTUM, alpha=cfg.RMSPROP_ALPHA, **common
        )
    return torch.optim.SGD(
        param_groups,
        momentum=cfg.MOMENTUM,
        dampening=cfg.SGD_DAMPNING,
        nesterov=cfg.SGD_NESTEROV,
        **common,
    )


def _staged(model, cfg):
    """Two groups: every other child of `model` at LR * BASE_LR_MULT, then the children NEW_LAYERS
    at LR.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"STAGED_LR needs an nn.Module, whose children it sorts, but got {type(model).__name__}"
        )
    if isinstance(model, nn.DataParallel):
        model = model.module
    new_layers = [cfg.NEW_LAYERS] if isinstance(cfg.NEW_LAYERS, str) else cfg.NEW_LAYERS
    base, new = [], []
    for name, module in model.named_children():
        (new if name in new_layers else base).extend(module.parameters())
    return [{"params": base, "lr": cfg.LR * cfg.BASE_LR_MULT}, {"params": new}]
