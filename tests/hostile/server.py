"""The server that is asked, what it was sent before, and what it answered then."""

import json
import re

import torch
import yaml
from dassl_blackbox.trainers.blackbox.oracle.prompt import Texts
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, Contents, pack
from support import seeded

from hostile.client import JSON, KEY, KEYS, Line

MEGABYTES = 8  # of the largest body
SECONDS = 2  # within which a request must have come
NAMES = ("one", "two", "three")


class Served:
    """A server, what it was sent before the first case, and what it answered."""

    def __init__(self, server):
        self.server, self.line = server, Line(server)
        self.images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=seeded())
        self.ids, self.texts = Contents(self.images).ids, Texts.of(NAMES)
        self.contexts = torch.randn(2, 2, 128, generator=seeded()) * 0.05
        self.about = {"images": self.ids, "classes": self.texts.id, "texts": None}
        self.question = pack({"contexts": self.contexts}, self.about)
        self.send()
        self.logits = self.line.ask("POST", "/v1/query", self.question).tensor
        self.memory = memory(server)

    def send(self, key="full"):
        body = pack({"images": self.images})
        assert self.line.ask("POST", "/v1/images", body, MEDIA, key).status == 200
        body = json.dumps({"names": NAMES}).encode()
        assert self.line.ask("POST", "/v1/texts", body, JSON, key).status == 200

    def usage(self, key="full"):
        return json.loads(self.line.ask("GET", "/v1/usage", key=key).body)

    def right(self):
        """Whether an ordinary question gets the answer that it has had."""
        self.send()
        answer = self.line.ask("POST", "/v1/query", self.question)
        assert answer.status == 200, answer.body
        torch.testing.assert_close(answer.tensor, self.logits, rtol=0, atol=1e-3)


def memory(server, name="VmRSS"):
    """Megabytes of the server's process."""
    with open(f"/proc/{server.process.pid}/status") as file:
        return int(re.search(rf"{name}:\s+(\d+) kB", file.read())[1]) / 1000


def write_keys(folder):
    path = folder / "keys.yaml"
    path.write_text(yaml.safe_dump([{"name": n, "key": KEY[n], **KEYS[n]} for n in KEYS]))
    path.chmod(0o600)
    return path
