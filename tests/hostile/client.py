"""A client without manners: it sends any bytes, and looks at what comes back."""

import base64
import hashlib
import json
import re
import socket
import time
from contextlib import suppress

from dassl_blackbox.trainers.blackbox.oracle import GRANTS
from dassl_blackbox.trainers.blackbox.oracle.wire import unpack
from support import REPO

KEYS = {
    "full": {"grants": list(GRANTS)},
    "plain": {"grants": ["logits"]},
    "another": {"grants": list(GRANTS), "metrics": True},
    "nothing": {"grants": []},
    "top": {"grants": list(GRANTS), "top_k": 1},
}
KEY = {name: f"key-of-{name}-{hashlib.sha256(name.encode()).hexdigest()[:12]}" for name in KEYS}
PATIENCE = 20  # seconds after which a case hangs, on a machine that is busy with others
QUESTIONS = ("/v1/query", "/v1/features/images", "/v1/features/texts")
PICTURE, JPEG, JSON = "image/png", "image/jpeg", "application/json"
WIDTH = 192  # of an image token


class Answer:
    def __init__(self, status, headers, body, seconds):
        self.status, self.headers, self.body, self.seconds = status, headers, body, seconds

    @property
    def code(self):
        return json.loads(self.body)["error"]["code"]

    @property
    def tensor(self):
        return unpack(self.body)[0]["answer"]


class Line:
    """Sends bytes as they are, over a connection that is kept while the server keeps it."""

    def __init__(self, server):
        self.server, self.connection, self.cases, self.billed = server, None, 0, {}

    def ask(self, method, path, body=b"", kind=None, key="full", headers=()):
        """The answer, looked at; `key`: the name of a key, None, or the header's bytes."""
        lines = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: here"]
        if isinstance(key, bytes):
            lines.append(b"Authorization: " + key)
        elif key is not None:
            lines.append(f"Authorization: Bearer {KEY[key]}".encode())
        if kind is not None:
            lines.append(b"Content-Type: " + kind.encode("latin-1"))
        lines.extend(headers)
        if body or method == "POST":
            lines.append(b"Content-Length: %d" % len(body))
        answer = self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body, method)
        assert answer is not None, (method, path[:99], lines[1:][:9], body[:99])
        fair(answer, method)
        if answer.status == 200 and path in QUESTIONS:
            self.billed[key] = self.billed.get(key, 0) + 1
        return answer

    def send(self, message, method="GET"):
        """The first answer to these bytes; None where the server ends the connection without."""
        self.cases += 1
        while True:
            fresh = self.connection is None
            if fresh:
                self.connection = self.connect()
            start = time.monotonic()
            with suppress(OSError):  # it may have been answered before it was read
                self.connection.sendall(message)
            head, body = self.read(method)
            if head is not None:
                status, headers = head
                if headers.get("connection") == "close":
                    self.close()
                return Answer(status, headers, body, time.monotonic() - start)
            self.close()
            if fresh:
                return None

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def read(self, method):
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    data += self.more()
                head, data = data.split(b"\r\n\r\n", 1)
                first, *lines = head.decode("latin-1").split("\r\n")
                if not first.split()[1].startswith("1"):
                    break
            headers = {name.lower(): value.strip() for name, _, value in map(parted, lines)}
            length = 0 if method == "HEAD" else int(headers.get("content-length", -1))
            parts = [data]
            while length < 0 or sum(map(len, parts)) < length:
                try:
                    parts.append(self.more())
                except EOFError:
                    if length < 0:
                        break
                    raise
            body = b"".join(parts)
            # what follows answers what followed
            return (int(first.split()[1]), headers), body if length < 0 else body[:length]
        except (EOFError, ConnectionError):
            return None, b""

    def more(self):
        data = self.connection.recv(2**20)
        if not data:
            raise EOFError
        return data


def parted(line):
    return line.partition(":")


def fair(answer, method=""):
    """What holds for every answer."""
    assert answer.status < 500, (answer.status, answer.body[:500])
    assert answer.seconds < PATIENCE
    words = repr(answer.headers) + answer.body[:100_000].decode("latin-1")
    for secret in (
        *KEY.values(),
        str(REPO),
        "Traceback",
        'File "',
        "site-packages",
        "object at 0x",
    ):
        assert secret not in words, words[:2000]
    if method == "HEAD":
        return
    digest = base64.b64encode(hashlib.sha256(answer.body).digest()).decode()
    declared = answer.headers.get("content-digest")
    assert declared in (None, f"sha-256=:{digest}:")
    if answer.status >= 400:
        error = json.loads(answer.body)["error"]
        assert re.fullmatch(r"[a-z_]+", error["code"])
        assert re.fullmatch(r"[^\r\n]{1,1500}", error["message"]), error
