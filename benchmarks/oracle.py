"""Our oracle beside each method's published way of asking, on random weights: what a step costs, as
ratios of one run.

    # around ViT-B/16, 100 classes, n = 8, P = 10, B = 32: one thing varied at a time
    python benchmarks/oracle.py
    python benchmarks/oracle.py --models ViT-B/32 --classes 10 100 --contexts 1 16 \
        --candidates 40 --whole-grid
    python benchmarks/oracle.py --precision fp16 --out benchmarks/oracle_fp16.md

Times are the better of two calls after one to warm up, or the first alone where it takes five
seconds; a published way whose three calls would take longer than `--seconds` is timed on its first
candidates and extended to all of them (≈): every further candidate costs the same. Multiply-adds
are counted by torch. "Peak" is this machine's best matrix product in the same precision.
"""

import argparse
import gc
import platform
import sys
import time
import weakref
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import open_clip
import torch
from dassl_blackbox.trainers.blackbox.openclip.local import FeatureStore, LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import OPENAI, LoadedModel, describe
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from names import class_names
from open_clip.model import get_cast_dtype
from published import STEPS, image_features
from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

HEADERS = (
    "model",
    "C",
    "n",
    "P",
    "B",
    "as in",
    "published s",
    "ours s",
    "ratio",
    "positions",
    "multiply-adds",
    "share of peak",
    "memory MB",
    "largest difference",
)
LONG = 5  # seconds of a call in which warming up does not show
CENTRE = {"model": "ViT-B/16", "classes": 100, "contexts": 8, "candidates": 10, "batch": 32}


def random_model(name, precision, device):
    torch.manual_seed(0)
    weights = "fp32" if precision == "amp" else precision
    model = (
        open_clip.create_model(OPENAI[name], precision=weights, device=device)
        .eval()
        .requires_grad_(False)
    )
    return LoadedModel(
        model,
        open_clip.get_tokenizer(OPENAI[name]),
        describe(name, model, dtype=get_cast_dtype(weights) or torch.float32),
        precision,
        torch.device(device),
    )


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


class LiveBytes(TorchDispatchMode):
    """Bytes at the peak, of tensors made within it: memory beyond the model and the input."""

    def __init__(self, known):
        super().__init__()
        self.live = self.most = 0
        self.seen = {
            tensor.untyped_storage()._cdata for tensor in known
        }  # views of them are not new

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.seen.discard(key)
        self.live -= size


def peak_memory(call, known, device):
    """(bytes, what the call returned)"""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        return torch.cuda.max_memory_allocated() - before, result
    with LiveBytes(known) as meter:
        result = call()
    return meter.most, result


