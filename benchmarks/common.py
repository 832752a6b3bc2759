"""What the benchmarks share: runs as train.py makes them, random weights, a clock, tables."""

import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # train.py is not installed

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import open_clip
import torch
import train
from dassl_blackbox.console import parser_of
from dassl_blackbox.trainers.blackbox.openclip.models import OPENAI, LoadedModel, describe
from tabulate import tabulate

HOME = Path(__file__).resolve().parents[1]
LONG = 5  # seconds of a call in which warming up does not show


def parser(description):
    """The parser of the script that runs, with the device to measure on."""
    made = parser_of(f"benchmarks/{Path(sys.argv[0]).name}", description)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def configuration(trainer, config, dataset, *line):
    """The configuration of a run, as the command line resolves it."""
    files = HOME / f"configs/trainers/{trainer}/{config}.yaml", HOME / f"configs/datasets/{dataset}"
    flags = ["--trainer", trainer, "--config-file", files[0]]
    flags += ["--dataset-config-file", f"{files[1]}.yaml", *line]
    return train.setup_cfg(train.parse_args([str(part) for part in flags]))


def random_model(name, device):
    """A model of OpenAI's sizes and of random weights, in float32."""
    torch.manual_seed(0)
    model = open_clip.create_model(OPENAI[name], device=device).eval().requires_grad_(False)
    tokenizer, about = open_clip.get_tokenizer(OPENAI[name]), describe(name, model)
    return LoadedModel(model, tokenizer, about, "fp32", torch.device(device))


def class_names(count):
    """The first of Caltech101's hundred names, or of ImageNet's: their lengths decide the gain."""
    listed = Path(__file__).with_name("caltech101.txt").read_text(encoding="utf-8").splitlines()
    return list(listed if count <= len(listed) else open_clip.IMAGENET_CLASSNAMES)[:count]


def timed(call, device):
    """Seconds: the better of two calls after one to warm up, or the first alone if it is long."""
    taken = []
    while len(taken) < 3 and (not taken or taken[0] < LONG):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:] or taken)


def show(headers, rows, device=None):
    """Print a Markdown table, and the machine that it was measured on."""
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    if device is not None:
        cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
        print(f"\n{name}, torch {torch.__version__}")
