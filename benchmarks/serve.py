"""What the wall costs: the server under load, and runs over HTTP beside the same in process.

    python benchmarks/serve.py --backbone tiny --clients 16 --seconds 60

All on this machine: the clients' work is taken from the server's cores. A request of the load is a
step of ZIP: two candidates of four tokens on a batch of 128 images that the server has.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import torch
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import Oracle, Prompt, Texts
from dassl_blackbox.trainers.blackbox.oracle.services import Http, RemoteOracle

CLASSES, BATCH, CANDIDATES, TOKENS = 10, 128, 2, 4
FURTHER, VIEWS, STEPS = 40, 5, 100


def serve(backbone: str, state: str, key: str) -> tuple[subprocess.Popen, str]:
    """A server in a process of its own, and its URL."""
    command = ["-m", "dassl_blackbox.serve", "--backbone", backbone, "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, *command, "--state", state],
        env={**os.environ, "BLACKBOX_KEYS": f"benchmark={key}"},
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "listens on" in line:
            return process, line.split()[-1]
    raise SystemExit("the server did not start")


def images(oracle: Oracle, seed: int) -> torch.Tensor:
    """Normalised pixels of 8-bit noise `[128, 3, H, W]`."""
    from dassl_blackbox.trainers.blackbox.oracle.wire import normalised

    generator = torch.Generator().manual_seed(seed)
    size = (BATCH, 3, *oracle.description.image_size)
    drawn = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return normalised(drawn, oracle.description)


def contexts(oracle: Oracle, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (CANDIDATES, TOKENS, oracle.description.width)
    return oracle.description.token_std * torch.randn(shape, generator=generator)


def ask(oracle: Oracle, seconds: float, seed: int, times: list[float], errors: list[str]) -> None:
    """One client: a request after the other."""
    oracle.set_classes([f"thing {i}" for i in range(CLASSES)])
    named, end, step = oracle.upload(images(oracle, seed)), time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        start = time.perf_counter()
        try:
            oracle.query(named, Prompt(contexts(oracle, 1000 * seed + step)))
        except Exception as e:
            errors.append(repr(e))
            return
        times.append(time.perf_counter() - start)
        step += 1


def load(url: str, backbone: str, clients: int, seconds: float) -> None:
    times: list[float] = []
    errors: list[str] = []
    threads = [
        threading.Thread(target=ask, args=(remote(url, backbone), seconds, number, times, errors))
        for number in range(clients)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - start
    cuts = statistics.quantiles(times, n=100)
    shown = ", ".join(f"{p} %: {1000 * cuts[p - 1]:.0f} ms" for p in (50, 90, 99))
    print(
        f"{clients} clients, {total:.0f} s: {len(times):,} requests, {len(errors)} errors, "
        f"{CANDIDATES * len(times) / total:.0f} queries/s; {shown}"
    )


def remote(url: str, backbone: str) -> RemoteOracle:
    return RemoteOracle(Http(url, 60, 60), torch.device("cpu"), backbone, "a benchmark")


def zip_steps(oracle: Oracle) -> float:
    """Seconds of a step: a new batch of images, and two candidates."""
    oracle.set_classes([f"thing {i}" for i in range(CLASSES)])
    batches = [images(oracle, seed) for seed in range(4)]
    start = time.perf_counter()
    for step in range(STEPS):
        named = oracle.upload(batches[step] if step < len(batches) else batches[step % 4])
        oracle.query(named, Prompt(contexts(oracle, step)))
    return (time.perf_counter() - start) / STEPS


def sonar_requests(oracle: Oracle) -> float:
    """Seconds of what a run of SONAR asks: every view of a batch once, with further texts."""
    oracle.set_classes([f"thing {i}" for i in range(CLASSES)])
    further = Texts.of([f"another thing {i}" for i in range(FURTHER)])
    batches = [images(oracle, 100 + seed) for seed in range(VIEWS)]
    start = time.perf_counter()
    for batch in batches:
        oracle.query(oracle.upload(batch), Prompt(texts=further))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    key = os.environ["BLACKBOX_KEY"] = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory() as state:
        process, url = serve(args.backbone, state, key)
        try:
            model = load_model(args.backbone)
            here: list[float] = []
            local = LocalOracle(model)
            ask(local, args.seconds / 4, 0, here, [])
            print(f"in process, one client: {CANDIDATES * len(here) / sum(here):.0f} queries/s")
            for clients in sorted({1, args.clients}):
                load(url, args.backbone, clients, args.seconds / (4 if clients == 1 else 1))
            for name, work in (("a step of ZIP", zip_steps), ("SONAR's requests", sonar_requests)):
                near, far = work(LocalOracle(model)), work(remote(url, args.backbone))
                print(f"{name}: {near:.4f} s in process, {far:.4f} s over HTTP: {far / near:.2f}")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
