"""What a server keeps: a full disk, a stop, charges that go back, accounts beside each other."""

import asyncio
import json
import resource
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from dassl_blackbox.serve.__main__ import parse_args
from dassl_blackbox.serve.access import Account, Ledger
from dassl_blackbox.serve.application import build_app
from dassl_blackbox.serve.replica import Contents, Lane, Task
from dassl_blackbox.serve.service import build_service
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, Meter, Prompt, Texts
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, pack, unpack
from dassl_blackbox.trainers.blackbox.oracle.wire import Contents as Named
from served import WIDTH, Line, Served, Server, write_keys
from starlette.testclient import TestClient
from support import Random, seeded


def test_a_disk_that_is_full_is_a_sentence_and_a_stop_answers_what_has_come(tmp_path):
    """No file may grow: the server says so, bills nothing, and goes on when there is room."""
    server = Server(tmp_path / "state", "--keys", write_keys(tmp_path), keys="").start()
    answers = []
    try:
        kept = [*tmp_path.glob("state/*"), *tmp_path.glob("state/*/*")]
        assert kept and not any(path.stat().st_mode & 0o077 for path in kept)  # the owner's alone
        found, pid = Served(server), server.process.pid
        usage, sent = found.usage(), pack({"images": torch.randn(40, 3, 32, 32)})
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        for path, body in (
            ("/v1/images", sent),
            ("/v1/texts", json.dumps({"names": ["new"]}).encode()),
            ("/v1/query", found.question),
        ):
            head = {"Authorization": "Bearer key-of-full", "Content-Type": MEDIA}
            answer = found.line.send("POST", path, body, head)
            assert answer.status == 503 and b'"storage"' in answer.body, answer.body
            assert "retry-after" in answer.headers and b"/" not in answer.body
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert found.usage() == usage
        found.right()
        assert found.post("/v1/images", sent).status == 200
        before = server.log.read_text()
        about = {**found.about, "images": found.ids * 50}
        body = pack({"image_tokens": torch.randn(4, 1, WIDTH, generator=seeded())}, about)

        def ask():
            answers.append(Line(server.port).ask("POST", "/v1/query", body, MEDIA).status)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        for thread in threads:
            thread.join()
    finally:
        server.end()
    assert answers == [200] * 3 and time.monotonic() - start < 45
    assert "Traceback" not in before and server.log.read_text() == before


def test_a_charge_goes_when_all_tries_of_the_request_have_failed(tmp_path):
    """Else one that is sent twice at once, and fails once, would be answered for nothing."""
    ledger, account = Ledger(tmp_path / "ledger.sqlite"), Account(name="a", key="a" * 8, grants=())

    def charged():
        ledger.charge(account, "one", "digest", (2, 6))
        return used()

    def used():
        return tuple(
            ledger.usage(account)[name] for name in ("queries", "image_queries", "requests")
        )

    assert charged() == charged() == (2, 6, 1)
    ledger.refund(account, "one")
    assert used() == charged() == (2, 6, 1)
    for left in ((2, 6, 1), (0, 0, 0), (0, 0, 0)):
        ledger.refund(account, "one")
        assert used() == left
    assert not +ledger.charged


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(BlackBoxError, match="others may write to it: chmod 700"):
        build_service(parse_args(["--backbone", "tiny", "--state", str(tmp_path)]), [])


def test_accounts_take_turns():
    lane = Lane("test", threads=0, together=3)
    for owner, number in (("one", 0), ("one", 1), ("one", 2), ("two", 0)):
        lane.submit(Task(owner, lambda n=f"{owner} {number}": n))
    taken = [[task.call() for task in lane.take()] for _ in range(2)]
    assert taken == [["one 0", "two 0", "one 1"], ["one 2"]]
    lane.close()
    assert lane.take() == []


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


# Two accounts at one model, in this process


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    state = str(tmp_path_factory.mktemp("service") / "state")
    accounts = [Account(name=n, key=f"key-of-{n}", grants=GRANTS) for n in ("one", "two")]
    return build_service(parse_args(["--backbone", "tiny", "--state", state]), accounts)


