"""Connections: odd heads, requests in a row, clients that are slow, do not read, or are many."""

import itertools
import random
import socket
import threading
import time
from contextlib import contextmanager, suppress

from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA
from hypothesis import given
from hypothesis import strategies as st

from hostile.client import KEY, PATIENCE, fair
from hostile.drawn import cases, damaged
from hostile.server import MEGABYTES, SECONDS


def raw(served, message):
    """Answers to bytes that may be no request: at most one, and h11's own may be a bare 400."""
    served.line.close()
    answer = served.line.send(message)
    served.line.close()
    if answer is not None and b"Invalid HTTP request received." not in answer.body:
        fair(answer)
    assert answer is None or answer.status < 500
    return None if answer is None else answer.status


def test_heads_that_are_odd(served, request):
    good = f"Authorization: Bearer {KEY['full']}".encode()
    start = b"POST /v1/query HTTP/1.1\r\nHost: x\r\n" + good + b"\r\n"
    size = b"Content-Length: "
    bad = {
        "100 kB": start + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(100)),
        "1,000 headers": start + b"".join(b"X-%d: x\r\n" % i for i in range(1000)),
        "one header of 100 kB": start + b"X: " + b"x" * 100_000 + b"\r\n",
        "negative": start + size + b"-1\r\n",
        "signed": start + size + b"+1\r\n",
        "hexadecimal": start + size + b"0x10\r\n",
        "huge": start + size + b"9" * 19 + b"\r\n",
        "too huge": start + size + b"9" * 30 + b"\r\n",
        "two lengths": start + size + b"1\r\n" + size + b"2\r\n",
        "no length": start,
        "chunked": start + b"Transfer-Encoding: chunked\r\n",
        "chunked and a length": start + b"Transfer-Encoding: chunked\r\n" + size + b"5\r\n",
        "another encoding": start + b"Transfer-Encoding: gzip\r\n" + size + b"2\r\n",
        "no host": b"GET /v1/usage HTTP/1.1\r\n" + good + b"\r\n",
        "a line without a colon": start + b"x\r\n",
        "folded": start + b"X: x\r\n y\r\n",
        "nothing": b"",
        "version": b"GET / HTTP/9.9\r\nHost: x\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
        "a WebSocket": b"GET /v1/usage HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n" + good,
    }
    bodies = (b"", b"5\r\nabcde\r\n0\r\n\r\n", b"zz\r\n" * 100)
    with impatient(served.line):
        for (name, message), body in itertools.product(bad.items(), bodies):
            status = raw(served, message + b"\r\n" + body)
            assert status is None or 400 <= status < 500 or name == "a WebSocket", name

    @cases(100, request)
    @given(st.integers(0, 2**32), st.binary(max_size=60))
    def check(seed, rest):
        message = start + size + b"%d\r\nContent-Type: %s\r\n\r\n" % (200, MEDIA.encode())
        message = damaged(random.Random(seed), message) + rest
        raw(served, message if seed % 3 else rest + b"\r\n\r\n")

    with impatient(served.line):
        check()


@contextmanager
def impatient(line):
    """Where the server waits for more, tell it that there is none."""
    former = line.connect

    def connect():
        connection = former()
        connection.settimeout(0.03)
        return connection

    def more():
        try:
            data = line.connection.recv(2**20)
        except TimeoutError:
            line.connection.settimeout(PATIENCE)
            line.connection.shutdown(socket.SHUT_WR)
            data = line.connection.recv(2**20)
        if not data:
            raise EOFError
        return data

    line.connect, line.more = connect, more
    try:
        yield
    finally:
        del line.connect, line.more


def test_requests_one_after_the_other_without_waiting(served):
    good = f"Host: x\r\nAuthorization: Bearer {KEY['full']}\r\n".encode()
    one = b"GET /v1/usage HTTP/1.1\r\n" + good + b"\r\n"
    with served.line.connect() as connection:
        connection.sendall(one * 50 + b"garbage\r\n\r\n" + one)
        data = b""
        while more := connection.recv(2**16):
            data += more
    assert data.count(b"HTTP/1.1 200") == 50 and data.count(b"HTTP/1.1 400") == 1
    head = b"POST /v1/query HTTP/1.1\r\n" + good + b"Content-Length: %d\r\n" % len(served.question)
    with served.line.connect() as connection:
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(served.question)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    served.line.billed["full"] = served.line.billed.get("full", 0) + 1


def test_clients_that_are_slow_are_not_waited_for(served):
    """Half a body, or a byte of it a while; heads that do not end are a proxy's."""
    good = f"Host: x\r\nAuthorization: Bearer {KEY['full']}\r\n".encode()
    post = b"POST /v1/query HTTP/1.1\r\n" + good + b"Content-Length: 1000\r\n\r\n"
    ended = {}

    def wait(trickle):
        start = time.monotonic()
        with served.line.connect() as connection:
            connection.settimeout(0.2)
            connection.sendall(post + b"x")
            data = b""
            while time.monotonic() - start < PATIENCE + 10:
                try:
                    if trickle:
                        connection.sendall(b"x")
                    more = connection.recv(2**16)
                    if not more:
                        break
                    data += more
                except TimeoutError:
                    pass
                except OSError:
                    break
        ended[trickle] = time.monotonic() - start, data[:12]

    threads = [threading.Thread(target=wait, args=(trickle,)) for trickle in (False, True)]
    for thread in threads:
        thread.start()
    for _ in range(20):  # others are answered meanwhile
        assert served.line.ask("GET", "/v1/usage").seconds < PATIENCE / 4
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    for seconds, data in ended.values():
        assert seconds < 5 * SECONDS + 5 and data == b"HTTP/1.1 408"


def test_what_is_announced_holds_nothing_and_an_account_holds_its_share(served):
    """Heads that declare the largest bodies and send nothing, then most of them, are one key's
    trouble: others are answered meanwhile, and nothing is billed.
    """
    length = MEGABYTES * 2**20
    head = f"POST /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY['plain']}\r\n"
    head += f"Content-Type: {MEDIA}\r\nContent-Length: {length}\r\n\r\n"
    served.line.close()
    crowd = [served.line.connect() for _ in range(8)]
    try:
        for sent in (head.encode(), bytes(3 * length // 4)):
            for connection in crowd:
                with suppress(OSError):  # some are refused, and ended
                    connection.sendall(sent)
            time.sleep(0.2)
            served.right()
        statuses = set()
        for connection in crowd:
            with suppress(OSError):
                statuses.add(connection.recv(100)[9:12])
        assert b"503" in statuses <= {b"503", b"408", b""}
    finally:
        for connection in crowd:
            connection.close()
        served.line.close()
    time.sleep(0.3)
