"""Checkpoints, and which layers train."""

import os
import shutil
import warnings

import torch
import torch.nn as nn

from .tools import mkdir_if_missing


def _without_module(state_dict):
    """Drop the `module.` that nn.DataParallel puts before every key."""
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Write `state` to `save_dir`/`model_name`, by default `model.pth.tar-<epoch>`.

    It has the keys `state_dict` and `epoch`.

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
    if fpath is None:
        raise ValueError("File path is None")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    try:
        device = None if torch.cuda.is_available() else "cpu"
        return torch.load(fpath, map_location=device, weights_only=True)
    except Exception:
        print(f'Unable to load checkpoint from "{fpath}"')
        raise


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
    checkpoint = load_checkpoint(weight_path)
    found = _without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    matched = {
        key: value for key, value in found.items() if key in own and own[key].shape == value.shape
    }
    model.load_state_dict({**own, **matched})

    if not matched:
        warnings.warn(f"Cannot load {weight_path} (check the key names manually)", stacklevel=2)
        return
    print(f"Successfully loaded pretrained weights from {weight_path}")
    discarded = [key for key in found if key not in matched]
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def open_all_layers(model):
    """Train every layer."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model, open_layers):
    """Train the children of `model` named by `open_layers`, one name or a list.

    The others are frozen, in eval mode.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    open_layers = [open_layers] if isinstance(open_layers, str) else open_layers
    for layer in open_layers:
        assert hasattr(model, layer), f"{layer} is not an attribute of the model"
    for name, module in model.named_children():
        module.train(name in open_layers)
        module.requires_grad_(name in open_layers)


def count_num_param(model=None, params=None):
    """Number of values in the parameters of `model`, or in `params`.

    Those are tensors, or dictionaries with one as `params`.
    """
    if model is None and params is None:
        raise ValueError("count_num_param expects a model or params, but got neither")
    params = model.parameters() if model is not None else params
    return sum((p["params"] if isinstance(p, dict) else p).numel() for p in params)
