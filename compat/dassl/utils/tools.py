"""Files, names and seeds."""

import json
import os
import random
import warnings
from difflib import SequenceMatcher

import numpy as np
import PIL
import torch
from PIL import Image


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
    return Image.open(path).convert("RGB")


def set_random_seed(seed):
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def collect_env_info():
    """Versions and hardware, as text for the log."""
    from torch.utils.collect_env import (
        get_pretty_env_info,
    )  # it starts subprocesses, and only the log wants them

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


def get_most_similar_str_to_a_from_b(a, b):
    """The string of list `b` most like `a`, the last of equals; None where `b` is empty."""
    return max(
        reversed(list(b)),
        key=lambda candidate: SequenceMatcher(None, a, candidate).ratio(),
        default=None,
    )


def check_availability(requested, available):
    if requested not in available:
        nearest = get_most_similar_str_to_a_from_b(requested, available)
        raise ValueError(
            f"Expected one of {available}, but got [{requested}] (do you mean [{nearest}]?)"
        )


def tolist_if_not(x):
    return x if isinstance(x, list) else [x]
