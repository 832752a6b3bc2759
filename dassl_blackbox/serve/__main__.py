"""Lets others query a model over HTTP, with keys, grants and budgets."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..console import parser_of, tool
from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.openclip.embedded import EMBEDDED
from ..trainers.blackbox.oracle.interface import GRANTS

if TYPE_CHECKING:
    from .access import Account
    from .service import Options

GRACE = 30  # seconds that requests have to end when the server is told to stop
BACKLOG = 128
BOUNDS = {"top_k": 0, "port": 0, "store_mb": 1, "max_mb": 1, "seconds": 1, "replicas": 0}
HEADER_BYTES = 2**14  # of a request's headers


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of("-m dassl_blackbox.serve", __doc__)
    add = parser.add_argument
    add("--backbone", required=True, help="the model, as MODEL.BACKBONE.NAME names it")
    add("--name", default="", help="under which clients know it (default: as --backbone)")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8900, help="0: any that is free")
    add("--prec", default="fp32", help="fp32, fp16, bf16 or amp")
    add("--device", default="", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    add("--keys", default="", help="YAML file of keys; see docs/REMOTE.md")
    grants = f"of keys that name none of their own; of {', '.join(GRANTS)}"
    add(
        "--grants",
        nargs="*",
        default=["contexts", "logits"],
        choices=GRANTS,
        metavar="GRANT",
        help=grants,
    )
    add("--top-k", type=int, default=0, help="log-probabilities let out an image; 0: logits")
    add("--state", default="", help="folder of ledger and images (default: the user's)")
    add("--store-mb", type=int, default=8192, help="bound of the images that are kept")
    add("--max-mb", type=int, default=256, help="bound of a request and of an answer")
    add("--seconds", type=int, default=60, help="within which a request must have come")
    add("--replicas", type=int, default=0, help="so many, by Ray Serve; 0: one, without Ray")
    add("--gpus-each", type=float, default=0.0, help="of a replica, perhaps a part of one")
    args = parser.parse_args(arguments)
    for name, least in BOUNDS.items():
        if not least <= getattr(args, name) <= 2**31:
            parser.error(f"--{name.replace('_', '-')} is out of range")
    return args


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as e:
        raise BlackBoxError(f"Nothing can listen on {host}:{port} ({first_line(e)}).") from e
    # accepted connections take it over; else the last part of every answer waits for 40 ms
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    os.umask(0o077)  # what clients sent is for the owner alone, whatever the folder's own mode
    with listen(args.host, args.port) as bound:
        serve(args, bound)
    return 0


def serve(args: argparse.Namespace, bound: socket.socket) -> None:
    try:
        import uvicorn

        from .access import read_accounts
        from .application import build_app
        from .service import Options, build_service
    except ImportError as e:
        raise BlackBoxError(
            f"The server needs the package {e.name}. In a clone of dassl-blackbox: "
            f"pip install -e '.[serve]'"
        ) from e
    own = ("host", "port", "prec", "replicas", "gpus_each")
    given = {name: value for name, value in vars(args).items() if name not in own}
    options = Options(**given, precision=args.prec)
    accounts, made = read_accounts(options.keys, options.grants, options.top_k)
    if args.replicas:
        from .ray import serve_replicas

        host, port = bound.getsockname()[:2]
        bound.close()
        tell(options, accounts, made, f"http://{host}:{port}")
        serve_replicas(options, accounts, args.replicas, (host, port), args.gpus_each)
        return
    service = build_service(options, accounts)
    config: dict[str, Any] = {
        "http": "h11",
        "ws": "none",
        "h11_max_incomplete_event_size": HEADER_BYTES,
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": GRACE,
        "backlog": BACKLOG,
        "log_level": "critical",  # the rest is about what clients send, or told by the application
        "server_header": False,
    }
    host, port = bound.getsockname()[:2]
    tell(options, accounts, made, url := f"http://{host}:{port}")
    print(f"{service.description.name} listens on {url}", flush=True)
    uvicorn.Server(uvicorn.Config(build_app(service), **config)).run(sockets=[bound])


def tell(options: Options, accounts: Sequence[Account], made: str, url: str) -> None:
    """Print what is served to whom, and, where a key was made, how a client is started."""
    name = options.name or options.backbone
    print(f"{name} is served; a request and an answer have at most {options.max_mb} MiB")
    for account in accounts:
        numbers = {
            "queries": account.max_queries,
            "image queries": account.max_image_queries,
            "requests a minute": account.rate,
            "log-probabilities an image": account.top_k,
        }
        limits = ", ".join(f"{n:,} {of}" for of, n in numbers.items() if n) or "no limits"
        print(f"  {account.name}: {', '.join(sorted(account.grants)) or 'no grants'}; {limits}")
    if made:
        cfg = name if name in EMBEDDED else "vit_b16"
        print(
            f"No keys were given; one was made for as long as the server runs. A client:\n"
            f"BLACKBOX_KEY={made} bash scripts/main.sh SONAR digits {cfg} 16 ORACLE.URL {url}"
            + f" MODEL.BACKBONE.NAME {shlex.quote(name)}"
            * (name not in EMBEDDED)
        )


if __name__ == "__main__":
    sys.exit(tool(main))