def multiply_adds(call):
    """Counted by torch from the shapes; nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2


def matrix_peak(device, dtype):
    """Multiply-adds a second of the best square matrix product."""
    best = 0.0
    for size in (1024, 2048, 4096) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = max(best, size**3 / timed(partial(torch.matmul, a, b), device))
    return best


def from_first(P, one, p, several):
    """The cost of P candidates, from those of one and of the first p: every further candidate costs
    the same, the images of the first perhaps more.
    """
    return several if p == P else one + (several - one) * (P - 1) / (p - 1)


def cell(oracle, way, P, n, B, seconds, peak):
    """One row: the published way and ours on the same pixels and contexts."""
    description, device = oracle.description, oracle.device
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(B, 3, *description.image_size, generator=generator).to(device)
    contexts = (
        torch.randn(P, n, description.width, generator=generator) * description.token_std
    ).to(device)
    uploaded = oracle.upload(pixels)
    given = image_features(oracle, pixels) if way == "CraFT" else pixels

    def ours():
        oracle.last = None
        if way == "CraFT":  # the images are known from before
            return oracle.query(uploaded, Prompt(contexts))
        oracle.store = FeatureStore()
        return oracle.query(oracle.upload(pixels), Prompt(contexts))

    def published(p=P):
        return STEPS[way](oracle, given, contexts[:p])

    first = timed(lambda: published(1), device)
    p = max(min(P, 2), min(P, int(seconds / ((3 if first < LONG else 1) * first))))
    theirs = from_first(P, first, p, timed(lambda: published(p), device))
    mine = timed(ours, device)
    texts = oracle.text.texts
    positions = P * (n + 1 + sum(len(text) + 1 for text in texts))
    asked = (
        multiply_adds(lambda: published(1)),
        min(P, 2),
        multiply_adds(lambda: published(min(P, 2))),
    )
    known = [*oracle.model.parameters(), *oracle.model.buffers(), pixels, contexts]
    memory, a = peak_memory(lambda: published(1), known, device)
    with FlopCounterMode(display=False) as counter:
        our_memory, b = peak_memory(ours, known, device)
    sums = counter.get_total_flops() / 2
    return [
        description.name,
        len(texts),
        n,
        P,
        B,
        way,
        f"{'≈ ' if p < P else ''}{theirs:.3g}",
        f"{mine:.3g}",
        f"{theirs / mine:.1f}",
        f"{P * len(texts) * description.context_length:,} → {positions:,}",
        f"{from_first(P, *asked) / sums:.1f} times",
        f"{100 * sums / mine / peak:.0f} %",
        f"{'≥ ' if P > 1 else ''}{memory / 2**20:,.0f} → {our_memory / 2**20:,.0f}",
        f"{((a - b[:1]).abs().max() / a.abs().max()).item():.1e}",
    ]


def cells(args):
    """(model, classes, n, P, B, way) of the table."""
    axes = {
        "model": args.models,
        "classes": args.classes,
        "contexts": args.contexts,
        "candidates": args.candidates,
        "batch": args.batches,
    }
    if args.whole_grid:
        return [(*values, way) for values in product(*axes.values()) for way in args.ways]
    centre = {
        key: CENTRE[key] if CENTRE[key] in values else values[0] for key, values in axes.items()
    }
    rows = [tuple(centre.values())]
    for key, values in axes.items():
        rows += [tuple({**centre, key: value}.values()) for value in values if value != centre[key]]
    return [(*row, way) for row in rows for way in args.ways]


def machine(device):
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return f"{name}, torch {torch.__version__}"


def publish(headers, rows, conditions, out):
    """Print a Markdown table and what it was measured under; into the file `out` too, if there is
    one, headed by the command.
    """
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    text = f"{table}\n\n{conditions}\n"
    print(text)
    if out:
        command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}"
        Path(out).write_text(f"<!-- {command} -->\n\n{text}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["ViT-B/16", "ViT-B/32", "ViT-L/14", "RN50"],
        choices=list(OPENAI),
    )
    parser.add_argument("--classes", nargs="+", type=int, default=[100, 10, 1000])
    parser.add_argument(
        "--contexts", nargs="+", type=int, default=[8, 1, 4, 16], help="numbers of context tokens"
    )
    parser.add_argument("--candidates", nargs="+", type=int, default=[10, 1, 40, 257])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    parser.add_argument(
        "--ways", nargs="+", default=list(STEPS), choices=list(STEPS), help="whose way of asking"
    )
    parser.add_argument(
        "--whole-grid",
        action="store_true",
        help="every combination, in place of one thing varied at a time",
    )
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16", "amp"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--seconds", type=float, default=20, help="how long one way may be timed in one cell"
    )
    parser.add_argument("--out", help="a Markdown file to write besides")
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = {
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "amp": torch.float16 if device.type == "cuda" else torch.bfloat16,
    }.get(args.precision, torch.float32)
    peak, rows, name = matrix_peak(device, dtype), [], None
    for model, C, n, P, B, way in tqdm(cells(args), unit="cell"):
        if model != name:
            oracle, name = LocalOracle(random_model(model, args.precision, device)), model
        oracle.set_classes(class_names(C))
        with torch.no_grad():
            rows.append(cell(oracle, way, P, n, B, args.seconds, peak))
    publish(
        HEADERS,
        rows,
        f"{args.precision}; {machine(device)}; matrix products reach {2 * peak / 1e9:,.0f} "
        "GFLOP/s.",
        args.out,
    )


if __name__ == "__main__":
    main()
