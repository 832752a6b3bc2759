"""What the wall costs: the server under load, and one client in process beside it.

    python benchmarks/serve.py --backbone tiny --clients 16 --seconds 60

All on this machine: the clients' work is taken from the server's cores. A request of the load is a
step of ZIP: two candidates of four tokens on a batch of 128 images that the server has.
"""

import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import torch
from common import HOME, parser
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import Prompt
from dassl_blackbox.trainers.blackbox.oracle.services import Http, RemoteOracle
from dassl_blackbox.trainers.blackbox.oracle.wire import normalised

CLASSES, BATCH, CANDIDATES, TOKENS = 10, 128, 2, 4


def serve(backbone, state, key):
    """A server in a process of its own, and its URL."""
    command = ["-m", "dassl_blackbox.serve", "--backbone", backbone, "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, *command, "--state", state],
        env={**os.environ, "BLACKBOX_KEYS": f"benchmark={key}"},
        cwd=HOME,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "listens on" in line:
            return process, line.split()[-1]
    raise SystemExit("the server did not start")


def prompt(oracle, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(CANDIDATES, TOKENS, oracle.description.width, generator=generator)
    return Prompt(oracle.description.token_std * drawn)


def ask(oracle, seconds, seed, times, errors):
    """One client: a request after the other, about 8-bit noise `[128, 3, H, W]`."""
    oracle.set_classes([f"thing {i}" for i in range(CLASSES)])
    generator = torch.Generator().manual_seed(seed)
    size = (BATCH, 3, *oracle.description.image_size)
    noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    named = oracle.upload(normalised(noise, oracle.description))
    end, step = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        start = time.perf_counter()
        try:
            oracle.query(named, prompt(oracle, 1000 * seed + step))
        except Exception as e:
            errors.append(repr(e))
            return
        times.append(time.perf_counter() - start)
        step += 1


def load(url, backbone, clients, seconds):
    """Print what several clients at once are given."""
    times, errors, threads = [], [], []
    for number in range(clients):
        oracle = RemoteOracle(Http(url, 60, 60), torch.device("cpu"), backbone, "a benchmark")
        given = oracle, seconds, number, times, errors
        threads.append(threading.Thread(target=ask, args=given))
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total, cuts = time.perf_counter() - start, statistics.quantiles(times, n=100)
    shown = ", ".join(f"{p} %: {1000 * cuts[p - 1]:.0f} ms" for p in (50, 90, 99))
    print(
        f"{clients} clients, {total:.0f} s: {len(times):,} requests, {len(errors)} errors, "
        f"{CANDIDATES * len(times) / total:.0f} queries/s; {shown}"
    )


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--backbone", default="tiny")
    made.add_argument("--clients", type=int, default=16)
    made.add_argument("--seconds", type=float, default=60)
    args = made.parse_args()
    key = os.environ["BLACKBOX_KEY"] = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory() as state:
        process, url = serve(args.backbone, state, key)
        try:
            here = []
            ask(LocalOracle(load_model(args.backbone)), args.seconds / 4, 0, here, [])
            print(f"in process, one client: {CANDIDATES * len(here) / sum(here):.0f} queries/s")
            for clients in sorted({1, args.clients}):
                load(url, args.backbone, clients, args.seconds / (4 if clients == 1 else 1))
        finally:
            process.terminate()
            process.wait()
