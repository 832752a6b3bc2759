"""What a server keeps: a full disk, a stop, charges that go back, a folder that is not its own."""

import json
import resource
import signal
import threading
import time

import pytest
import torch
from dassl_blackbox.serve.access import account_of
from dassl_blackbox.serve.building import Options, build_service
from dassl_blackbox.serve.ledger import Ledger
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, pack
from hostile.client import KEY, WIDTH, Line
from hostile.server import Served, write_keys
from served import Server
from support import seeded


def test_a_disk_that_is_full_is_a_sentence(tmp_path):
    """No file may grow: the server says so, bills nothing, and goes on when there is room."""
    server = Server(tmp_path / "state", "--keys", write_keys(tmp_path), keys="").start()
    try:
        kept = [*tmp_path.glob("state/*"), *tmp_path.glob("state/*/*")]
        assert kept and not any(path.stat().st_mode & 0o077 for path in kept)  # the owner's alone
        found, pid = Served(server), server.process.pid
        usage = found.usage()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        images = torch.randn(40, 3, 32, 32, generator=seeded(9))
        sent = pack({"images": images})
        words = json.dumps({"names": ["new"]}).encode()
        line = found.line
        for path, body in {
            "/v1/images": sent,
            "/v1/texts": words,
            "/v1/query": found.question,
        }.items():
            message = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY['full']}\r\n"
            message += f"Content-Type: {MEDIA}\r\nContent-Length: {len(body)}\r\n\r\n"
            answer = line.send(message.encode() + body, "POST")
            assert (answer.status, answer.code) == (503, "storage"), answer.body
            assert "retry-after" in answer.headers and b"/" not in answer.body
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert found.usage() == usage
        found.right()
        assert line.ask("POST", "/v1/images", sent, MEDIA).status == 200
    finally:
        server.end()
    assert "Traceback" not in server.said()


def test_a_stop_answers_what_has_come(tmp_path):
    server = Server(tmp_path / "state", "--keys", write_keys(tmp_path), keys="").start()
    try:
        found = Served(server)
        about = {**found.about, "images": found.ids * 50}
        body = pack({"image_tokens": torch.randn(4, 1, WIDTH, generator=seeded())}, about)
        answers = []

        def ask():
            answers.append(Line(server).ask("POST", "/v1/query", body, MEDIA))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0 or server.process.returncode == -signal.SIGTERM
        for thread in threads:
            thread.join()
    finally:
        server.end()
    assert [answer.status for answer in answers] == [200] * 3
    assert time.monotonic() - start < 45 and server.said() == ""


def test_a_charge_goes_when_all_tries_of_the_request_have_failed(tmp_path):
    """Else one that is sent twice at once, and fails once, would be answered for nothing."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    account = account_of({"name": "a", "key": "a-long-key"}, (), 0)
    assert [ledger.charge(account, "one", "digest", (2, 6)) for _ in range(2)] == [True, False]
    ledger.refund(account, "one")
    assert ledger.used("a") == (2, 6, 1)
    assert not ledger.charge(account, "one", "digest", (2, 6))
    for left in ((2, 6, 1), (0, 0, 0), (0, 0, 0)):
        ledger.refund(account, "one")
        assert ledger.used("a") == left
    ledger.close()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(BlackBoxError, match="Others may write to the folder"):
        build_service(Options("tiny", state=str(tmp_path)), [])
