"""The model behind HTTP: the same runs, the same bill, whatever the network does."""

import asyncio
import json
import random
import re
import resource
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
import torch
from dassl_blackbox.serve.__main__ import parse_args
from dassl_blackbox.serve.access import Account, Ledger
from dassl_blackbox.serve.application import build_app
from dassl_blackbox.serve.replica import Contents, Lane, Task
from dassl_blackbox.serve.service import build_service
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import GRANTS, Meter, Prompt, Texts
from dassl_blackbox.trainers.blackbox.oracle.services import Http, RemoteBudgetSpent, RemoteOracle
from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, as_8bit, normalised, pack, unpack
from dassl_blackbox.trainers.blackbox.oracle.wire import Contents as Named
from dassl_blackbox.trainers.blackbox.search import SearchTrainer
from served import KEY, WIDTH, Line, Served, serving, write_keys
from starlette.testclient import TestClient
from support import (
    BLACK_BOX,
    Random,
    accuracy,
    arguments,
    bill,
    build,
    process,
    run,
    seeded,
    sentence,
    test_logits,
    trained,
)

UNITS = ("queries", "image_queries")
ADAPTED = ("TRAINER.CBBT.ADAPTER", "True", "TRAINER.CBBT.ADAPTER_EPOCH", "1")
# contexts and image tokens; further texts and views; changed pictures; features
KINDS = {"SONAR", "BlackVIP", "BPTVLM", "CBBT with its adapter"}
FAULTS = ("refused", "lost", "garbage", "spoilt", "duplicated", "500", "503", "429")


def spoilt(body, rng):
    i = rng.randrange(len(body) or 1)
    return body and body[:i] + bytes([body[i] ^ 0x55]) + body[i + 1 :]


def faulty(patch, seed):
    """From now on half of what httpx sends meets a fault: those met, and names of requests."""
    rng, met, names = random.Random(seed), Counter(), set()
    send = httpx.HTTPTransport.handle_request

    def handle(transport, request):
        if request.method == "POST" and request.url.path != "/v1/images":
            names.add(request.headers.get("Idempotency-Key"))
        fault = rng.choice(FAULTS) if rng.random() < 0.5 else ""
        met[fault] += 1
        if fault == "refused":
            raise httpx.ConnectError(fault)
        if fault.isdigit():
            again = {"Retry-After": "0.05"} if fault != "500" else {}
            return httpx.Response(int(fault), headers=again, stream=httpx.ByteStream(b""))
        if fault == "spoilt":
            head = {"headers": request.headers, "content": spoilt(request.read(), rng)}
            request = httpx.Request(request.method, request.url, **head)
        if fault == "duplicated":
            send(transport, request).read()
        answer = send(transport, request)
        body = answer.read()
        if fault == "lost":
            raise httpx.ReadError(fault)
        body = httpx.ByteStream(spoilt(body, rng) if fault == "garbage" else body)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=body)

    patch.setattr(httpx.HTTPTransport, "handle_request", handle)
    return met, names


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
    name, server, data_root, budget, tmp_path, monkeypatch
):
    options = ADAPTED if "adapter" in name else ()
    name = name.split()[0]
    limit = ("ORACLE.MAX_QUERIES", 60) if options else ("OPTIM.MAX_EPOCH", 2)
    if not options and name != "ZeroshotOracle":
        limit = budget(name, 6)
    granted = ("ORACLE.GRANTS", str(GRANTS))
    local = trained(name, data_root, tmp_path / "local", *limit, *granted, *options)
    before = usage(server.url)
    with monkeypatch.context() as patch:
        met, names = faulty(patch, seed=len(name))
        far = trained(name, data_root, tmp_path / "far", *limit, *remote(server.url, 60), *options)
    assert distance(far.learner.state_dict(), local.learner.state_dict()) < 1e-4
    assert used(server.url, before) == billed(tmp_path / "far") == billed(tmp_path / "local")
    assert usage(server.url)["requests"] - before["requests"] == len(names - {None})
    assert met.total() - met[""] > 1
    assert (test_logits(far) - test_logits(local)).abs().max() < 1e-2


