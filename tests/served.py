"""A server of ours in a process of its own, and a client without manners that asks it."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from http.client import BadStatusLine, HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from dassl_blackbox.trainers.blackbox.oracle import GRANTS
from dassl_blackbox.trainers.blackbox.oracle.prompt import Texts
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, Contents, pack, unpack
from support import REPO, seeded

KEY = "a-key-for-tests"
KEYS = {
    "full": {"grants": list(GRANTS)},
    "plain": {"grants": ["logits"]},
    "another": {"grants": list(GRANTS), "metrics": True},
    "nothing": {"grants": []},
    "top": {"grants": list(GRANTS), "top_k": 1},
}
PATIENCE = 20  # seconds after which a case hangs, on a machine that is busy with others
QUESTIONS = ("/v1/query", "/v1/features/images", "/v1/features/texts")
WIDTH = 192  # of an image token


class Server:
    """`python -m dassl_blackbox.serve` with the embedded model; `start` again after `end`."""

    def __init__(self, state, *options, port=0, keys=f"tests={KEY}"):
        self.state, self.options, self.port, self.keys = state, options, port, keys
        self.lives = 0

    def start(self):
        path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
        line = [sys.executable, "-m", "dassl_blackbox.serve", "--backbone", "tiny"]
        line += ["--port", self.port, "--state", self.state, *self.options]
        env = {**os.environ, "PYTHONPATH": path, "BLACKBOX_KEYS": self.keys}
        self.lives += 1
        self.log = Path(f"{self.state}.log")
        with open(self.log, "a") as errors:
            given = {"env": env, "cwd": REPO, "stdout": subprocess.PIPE, "stderr": errors}
            self.process = subprocess.Popen(list(map(str, line)), text=True, **given)
        for line in self.process.stdout:
            if found := re.search(r"listens? on (http://127\.0\.0\.1:(\d+))", line):
                self.url, self.port = found[1], int(found[2])
                return self
        raise AssertionError(self.log.read_text())

    def memory(self, name="VmRSS"):
        """Megabytes of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1000

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(60)
        self.process.stdout.close()


@contextmanager
def serving(*args, **kwargs):
    server = Server(*args, **kwargs).start()
    try:
        yield server
    finally:
        server.end()
    assert "Traceback" not in server.log.read_text()


def write_keys(folder, keys=KEYS):
    """A file of keys, `key-of-NAME` each."""
    path = folder / "keys.yaml"
    entries = [{"name": name, "key": f"key-of-{name}", **keys[name]} for name in keys]
    path.write_text(yaml.safe_dump(entries))
    path.chmod(0o600)
    return path


class Line:
    """Asks over a connection that is kept while the server keeps it; counts what is billed."""

    def __init__(self, port):
        self.connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.cases, self.billed = 0, {}

    def ask(self, method, path, body=b"", kind=None, key="full", headers=()):
        """The answer, looked at; `key`: the name of a key, None, or the header's bytes."""
        given = dict(headers)
        if key is not None:
            given["Authorization"] = key if isinstance(key, bytes) else f"Bearer key-of-{key}"
        if kind is not None:
            given["Content-Type"] = kind
        answer = self.send(method, path, body, given)
        fair(answer, method)
        if answer.status == 200 and path in QUESTIONS:
            self.billed[key] = self.billed.get(key, 0) + 1
        return answer

    def send(self, method, path, body, headers):
        self.cases += 1
        fresh, start = self.connection.sock is None, time.monotonic()
        self.connection.putrequest(method, path)
        if body or method == "POST":
            self.connection.putheader("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.connection.putheader(name, value)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # answered before it was read
                self.connection.endheaders(body)
            answer = self.connection.getresponse()
            content = answer.read()
        except (BrokenPipeError, ConnectionResetError, BadStatusLine):
            self.connection.close()
            if fresh:
                raise
            return self.send(method, path, body, headers)
        found = {name.lower(): value for name, value in answer.getheaders()}
        seconds = time.monotonic() - start
        return SimpleNamespace(status=answer.status, headers=found, body=content, seconds=seconds)


def fair(answer, method=""):
    """What holds for every answer: quick, no fault, no secret, an error is a sentence."""
    assert answer.status < 500, (answer.status, answer.body[:500])
    assert answer.seconds < PATIENCE
    words = repr(answer.headers) + answer.body[:100_000].decode("latin-1")
    for secret in ("key-of-", str(REPO), "Traceback", 'File "', "site-packages", "object at 0x"):
        assert secret not in words, words[:2000]
    if method != "HEAD":
        digest = base64.b64encode(hashlib.sha256(answer.body).digest()).decode()
        assert answer.headers.get("content-digest") in (None, f"sha-256=:{digest}:")
        if answer.status >= 400:
            error = json.loads(answer.body)["error"]
            assert re.fullmatch(r"[a-z_]+", error["code"])
            assert re.fullmatch(r"[^\r\n]{1,1500}", error["message"]), error


def tensor(answer):
    return unpack(answer.body)[0]["answer"]


class Served:
    """A server, what it was sent before the first case, and what it answered."""

    names = ("one", "two", "three")

    def __init__(self, server):
        self.server, self.line = server, Line(server.port)
        self.images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=seeded())
        self.ids, self.texts = Contents(self.images).ids, Texts.of(self.names).id
        self.contexts = torch.randn(2, 2, 128, generator=seeded()) * 0.05
        self.about = {"images": self.ids, "classes": self.texts, "texts": None}
        self.question = pack({"contexts": self.contexts}, self.about)
        self.send()
        self.logits = tensor(self.post("/v1/query", self.question))
        self.memory = server.memory()

    def post(self, path, body, key="full", kind=MEDIA, headers=()):
        return self.line.ask("POST", path, body, kind, key, headers)

    def send(self, key="full"):
        assert self.post("/v1/images", pack({"images": self.images}), key).status == 200
        assert self.post_texts({"names": self.names}, key).status == 200

    def post_texts(self, value, key="full"):
        return self.post("/v1/texts", json.dumps(value).encode(), key, "application/json")

    def usage(self, key="full"):
        return json.loads(self.line.ask("GET", "/v1/usage", key=key).body)

    def right(self):
        """Whether an ordinary question gets the answer that it has had."""
        self.send()
        answer = self.post("/v1/query", self.question)
        assert answer.status == 200, answer.body
        torch.testing.assert_close(tensor(answer), self.logits, rtol=0, atol=1e-3)
