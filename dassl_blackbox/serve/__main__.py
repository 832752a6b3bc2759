"""Lets others query a model over HTTP, with keys, grants and budgets."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..console import parser_of, tool
from ..trainers.blackbox.errors import BlackBoxError, first_line
from ..trainers.blackbox.openclip.embedded import EMBEDDED
from ..trainers.blackbox.oracle.interface import GRANTS

if TYPE_CHECKING:
    from .access import Account


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of("-m dassl_blackbox.serve", __doc__)
    add = parser.add_argument
    add("--backbone", required=True, help="the model, as MODEL.BACKBONE.NAME names it")
    of = f"of keys that name none of their own; of {', '.join(GRANTS)}"
    default = ["contexts", "logits"]
    add("--grants", nargs="*", default=default, choices=GRANTS, metavar="GRANT", help=of)
    for option, value, words in (
        ("--name", "", "under which clients know it (default: as --backbone)"),
        ("--top-k", 0, "log-probabilities let out an image; 0: logits"),
        ("--keys", "", "YAML file of keys; see docs/REMOTE.md"),
        ("--host", "127.0.0.1", "address to listen on"),
        ("--port", 8900, "0: any that is free"),
        ("--prec", "fp32", "fp32, fp16, bf16 or amp"),
        ("--device", "", "cpu, cuda, cuda:1 (default: cuda where there is one)"),
        ("--state", "", "folder of ledger and images (default: the user's)"),
        ("--store-mb", 8192, "bound of the images that are kept"),
        ("--max-mb", 256, "bound of a request and of an answer"),
        ("--seconds", 60, "within which a request must have come"),
        ("--replicas", 0, "so many, by Ray Serve; 0: one, without Ray"),
        ("--gpus-each", 0.0, "of a replica, perhaps a part of one"),
    ):
        add(option, type=type(value), default=value, help=words)
    return parser.parse_args(arguments)


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as e:
        raise BlackBoxError(f"Nothing can listen on {host}:{port} ({first_line(e)}).") from e
    # accepted connections take it over; else the last part of every answer waits for 40 ms
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    os.umask(0o077)  # what clients sent is for the owner alone, whatever the folder's own mode
    try:
        import uvicorn

        from .access import read_accounts
        from .application import build_app, serve_replicas
        from .service import build_service
    except ImportError as e:
        raise BlackBoxError(
            f"The server needs the package {e.name}. In a clone of dassl-blackbox: "
            f"pip install -e '.[serve]'"
        ) from e
    accounts, made = read_accounts(args.keys, args.grants, args.top_k)
    with listen(args.host, args.port) as bound:
        host, port = bound.getsockname()[:2]
        url = f"http://{host}:{port}"
        if args.replicas:
            bound.close()
            tell(args, accounts, made, url)
            serve_replicas(args, accounts, host, port)
            return 0
        app = build_app(build_service(args, accounts))
        tell(args, accounts, made, url)
        print(f"{args.name or args.backbone} listens on {url}", flush=True)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            h11_max_incomplete_event_size=2**14,  # bytes of a request's headers
            timeout_keep_alive=75,
            timeout_graceful_shutdown=30,
            backlog=128,
            log_level="critical",  # the rest is about what clients send, or told by the application
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[bound])
    return 0


def tell(args: argparse.Namespace, accounts: Sequence[Account], made: str, url: str) -> None:
    """Print what is served to whom, and, where a key was made, how a client is started."""
    name = args.name or args.backbone
    print(f"{name} is served; a request and an answer have at most {args.max_mb} MiB")
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
        named = "" if name in EMBEDDED else f" MODEL.BACKBONE.NAME {shlex.quote(name)}"
        client = f"BLACKBOX_KEY={made} bash scripts/main.sh SONAR digits {cfg} 16 ORACLE.URL {url}"
        print("No keys were given; one was made for as long as the server runs. A client:")
        print(client + named)


if __name__ == "__main__":
    sys.exit(tool(main))
