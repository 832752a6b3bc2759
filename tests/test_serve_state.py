"""What a server keeps: a full disk, a stop, charges that go back, a folder that is not its own."""

import asyncio
import io
import json
import resource
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from dassl_blackbox.serve.access import account_of
from dassl_blackbox.serve.contents import Contents
from dassl_blackbox.serve.ledger import Ledger
from dassl_blackbox.serve.replica import Turns
from dassl_blackbox.serve.requests import Refusal
from dassl_blackbox.serve.service import Options, build_service
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import digest
from dassl_blackbox.trainers.blackbox.oracle import GRANTS
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, pack, unpack
from hostile.client import KEY, WIDTH, Line
from hostile.server import Served, write_keys
from PIL import Image
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


# ------------------------------------------------------------------ accounts beside each other


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Two accounts at one model, in this process."""
    state = str(tmp_path_factory.mktemp("service") / "state")
    accounts = [account_of({"name": n, "key": f"key-of-{n}"}, GRANTS, 0) for n in ("one", "two")]
    found = build_service(Options("tiny", state=state), accounts)
    yield found
    found.close()


def names_of(service, number, names, template="{}."):
    body = json.dumps({"names": names, "template": template}).encode()
    return asyncio.run(service.take_texts(service.accounts.accounts[number], body))["id"]


def test_accounts_take_turns():
    turns = Turns()
    for n in range(3):
        turns.put("one", f"one {n}")
    turns.put("two", "two 0")
    assert [turns.get() for _ in range(4)] == ["one 0", "two 0", "one 1", "one 2"]
    turns.close()
    assert turns.get() is None


def test_no_account_pushes_out_what_another_has_sent(tmp_path):
    about = SimpleNamespace(image_size=(64, 64))
    contents = Contents(tmp_path / "contents", 2**22, about, ["one", "two"])
    picture = torch.zeros(1, 3, 64, 64)
    contents.put_images("one", ["a"], picture)
    for n in range(100):  # 5 MB
        contents.put_images("two", [f"{n}"], picture)
    assert contents.image("one", "a") is not None and contents.image("two", "0") is None
    assert contents.image("two", "a") is None and contents.missing("one", ["0", "a"]) == ["0"]
    size = sum(path.stat().st_size for path in (tmp_path / "contents").rglob("*"))
    assert size < 2 * 2**22
    contents.close()


def test_the_first_text_that_does_not_fit_ends_the_work(service, monkeypatch):
    asked, room = [], service.replica.room
    monkeypatch.setattr(service.replica, "room", lambda *given: asked.append(given) or room(*given))
    with pytest.raises(Refusal, match="Shorten"):
        names_of(service, 0, ["a " * 100, *map(str, range(5_000))])
    assert len(asked) == 1


def test_further_texts_are_scored_once_and_never_stand_beside_each_candidate(service, monkeypatch):
    """200 candidates and 3,000 further texts: 300 MB where each candidate has its own features."""
    further = names_of(service, 0, [f"{n}" for n in range(3_000)])
    classes = names_of(service, 0, ["a", "b", "c"])
    account, image = service.accounts.accounts[0], torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    asyncio.run(service.take_images(account, pack({"images": image}), picture=False))
    about = {"images": [digest(image[0])], "classes": classes, "texts": further}
    contexts = torch.randn(200, 1, 128, generator=seeded()) * 0.04
    sizes, score = [], service.replica.oracle.score

    def scored(image, text):
        sizes.append(text.nbytes)
        return score(image, text)

    monkeypatch.setattr(service.replica.oracle, "score", scored)
    body = pack({"contexts": contexts}, about)
    answer, room = asyncio.run(service.answer("query", account, "given one", body))
    assert max(sizes) < 2**22 and room == 4 * 200 * 3_003
    logits = unpack(answer)[0]["answer"]
    service.bodies.hold(account.name, -room)
    first = pack({"contexts": contexts[:1]}, about)
    alone, room = asyncio.run(service.answer("query", account, "given two", first))
    service.bodies.hold(account.name, -room)
    assert (unpack(alone)[0]["answer"] - logits[:1]).abs().max() < 1e-4
    assert service.bodies.held.total() == 0


def test_what_nobody_waits_for_ends(service, monkeypatch):
    """A client that leaves ends its job between two parts; it stays charged."""
    monkeypatch.setattr("dassl_blackbox.serve.replica.TEXT_BYTES", 4 * 3 * 128)
    account, replica = service.accounts.accounts[1], service.replica
    image = torch.ones(1, 3, 32, 32, dtype=torch.uint8)
    asyncio.run(service.take_images(account, pack({"images": image}), picture=False))
    about = {"images": [digest(image[0])], "classes": names_of(service, 1, ["x", "y", "z"])}
    body = pack({"contexts": torch.randn(300, 1, 128, generator=seeded(1))}, about)
    begun, asked, features = threading.Event(), [], replica.features

    def counted(*given):
        asked.append(given)
        begun.set()
        time.sleep(0.01)
        return features(*given)

    monkeypatch.setattr(replica, "features", counted)

    async def leave():
        task = asyncio.ensure_future(service.answer("query", account, "given", body))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(leave())
    time.sleep(0.1)
    assert 0 < len(asked) < 100
    assert asyncio.run(service.usage(account))["queries"] == 300
    assert service.bodies.held.total() == 0


def test_scans_of_a_picture_are_bounded(service):
    """A progressive JPEG with its last scan 4,000 times, which takes ten seconds to decode."""
    file = io.BytesIO()
    Image.new("RGB", (800, 800), "red").save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    account = service.accounts.accounts[0]
    assert asyncio.run(service.take_images(account, content, picture=True))["ids"]
    with pytest.raises(Refusal, match="scans"):
        bomb = content[:-2] + last * 4_000 + content[-2:]
        asyncio.run(service.take_images(account, bomb, picture=True))
