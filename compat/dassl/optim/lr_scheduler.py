from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]


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
        """Plain values only: a checkpoint loads with `weights_only`.

        `successor` stays on its own optimizer.
        """
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict):
        own = dict(state_dict)
        self.successor.load_state_dict(own.pop("successor"))
        super().load_state_dict(own)


def build_lr_scheduler(optimizer, optim_cfg):
    """The schedule that `optim_cfg` (`cfg.OPTIM`) describes; one `step()` an epoch."""
    cfg = optim_cfg
    scheduler = _main_schedule(optimizer, cfg)
    if cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = cfg.WARMUP_EPOCH
    if cfg.WARMUP_TYPE == "constant":
        return WarmupScheduler(
            optimizer, scheduler, cfg.WARMUP_EPOCH, cfg.WARMUP_CONS_LR, linear=False
        )
    if cfg.WARMUP_TYPE == "linear":
        return WarmupScheduler(
            optimizer, scheduler, cfg.WARMUP_EPOCH, cfg.WARMUP_MIN_LR, linear=True
        )
    raise ValueError(f"WARMUP_TYPE must be constant or linear, but got {cfg.WARMUP_TYPE}")


def _main_schedule(optimizer, cfg):
    steps = cfg.STEPSIZE
    if cfg.LR_SCHEDULER == "cosine":
        return CosineAnnealingLR(optimizer, cfg.MAX_EPOCH)
    if cfg.LR_SCHEDULER == "multi_step":
        if not isinstance(steps, (list, tuple)):
            raise TypeError(f"For multi_step, STEPSIZE must be a list of epochs, but got {steps!r}")
        return MultiStepLR(optimizer, steps, cfg.GAMMA)
    if cfg.LR_SCHEDULER == "single_step":
        step = steps[-1] if isinstance(steps, (list, tuple)) else steps
        if not isinstance(step, int):
            raise TypeError(
                f"For single_step, STEPSIZE must be a whole number of epochs, but got {step!r}"
            )
        return StepLR(optimizer, step if step > 0 else cfg.MAX_EPOCH, cfg.GAMMA)
    raise ValueError(f"scheduler must be one of {AVAI_SCHEDS}, but got {cfg.LR_SCHEDULER}")
