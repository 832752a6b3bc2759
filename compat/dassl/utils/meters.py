from collections import defaultdict

import torch


def _plain(value):
    return value.item() if isinstance(value, torch.Tensor) else value


class AverageMeter:
    """Last value (`val`) and running mean (`avg`) of one quantity.

    With `ema`, an exponential mean that starts at 0.
    """

    def __init__(self, ema=False):
        self.ema = ema
        self.reset()

    def reset(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        self.val = _plain(val)
        self.sum += self.val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * self.val if self.ema else self.sum / self.count


class MetricMeter:
    """A meter for each name that `update` has seen.

    As a string, `loss 0.5000 (0.7500) acc …`: last value (mean).
    """

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        """Take `{name: number or one-element tensor}`; None (nothing was measured) is skipped."""
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError(
                "MetricMeter.update expects a dictionary of numbers, but got "
                f"{type(input_dict).__name__}"
            )
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(
            f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items()
        )