def test_the_client_imports_no_model(server, data_root, tmp_path):
    (tmp_path / "client.py").write_text(
        "import sys, train\n"
        "status = train.main(train.parse_args(sys.argv[1:]))\n"
        "print('imported:', sorted({'open_clip', 'timm', 'transformers'} & set(sys.modules)))\n"
        "sys.exit(status)"
    )
    given = arguments("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 20, *remote(server.url))
    done = process(tmp_path / "client.py", *given)
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout and KEY not in done.stdout + done.stderr


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_server_that_is_killed_and_started_again_is_waited_for(
    kills, data_root, tmp_path, budget
):
    """And one that lost what it was sent is sent it again."""
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
        asked = oracle(server)
        images = asked.upload(torch.randn(3, 3, 32, 32))
        first = asked.query(images, Prompt())
        server.end()
        server.state = tmp_path / "another"
        server.start()
        assert torch.equal(asked.query(images, Prompt()), first)


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
        assert run("SONAR", data_root, tmp_path / "top", *far) == 1
        assert "with ORACLE.TOP_K 3, not 'tiny' with 0" in capsys.readouterr().err
        answers = []
        for where in ((), far):
            out = tmp_path / f"top{len(where)}"
            top = trained("SONAR", data_root, out, *where, "ORACLE.TOP_K", 3)
            answers.append(top.learner.state_dict())
        assert distance(*answers) < 1e-3
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


def test_requests_of_several_clients_are_answered_together(server):
    def ask(number):
        asked = oracle(server, classes=("one", "two", "three"))
        generator = torch.Generator().manual_seed(number % 4)
        images = asked.upload(torch.randn(5, 3, 32, 32, generator=generator))
        contexts = torch.randn(6, 2, 128, generator=generator) * 0.04
        return torch.stack([asked.query(images, Prompt(contexts * (1 + i))) for i in range(20)])

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(12)))
    for number, answers in enumerate(together):
        assert (answers - ask(number)).abs().max() < 1e-3
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    batches = re.search(r"^blackbox_batches (.*)", text, re.M)
    asked = re.search(r'^blackbox_requests_total\{path="/v1/query",status="200"\} (.*)', text, re.M)
    assert 0 < float(batches[1]) < float(asked[1])


def test_a_server_of_another_model_is_refused(server, data_root, tmp_path, capsys):
    another = *remote(server.url), "MODEL.BACKBONE.NAME", "ViT-B/16"
    assert "holds 'tiny'" in sentence(capsys, "ZIP", data_root, tmp_path, *another)


def test_a_local_run_goes_on_over_http(server, data_root, tmp_path, capsys):
    assert run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 40) == 0
    near = accuracy(capsys.readouterr().out)
    trainer = build("ZIP", data_root, tmp_path / "far", *remote(server.url))
    trainer.load_model(str(tmp_path))
    trainer.test()
    assert accuracy(capsys.readouterr().out) == near


# What a server keeps


def test_a_disk_that_is_full_is_a_sentence_and_a_stop_answers_what_has_come(tmp_path):
    """No file may grow: the server says so, bills nothing, and goes on when there is room."""
    with serving(tmp_path / "state", "--keys", write_keys(tmp_path), keys="") as server:
        kept = [*tmp_path.glob("state/*"), *tmp_path.glob("state/*/*")]
        assert kept and not any(path.stat().st_mode & 0o077 for path in kept)  # the owner's alone
        found, pid, limit = Served(server), server.process.pid, resource.RLIMIT_FSIZE
        usage, sent = found.usage(), pack({"images": torch.randn(40, 3, 32, 32)})
        resource.prlimit(pid, limit, (1, resource.RLIM_INFINITY))
        for path, body in (
            ("/v1/images", sent),
            ("/v1/texts", json.dumps({"names": ["new"]}).encode()),
            ("/v1/query", found.question),
        ):
            head = {"Authorization": "Bearer key-of-full", "Content-Type": MEDIA}
            answer = found.line.send("POST", path, body, head)
            assert answer.status == 503 and b'"storage"' in answer.body, answer.body
            assert "retry-after" in answer.headers and b"/" not in answer.body
        resource.prlimit(pid, limit, (resource.RLIM_INFINITY,) * 2)
        assert found.usage() == usage
        found.right()
        assert found.post("/v1/images", sent).status == 200
        before = server.log.read_text()
        about = {**found.about, "images": found.ids * 50}
        body = pack({"image_tokens": torch.randn(4, 1, WIDTH, generator=seeded())}, about)
        question = "POST", "/v1/query", body, MEDIA
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(Line(server.port).ask, *question) for _ in range(3)]
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(45) in (0, -signal.SIGTERM)
            assert [answer.result().status for answer in asked] == [200] * 3
        assert server.log.read_text() == before


def test_a_charge_goes_when_all_tries_of_the_request_have_failed(tmp_path):
    """Else one that is sent twice at once, and fails once, would be answered for nothing."""
    ledger, account = Ledger(tmp_path / "ledger.sqlite"), Account(name="a", key="a" * 8, grants=())

    def used():
        found = ledger.usage(account)
        return found["queries"], found["image_queries"], found["requests"]

    def charged():
        ledger.charge(account, "one", "digest", (2, 6))
        return used()

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
            if not isinstance(body, bytes):
                return client.post(path, json=body)
            return client.post(path, content=body, headers={"Content-Type": MEDIA})

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
