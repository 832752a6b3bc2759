"""One server for all of these tests, and what must hold around each of them."""

import os
import re

import pytest
from served import serving

from hostile.client import KEYS
from hostile.server import MEGABYTES, SECONDS, Served, memory, write_keys

GROWTH = 400  # megabytes that the server may hold more in the end


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    """The server, which in the end runs, holds little more, and has written no error."""
    folder = tmp_path_factory.mktemp("hostile")
    options = ("--max-mb", MEGABYTES, "--store-mb", 64, "--seconds", SECONDS)
    os.environ["PYTHONFAULTHANDLER"] = "1"  # of the server: what ends it is in its log
    with serving(folder / "state", "--keys", write_keys(folder), *options, keys="") as server:
        found = Served(server)
        yield found
        assert server.process.poll() is None, (server.process.returncode, server.said())
        found.right()
        before, after = found.memory, memory(server)
        print(
            f"\n{found.line.cases:,} cases; memory {before:.0f} MB before, {after:.0f} after, "
            f"{memory(server, 'VmHWM'):.0f} at most"
        )
        assert after - before < GROWTH
        said = found.server.said().splitlines()
        wrong = re.compile(r"[\d,]+ requests without a known key so far, the last from 127.0.0.1")
        assert "\n".join(line for line in said if not wrong.fullmatch(line)) == ""


@pytest.fixture(autouse=True)
def nothing_refused_is_billed(served):
    """As many requests are on the bills as were answered, and the server answers as before."""
    status = served.server.process.poll()
    assert status is None, (status, served.server.said())
    before = {name: served.usage(name)["requests"] for name in KEYS}
    served.line.billed = {}
    yield
    for name, requests in before.items():
        more = served.usage(name)["requests"] - requests
        assert more == served.line.billed.get(name, 0), name
    served.right()
