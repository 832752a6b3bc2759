"""The same application as a Ray Serve deployment: several replicas, one ledger, on one machine."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType

from fastapi import FastAPI

from ..trainers.blackbox.errors import BlackBoxError
from .access import Account
from .application import build_app
from .service import Options, build_service

NAME = "dassl-blackbox"
GRACE = 10.0  # seconds that requests have to end
TOGETHER = 64  # requests that are on their way in one replica
# read by Ray when it is imported
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # it listens on the loopback address alone
}


def serve_replicas(
    options: Options,
    accounts: Sequence[Account],
    replicas: int,
    address: tuple[str, int],
    gpus: float,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Ray's own ports are bound to the loopback address, but for one that each replica opens for
    other replicas (Ray 2.60 gives no choice): keep a machine with replicas behind a firewall.

    The replicas share the folder of the state: each counts on the one ledger, and finds the images
    that were sent to another. Keys are not handed over, but their digests.

    Args:
        options: of every replica.
        accounts: who may ask. Rates hold for each replica by itself.
        replicas: their number.
        address: host and port.
        gpus: of each, perhaps a part of one.

    Raises:
        BlackBoxError: Ray is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray import serve
    except ImportError as e:
        raise BlackBoxError(
            "Replicas need Ray. In a clone of dassl-blackbox: pip install -e '.[ray]'"
        ) from e

    def build() -> FastAPI:
        return build_app(build_service(options, accounts))

    ray.init(include_dashboard=False, log_to_driver=True)
    try:
        host, port = address
        serve.start(http_options={"host": host, "port": port})
        deployment = serve.deployment(
            serve.ingress(build)(),
            name=NAME,
            num_replicas=replicas,
            max_ongoing_requests=TOGETHER,
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=GRACE,
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        )
        serve.run(deployment.bind(), name=NAME, route_prefix="/")
        # Ray has handlers of its own while it starts
        stop = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        print(
            f"{replicas} replicas of {options.backbone} listen on http://{host}:{port}", flush=True
        )
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
