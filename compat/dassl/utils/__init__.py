"""Registries, files and seeds, the log, meters, and checkpoints."""

import json
import os
import random
import shutil
import sys
import time
import warnings
from collections import defaultdict
from difflib import get_close_matches

import numpy as np
import PIL.Image
import torch


class Registry:
    """Names to classes or functions.

    `@REGISTRY.register()` above a definition, `REGISTRY.get(name)` to find it again.
    """

    def __init__(self, name):
        self._name = name
        self._obj_map = {}

    def register(self, obj=None, force=False):
        """Enter `obj` under its `__name__`; without `obj`, a decorator.

        A name already taken is a KeyError unless `force`.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        if obj.__name__ in self._obj_map and not force:
            raise KeyError(f'"{obj.__name__}" is already registered in the {self._name} registry')
        self._obj_map[obj.__name__] = obj
        return obj

    def get(self, name):
        if name not in self._obj_map:
            raise KeyError(f'"{name}" is not registered in the {self._name} registry')
        return self._obj_map[name]

    def registered_names(self):
        return list(self._obj_map)

    def build(self, name, kind, cfg, **kwargs):
        """What is registered under a name, called with the config."""
        check_availability(name, self.registered_names())
        if cfg.VERBOSE:
            print(f"Loading {kind}: {name}")
        return self.get(name)(cfg, **kwargs)


def check_availability(requested, available):
    if requested not in available:
        nearest = ", ".join(get_close_matches(requested, available, 1, 0.0))
        raise ValueError(
            f"Expected one of {available}, but got [{requested}] (do you mean [{nearest}]?)"
        )


def mkdir_if_missing(dirname):
    if dirname:  # the folder of a bare file name is the current one
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath):
    """Whether `fpath` is a file; warns when it is not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path, sort=False):
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def read_json(fpath):
    with open(fpath) as file:
        return json.load(file)


def write_json(obj, fpath):
    mkdir_if_missing(os.path.dirname(fpath))
    with open(fpath, "w") as file:
        json.dump(obj, file, indent=4, separators=(",", ": "))


def read_image(path):
    return PIL.Image.open(path).convert("RGB")


def tolist_if_not(x):
    return x if isinstance(x, list) else [x]


def set_random_seed(seed):
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def collect_env_info():
    """Versions and hardware, as text for the log."""
    # it starts subprocesses, and only the log wants them
    from torch.utils.collect_env import get_pretty_env_info

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


class Logger:
    """Stands in for stdout: what is printed goes to the console and to a new file at `fpath`."""

    def __init__(self, fpath):
        self.console = sys.stdout
        mkdir_if_missing(os.path.dirname(fpath))
        self.file = open(fpath, "w")  # noqa: SIM115  open as long as the process runs

    def write(self, msg):
        self.console.write(msg)
        self.file.write(msg)

    def flush(self):
        self.console.flush()
        self.file.flush()
        os.fsync(self.file.fileno())


def setup_logger(output=None):
    """Send stdout also to `output` (a .txt or .log file) or to `output`/log.txt.

    An existing log is kept, and a date is added to the name of the new one.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(fpath)


class AverageMeter:
    """Last value (`val`) and running mean (`avg`) of one quantity."""

    def __init__(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        self.val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = self.sum / self.count


class MetricMeter:
    """A meter for each name that `update` has seen.

    As a string, `loss 0.5000 (0.7500) acc …`: last value (mean).
    """

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        """Take `{name: number or one-element tensor}`; None (nothing was measured) is skipped."""
        for name, value in (input_dict or {}).items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(
            f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items()
        )


def _without_module(state_dict):
    """Drop the `module.` that nn.DataParallel puts before every key."""
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Write `state` (`state_dict`, `epoch`, …) to `save_dir`/`model_name`, by default
    `model.pth.tar-<epoch>`.

    The file `checkpoint` beside it then holds the name of the newest one; `is_best` also copies it
    to `model-best.pth.tar`.
    """
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module(state["state_dict"])}

    model_name = model_name or f"model.pth.tar-{state['epoch']}"
    fpath = os.path.join(save_dir, model_name)
    torch.save(state, fpath)
    print(f"Checkpoint saved to {fpath}")
    with open(os.path.join(save_dir, "checkpoint"), "w") as pointer:
        pointer.write(f"{model_name}\n")

    if is_best:
        best = os.path.join(save_dir, "model-best.pth.tar")
        shutil.copy(fpath, best)
        print(f'Best checkpoint saved to "{best}"')


def load_checkpoint(fpath):
    """The dictionary that was saved at `fpath`, on the CPU where there is no GPU."""
    device = None if torch.cuda.is_available() else "cpu"
    return torch.load(fpath, map_location=device, weights_only=True)


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load what the pointer file in `fdir` names, and return the epoch to start at."""
    with open(os.path.join(fdir, "checkpoint")) as pointer:
        fpath = os.path.join(fdir, pointer.readline().strip())

    print(f'Loading checkpoint from "{fpath}"')
    checkpoint = load_checkpoint(fpath)
    model.load_state_dict(checkpoint["state_dict"])
    print("Loaded model weights")
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if part is not None and name in checkpoint:
            part.load_state_dict(checkpoint[name])
            print(f"Loaded {name}")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model, weight_path):
    """Load the entries of a checkpoint whose name and shape `model` has; say which were left."""
    checkpoint, own = load_checkpoint(weight_path), model.state_dict()
    found = _without_module(checkpoint.get("state_dict", checkpoint))
    matched = {k: v for k, v in found.items() if k in own and own[k].shape == v.shape}
    if not matched:
        warnings.warn(f"Cannot load {weight_path} (check the key names manually)", stacklevel=2)
        return
    model.load_state_dict({**own, **matched})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    discarded = [key for key in found if key not in matched]
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def count_num_param(model=None, params=None):
    """Number of values in the parameters of `model`, or in `params`.

    Those are tensors, or an optimizer's dictionaries of one.
    """
    params = model.parameters() if model is not None else params
    return sum((p["params"] if isinstance(p, dict) else p).numel() for p in params)