@pytest.fixture(scope="module")
def post(service):
    """`post(path, body)`: the answer to account `one`."""
    with TestClient(build_app(service), headers={"Authorization": "Bearer key-of-one"}) as client:

        def ask(path, body):
            kind = {"Content-Type": MEDIA if isinstance(body, bytes) else "application/json"}
            content = body if isinstance(body, bytes) else json.dumps(body)
            return client.post(path, content=content, headers=kind)

        yield ask


@pytest.fixture
def about(service, post):
    """Names of three classes and an image."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    post("/v1/images", pack({"images": image}))
    classes = post("/v1/texts", {"names": ["a", "b", "c"]}).json()["id"]
    return {"images": Named(image).ids, "classes": classes}


def test_the_first_text_that_does_not_fit_ends_the_work(service, post, monkeypatch):
    asked, room = [], service.replica.room
    monkeypatch.setattr(service.replica, "room", lambda *given: asked.append(given) or room(*given))
    answer = post("/v1/texts", {"names": ["a " * 100, *map(str, range(5_000))]})
    assert answer.status_code == 422 and "Shorten" in answer.text and len(asked) == 1


def test_further_texts_are_scored_once_and_never_stand_beside_each_candidate(
    service, post, about, monkeypatch
):
    """200 candidates and 3,000 further texts: 300 MB where each candidate has its own features."""
    about["texts"] = post("/v1/texts", {"names": [f"{n}" for n in range(3_000)]}).json()["id"]
    contexts, sizes = torch.randn(200, 1, 128, generator=seeded()) * 0.04, []
    score = service.replica.oracle.score

    def scored(image, text):
        sizes.append(text.nbytes)
        return score(image, text)

    monkeypatch.setattr(service.replica.oracle, "score", scored)
    found, alone = (
        unpack(post("/v1/query", pack({"contexts": part}, about)).content)[0]["answer"]
        for part in (contexts, contexts[:1])
    )
    assert max(sizes) < 2**22 and found.shape == (200, 1, 3_003)
    assert (alone - found[:1]).abs().max() < 1e-4
    assert service.accounts.held.total() == 0


@pytest.mark.parametrize("further", [0, 4])
def test_a_question_costs_here_what_the_clients_meter_says(service, post, about, further):
    texts = Texts.of([f"more {n}" for n in range(further)])
    prompt = Prompt(torch.zeros(2, 1, 128), texts=texts if further else None)
    if further:
        about["texts"] = post("/v1/texts", {"names": texts.names}).json()["id"]
    meter, images = Meter(Random()), about["images"]
    meter.set_classes(["a", "b", "c"])
    meter.query(meter.upload(torch.zeros(1, 3, 32, 32)), prompt)
    meter.text_features(prompt)
    meter.image_features(meter.upload(torch.zeros(1, 3, 32, 32)))
    account = service.accounts.accounts[0]
    before = service.ledger.usage(account)
    for path, tensors, named in (
        ("/v1/query", prompt.tensors(), about),
        ("/v1/features/texts", prompt.tensors(), {**about, "images": []}),
        ("/v1/features/images", {}, {"images": images}),
    ):
        assert post(path, pack(tensors, named)).status_code == 200
    after = service.ledger.usage(account)
    for unit, count in meter.counts["training"].items():
        assert after[unit] - before[unit] == count


def test_what_nobody_waits_for_ends(service, post, about, monkeypatch):
    """A client that leaves ends its job between two parts; it stays charged."""
    monkeypatch.setattr("dassl_blackbox.serve.replica.TEXT_BYTES", 4 * 3 * 128)
    account, features = service.accounts.accounts[0], service.replica.features
    body = pack({"contexts": torch.randn(300, 1, 128, generator=seeded(1))}, about)
    begun, asked, before = threading.Event(), [], service.ledger.usage(account)["queries"]

    def counted(*given):
        asked.append(given)
        begun.set()
        time.sleep(0.01)
        return features(*given)

    monkeypatch.setattr(service.replica, "features", counted)

    async def leave():
        with service.accounts.visit(account) as visit:
            task = asyncio.ensure_future(service.answer("query", visit, "given", body))
            await asyncio.to_thread(begun.wait)
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(leave())
    time.sleep(0.1)
    assert 0 < len(asked) < 100
    assert service.ledger.usage(account)["queries"] == before + 300
    assert service.accounts.held.total() == 0
