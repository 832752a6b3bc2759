import torch
from dassl.utils import check_availability
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR


def build_optimizer(model, optim_cfg, param_groups=None):
    """The optimizer that `optim_cfg.NAME` names.

    Args:
        model: a module, or its parameters; `param_groups`, where given, wins over it.
        optim_cfg: `cfg.OPTIM`.
    """
    cfg = optim_cfg
    if cfg.STAGED_LR:
        raise NotImplementedError("OPTIM.STAGED_LR needs the real Dassl: install it")
    if param_groups is None:
        param_groups = model.parameters() if isinstance(model, torch.nn.Module) else model
    common = dict(lr=cfg.LR, weight_decay=cfg.WEIGHT_DECAY)
    adaptive = dict(common, betas=(cfg.ADAM_BETA1, cfg.ADAM_BETA2))
    moving = dict(common, momentum=cfg.MOMENTUM)
    falling = dict(moving, dampening=cfg.SGD_DAMPNING, nesterov=cfg.SGD_NESTEROV)
    kinds = {
        "adam": (torch.optim.Adam, adaptive),
        "amsgrad": (torch.optim.Adam, dict(adaptive, amsgrad=True)),
        "adamw": (torch.optim.AdamW, adaptive),
        # Dassl's own RAdam decays the weights apart from the gradient
        "radam": (torch.optim.RAdam, dict(adaptive, decoupled_weight_decay=True)),
        "rmsprop": (torch.optim.RMSprop, dict(moving, alpha=cfg.RMSPROP_ALPHA)),
        "sgd": (torch.optim.SGD, falling),
    }
    check_availability(cfg.NAME, kinds)
    kind, options = kinds[cfg.NAME]
    return kind(param_groups, **options)


class WarmupScheduler(LRScheduler):
    """`warmup_epoch` epochs at other rates, one at the base rate, then `successor` from there.

    Constant: every warm-up epoch at `warmup_lr`. Linear: epoch 0 at `warmup_lr`, epoch t at base
    rate * t / `warmup_epoch`. torch's SequentialLR of ConstantLR or LinearLR knows only factors of
    the base rate, and would differ in both.
    """

    def __init__(self, optimizer, successor, warmup_epoch, warmup_lr, linear):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        self.warmup_lr = warmup_lr
        self.linear = linear
        super().__init__(optimizer)

    def get_lr(self):
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        if self.linear and self.last_epoch > 0:
            return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]
        return [self.warmup_lr for _ in self.base_lrs]

    def step(self, epoch=None):
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    def state_dict(self):
        """Plain values only: a checkpoint loads with `weights_only`."""
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict):
        own = dict(state_dict)
        self.successor.load_state_dict(own.pop("successor"))
        super().load_state_dict(own)


def build_lr_scheduler(optimizer, optim_cfg):
    """The schedule that `optim_cfg` (`cfg.OPTIM`) describes; one `step()` an epoch."""
    cfg, steps = optim_cfg, optim_cfg.STEPSIZE
    check_availability(cfg.LR_SCHEDULER, ("cosine", "multi_step", "single_step"))
    if cfg.LR_SCHEDULER == "cosine":
        scheduler = CosineAnnealingLR(optimizer, cfg.MAX_EPOCH)
    elif cfg.LR_SCHEDULER == "multi_step":
        scheduler = MultiStepLR(optimizer, steps, cfg.GAMMA)
    else:
        step = steps[-1] if isinstance(steps, (list, tuple)) else steps
        scheduler = StepLR(optimizer, step if step > 0 else cfg.MAX_EPOCH, cfg.GAMMA)
    if cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = cfg.WARMUP_EPOCH
    check_availability(cfg.WARMUP_TYPE, ("constant", "linear"))
    linear = cfg.WARMUP_TYPE == "linear"
    rate = cfg.WARMUP_MIN_LR if linear else cfg.WARMUP_CONS_LR
    return WarmupScheduler(optimizer, scheduler, cfg.WARMUP_EPOCH, rate, linear)
