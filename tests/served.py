"""A server of ours in a process of its own, on the loopback address."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from support import REPO

KEY = "a-key-for-tests"


class Server:
    """`python -m dassl_blackbox.serve` with the embedded model; `start` again after `kill`."""

    def __init__(self, state, *options, port=0, keys=f"tests={KEY}"):
        self.state, self.options, self.port, self.keys = state, options, port, keys
        self.lives = 0

    def start(self):
        path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = ["-m", "dassl_blackbox.serve", "--backbone", "tiny", "--port", self.port]
        self.lives += 1
        self.log = Path(f"{self.state}.log")
        with open(self.log, "a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command), "--state", *map(str, self.given())],
                env={**os.environ, "PYTHONPATH": path, "BLACKBOX_KEYS": self.keys},
                cwd=REPO,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        for line in self.process.stdout:
            if found := re.search(r"listens? on (http://127\.0\.0\.1:(\d+))", line):
                self.url, self.port = found[1], int(found[2])
                return self
        raise AssertionError(self.said())

    def given(self):
        return self.state, *self.options

    def said(self):
        return self.log.read_text()

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
    assert "Traceback" not in server.said(), server.said()
