"""The model behind HTTP: the same runs, the same bill, whatever the network does."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
import torch
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, Prompt
from dassl_blackbox.trainers.blackbox.oracle.services import (
    Http,
    Refused,
    RemoteBudgetSpent,
    RemoteOracle,
)
from dassl_blackbox.trainers.blackbox.oracle.wire import as_8bit, normalised
from dassl_blackbox.trainers.blackbox.search import SearchTrainer
from served import KEY, serving, write_keys
from support import BLACK_BOX, REPO, accuracy, arguments, bill, build, run, test_logits, trained

UNITS = ("queries", "image_queries")
ADAPTED = ("TRAINER.CBBT.ADAPTER", "True", "TRAINER.CBBT.ADAPTER_EPOCH", "1")
# contexts; further texts and views; changed pictures; image tokens; features; two kinds of answer
KINDS = {"ZIP", "SONAR", "BlackVIP", "BPTVLM", "GDA", "CBBT with its adapter"}
FAULTS = ("refused", "reset", "lost", "truncated", "garbage", "spoilt", "slow", "duplicated")
FAULTS += ("500", "503", "429")


class Proxy:
    """Passes HTTP/1.1 requests with a length on to a port of this machine, a half of them not."""

    def __init__(self, port, seed):
        self.port, self.random = port, random.Random(seed)
        self.met, self.requests = Counter(), set()  # faults that were done; names of requests
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                threading.Thread(target=self.talk, args=(client,), daemon=True).start()

    def talk(self, client):
        with client, suppress(OSError):
            while (message := whole(client)) and self.one(client, *message):
                pass

    def one(self, client, head, body):
        """Answer a request; whether the connection stays."""
        if not head.startswith(b"POST /v1/images"):
            self.requests.add(header(head, b"idempotency-key"))
        fault = self.random.choice(FAULTS) if self.random.random() < 0.5 else ""
        self.met[fault] += 1
        if fault == "refused":
            return False
        if fault.isdigit():
            again = b"Retry-After: 0.05\r\n" if fault != "500" else b""
            head = b"HTTP/1.1 %s x\r\n%sContent-Length: 0\r\n\r\n" % (fault.encode(), again)
            client.sendall(head)
            return True
        body = self.spoilt(body) if fault == "spoilt" else body
        body = body[: len(body) // 2] if fault == "reset" else body
        time.sleep(0.5 * (fault == "slow"))
        for _ in range(2 if fault == "duplicated" else 1):
            with socket.create_connection(("127.0.0.1", self.port), 30) as server:
                server.sendall(head + body)
                answer = None if fault == "reset" else whole(server)
        if answer is None or fault == "lost":
            return False
        head, body = answer
        body = self.spoilt(body) if fault == "garbage" else body
        client.sendall(head + body[: len(body) // (2 if fault == "truncated" else 1)])
        return fault != "truncated"

    def spoilt(self, body):
        i = self.random.randrange(len(body) or 1)
        return body and body[:i] + bytes([body[i] ^ 0x55]) + body[i + 1 :]


def whole(connection):
    """(head, body) of a message with a Content-Length; None where it ends before."""
    data, size, length = b"", 0, 1
    while len(data) < size + length:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
        if not size and b"\r\n\r\n" in data:
            size = data.index(b"\r\n\r\n") + 4
            length = int(header(data[:size], b"content-length") or 0)
    return data[:size], data[size:]


def header(head, name):
    found = re.search(rb"(?i)\r\n%s: *([^\r]*)" % name, head)
    return found and found[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server") / "state", "--grants", *GRANTS) as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BLACKBOX_KEY", KEY)


def remote(url, patience=20):
    return "ORACLE.URL", url, "ORACLE.PATIENCE", str(float(patience))


def usage(url, key=KEY):
    return httpx.get(f"{url}/v1/usage", headers={"Authorization": f"Bearer {key}"}).json()


def oracle(server, patience=5.0, classes=("one", "two")):
    asked = RemoteOracle(Http(server.url, 30, patience), torch.device("cpu"), "tiny", "a test")
    asked.set_classes(classes)
    return asked


def billed(folder):
    """All queries of a run, and image queries."""
    counts = bill(folder)
    return tuple(counts["training"][u] + counts["evaluation"][u] for u in UNITS)


def used(url, before):
    after = usage(url)
    return tuple(after[unit] - before[unit] for unit in UNITS)


def distance(a, b):
    """Of two learners, the largest difference of a number beside the largest number, or 1."""
    if isinstance(a, torch.Tensor):
        a, b = a.double(), b.double()
        return ((a - b).abs().max() / b.abs().max().clamp_min(1)).item() if a.numel() else 0.0
    if not isinstance(a, dict):
        assert a == b
        return 0.0
    assert a.keys() == b.keys()
    return max([distance(a[name], b[name]) for name in a], default=0.0)


@pytest.mark.parametrize(
    "name",
    [
        name if name in KINDS else pytest.param(name, marks=pytest.mark.long)
        for name in (*BLACK_BOX, "CBBT with its adapter")
    ],
)
def test_whatever_the_network_does_a_run_and_its_bill_are_those_in_process(
    name, server, data_root, budget, tmp_path
):
    options = ADAPTED if "adapter" in name else ()
    name = name.split()[0]
    limit = ("ORACLE.MAX_QUERIES", 60) if options else ("OPTIM.MAX_EPOCH", 2)
    if not options and name != "ZeroshotOracle":
        limit = budget(name, 6)
    granted = ("ORACLE.GRANTS", str(GRANTS))
    local = trained(name, data_root, tmp_path / "local", *limit, *granted, *options)
    proxy = Proxy(server.port, seed=len(name))
    before = usage(server.url)
    far = trained(name, data_root, tmp_path / "far", *limit, *remote(proxy.url, 60), *options)
    after = usage(server.url)
    proxy.socket.close()
    assert distance(far.learner.state_dict(), local.learner.state_dict()) < 1e-4
    assert used(server.url, before) == billed(tmp_path / "far") == billed(tmp_path / "local")
    assert after["requests"] - before["requests"] == len(proxy.requests - {None})
    assert proxy.met.total() - proxy.met[""] > 1
    far.oracle.inner.line.url = server.url
    assert (test_logits(far) - test_logits(local)).abs().max() < 1e-2


def test_the_client_imports_no_model(server, data_root, tmp_path):
    script = (
        "import sys, train\n"
        "status = train.main(train.parse_args(sys.argv[1:]))\n"
        "print('imported:', sorted({'open_clip', 'timm', 'transformers'} & set(sys.modules)))\n"
        "sys.exit(status)"
    )
    given = arguments("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 20, *remote(server.url))
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script, *given],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout and KEY not in done.stdout + done.stderr


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_server_that_is_killed_and_started_again_is_waited_for(
    kills, data_root, tmp_path, budget
):
    limit, rng = budget("ZIP", 30 * kills), random.Random(kills)
    with serving(tmp_path / "state") as server:
        still = trained("ZIP", data_root, tmp_path / "still", *limit, *remote(server.url))
        before, ended = usage(server.url), threading.Event()

        def kill():
            for _ in range(kills):
                if ended.wait(rng.uniform(0.1, 0.6)):
                    return
                server.end(signal.SIGKILL)
                server.start()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            far = trained("ZIP", data_root, tmp_path / "far", *limit, *remote(server.url, 120))
        finally:
            ended.set()
            killer.join()
        assert server.lives > 1
        assert distance(far.learner.state_dict(), still.learner.state_dict()) < 1e-6
        assert used(server.url, before) == billed(tmp_path / "far") == billed(tmp_path / "still")


@pytest.mark.long
def test_replicas_keep_one_ledger(data_root, tmp_path, budget):
    pytest.importorskip("ray", reason="no Ray is installed")
    limit, images = budget("SONAR", 4), torch.randn(3, 3, 32, 32)
    near = trained("SONAR", data_root, tmp_path / "near", *limit)

    def ask(asked):
        return [asked.query(asked.upload(images), Prompt()) for _ in range(10)]

    with serving(tmp_path / "state", "--replicas", "2") as server:
        with ThreadPoolExecutor(4) as pool:  # so that both are asked
            found = pool.map(ask, [oracle(server, 30) for _ in range(4)])
            answers = [answer for part in found for answer in part]
        assert all((answer - answers[0]).abs().max() < 1e-3 for answer in answers)
        before = usage(server.url)
        assert before["queries"] == 40
        far = trained("SONAR", data_root, tmp_path / "far", *limit, *remote(server.url))
        assert used(server.url, before) == billed(tmp_path / "far") == billed(tmp_path / "near")
    assert distance(far.learner.state_dict(), near.learner.state_dict()) < 1e-4


def test_a_server_that_lost_what_it_was_sent_is_sent_it_again(tmp_path, data_root):
    with serving(tmp_path / "one") as server:
        asked = oracle(server)
        images = asked.upload(torch.randn(3, 3, 32, 32))
        first = asked.query(images, Prompt())
        server.end()
        server.state = tmp_path / "another"
        server.start()
        assert torch.equal(asked.query(images, Prompt()), first)


def test_pictures_of_8_bits_cross_as_such_and_others_as_they_are(server, data_root, tmp_path):
    asked = oracle(server)
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    pixels = normalised(pictures, asked.description)
    assert torch.equal(as_8bit(pixels, asked.description), pictures)
    assert torch.equal(as_8bit(pixels + 1e-4, asked.description), pixels + 1e-4)
    assert asked.upload(pixels).pixels.dtype == torch.uint8
    trainer = build("ZIP", data_root, tmp_path)  # what loaders give is of 8 bits
    for batch in (next(iter(trainer.train_loader_x)), next(iter(trainer.test_loader))):
        assert as_8bit(batch["img"], trainer.description).dtype == torch.uint8


def test_keys_have_grants_budgets_rates_and_top_k(tmp_path, data_root, monkeypatch, capsys):
    """Of `poor`, another client spends what was left for the third step when the run began."""
    keys = {
        "words": {"grants": ["logits"], "top_k": 3},
        "poor": {"max_queries": 35},
        "slow": {"rate": 120},
    }
    images = torch.randn(3, 3, 32, 32)
    with serving(tmp_path / "state", "--keys", write_keys(tmp_path, keys), keys="") as server:
        far = remote(server.url, 5)
        monkeypatch.setenv("BLACKBOX_KEY", "key-of-words")
        assert run("ZIP", data_root, tmp_path / "zip", *far, "ORACLE.TOP_K", 3) == 1
        said = capsys.readouterr().err
        assert "'contexts', which this oracle does not grant" in said
        assert "the server's --grants or among the grants of your key" in said
        near = trained("SONAR", data_root, tmp_path / "near", "ORACLE.TOP_K", 3)
        assert run("SONAR", data_root, tmp_path / "top", *far) == 1
        assert "with ORACLE.TOP_K 3, not 'tiny' with 0" in capsys.readouterr().err
        top = trained("SONAR", data_root, tmp_path / "top", *far, "ORACLE.TOP_K", 3)
        assert distance(top.learner.state_dict(), near.learner.state_dict()) < 1e-3
        monkeypatch.setenv("BLACKBOX_KEY", "key-of-poor")
        other, epoch = oracle(server), SearchTrainer.before_epoch

        def spend(trainer):
            other.query(other.upload(images), Prompt(torch.zeros(10, 1, 128)))
            epoch(trainer)

        with monkeypatch.context() as patch:
            patch.setattr(SearchTrainer, "before_epoch", spend)
            assert run("ZIP", data_root, tmp_path / "run", *far, "ORACLE.MAX_QUERIES", 30) == 0
        assert "refuses, since a budget is spent" in capsys.readouterr().out
        # two steps of 10; the third was refused; two batches of the test set
        assert usage(server.url, "key-of-poor")["queries"] - 10 == billed(tmp_path / "run")[0] == 22
        assert bill(tmp_path / "run")["training"]["queries"] == 20
        with pytest.raises(RemoteBudgetSpent, match="32 of the 35 queries of this key are used"):
            other.query(other.upload(images), Prompt(torch.zeros(10, 1, 128)))
        monkeypatch.setenv("BLACKBOX_KEY", "key-of-slow")
        asked, start = oracle(server, 30), time.monotonic()
        for _ in range(125):
            asked.query(asked.upload(images), Prompt())
        assert time.monotonic() - start > 2  # it waited as long as it was told, and went on
        monkeypatch.setenv("BLACKBOX_KEY", "another-key")
        assert run("ZIP", data_root, tmp_path / "none", *far) == 1
        said = capsys.readouterr().err
        assert "ORACLE.API and BLACKBOX_KEY." in said and "another-key" not in said


def test_requests_of_several_clients_are_answered_together(server, data_root):
    def ask(number):
        asked = oracle(server, classes=("one", "two", "three"))
        generator = torch.Generator().manual_seed(number % 4)
        images = asked.upload(torch.randn(5, 3, 32, 32, generator=generator))
        contexts = torch.randn(6, 2, 128, generator=generator) * 0.04
        return [asked.query(images, Prompt(contexts * (1 + i))) for i in range(20)]

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(12)))
    for number, answers in enumerate(together):
        for a, b in zip(answers, ask(number)):
            assert (a - b).abs().max() < 1e-3
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    batches = re.search(r"^blackbox_batches (.*)", text, re.M)
    asked = re.search(r'^blackbox_requests_total\{path="/v1/query",status="200"\} (.*)', text, re.M)
    assert 0 < float(batches[1]) < float(asked[1])


def test_what_cannot_be_asked_is_a_sentence(server, data_root, tmp_path, capsys, monkeypatch):
    cases = {
        ("ORACLE.URL", "ftp://somewhere"): "http(s)://…, is expected",
        ("ORACLE.URL", "http://127.0.0.1:9", "ORACLE.PATIENCE", "0.2"): "gave no answer within",
        ("MODEL.BACKBONE.NAME", "ViT-B/16"): "holds 'tiny'",
        ("ORACLE.URL", f"{server.url}/another"): "Check ORACLE.URL, ORACLE.API",
    }
    for options, sentence in cases.items():
        assert run("ZIP", data_root, tmp_path, *remote(server.url), *options) == 1
        said = capsys.readouterr().err
        assert sentence in said, said
    assert "/v1/description answers 404: " in said
    asked = oracle(server)
    with pytest.raises(Refused, match="finite"):
        asked.query(asked.upload(torch.zeros(1, 3, 32, 32)), Prompt(torch.full((1, 1, 128), 1e999)))
    monkeypatch.setenv("BLACKBOX_KEY", "ein Schlüssel")
    with pytest.raises(BlackBoxError, match="characters that no header can") as found:
        Http("http://127.0.0.1:9", 1, 1)
    assert "Schl" not in str(found.value)


def test_a_local_run_goes_on_over_http(server, data_root, tmp_path, capsys):
    assert run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 40) == 0
    near = accuracy(capsys.readouterr().out)
    trainer = build("ZIP", data_root, tmp_path / "far", *remote(server.url))
    trainer.load_model(str(tmp_path))
    trainer.test()
    assert accuracy(capsys.readouterr().out) == near
