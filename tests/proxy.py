"""A proxy that does to requests what networks do: seeded, so that a failure can be had again."""

import random
import socket
import threading
import time
from contextlib import contextmanager

FAULTS = (
    "refused",  # closed before a byte is read
    "reset",  # in the middle of the request's body
    "lost",  # the request arrives, its answer does not
    "truncated",  # half of the answer
    "garbage",  # an answer of which a byte is changed
    "spoilt",  # a request of which a byte is changed
    "500",
    "503",
    "429",
    "slow",
    "duplicated",  # the request arrives twice
)


class Proxy:
    """Passes HTTP/1.1 requests with a length on to a port of this machine, a share of them not.

    Attributes:
        met: how often each fault was done.
        requests: names (Idempotency-Key) of the requests that came.
    """

    def __init__(self, port, share=0.3, seed=0):
        self.port, self.share, self.random = port, share, random.Random(seed)
        self.met, self.requests = dict.fromkeys(FAULTS, 0), set()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(client,), daemon=True).start()

    def talk(self, client):
        with client:
            try:
                while self.one(client):
                    pass
            except OSError:
                pass

    def one(self, client):
        """One request; whether the connection stays."""
        message = whole(client)
        if message is None:
            return False
        head, body = message
        name = header(head, b"idempotency-key")
        if name:
            self.requests.add(name)
        fault = self.random.choice(FAULTS) if self.random.random() < self.share else ""
        if fault:
            self.met[fault] += 1
        if fault in ("refused", "reset"):
            if fault == "reset":
                self.send_part(head + body[: len(body) // 2])
            return False
        if fault in ("500", "503", "429"):
            again = b"Retry-After: 0.05\r\n" if fault != "500" else b""
            client.sendall(
                b"HTTP/1.1 %s x\r\n%sContent-Length: 0\r\n\r\n" % (fault.encode(), again)
            )
            return True
        if fault == "spoilt" and body:
            body = spoilt(body, self.random)
        if fault == "slow":
            time.sleep(0.5)
        answer = self.forward(head + body)
        if fault == "duplicated":
            answer = self.forward(head + body)
        if answer is None or fault == "lost":
            return False
        head, body = answer
        if fault == "truncated":
            client.sendall(head + body[: len(body) // 2])
            return False
        client.sendall(head + (spoilt(body, self.random) if fault == "garbage" and body else body))
        return True

    def forward(self, message):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=30) as server:
                server.sendall(message)
                return whole(server)
        except OSError:
            return None

    def send_part(self, part):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=30) as server:
                server.sendall(part)
        except OSError:
            pass

    def close(self):
        self.socket.close()


def whole(connection):
    """(head, body) of a message with a Content-Length; None where it ends before."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    head += b"\r\n\r\n"
    length = int(header(head, b"content-length") or 0)
    while len(body) < length:
        more = connection.recv(65536)
        if not more:
            return None
        body += more
    return head, body


def header(head, name):
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def spoilt(body, random):
    i = random.randrange(len(body))
    return body[:i] + bytes([body[i] ^ 0x55]) + body[i + 1 :]


@contextmanager
def disturbed(port, **kwargs):
    proxy = Proxy(port, **kwargs)
    try:
        yield proxy
    finally:
        proxy.close()
