"""The model behind HTTP: the same runs, the same bill, whatever the network does."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
import yaml
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
from proxy import disturbed
from served import KEY, serving
from support import (
    BLACK_BOX,
    REPO,
    accuracy,
    arguments,
    bill,
    build,
    run,
    test_logits,
    trained,
)

ADAPTED = ("TRAINER.CBBT.ADAPTER", "True", "TRAINER.CBBT.ADAPTER_EPOCH", "1")
UNITS = ("queries", "image_queries")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    state = tmp_path_factory.mktemp("server") / "state"
    with serving(state, "--grants", *GRANTS) as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BLACKBOX_KEY", KEY)


def remote(url, patience=20):
    return "ORACLE.URL", url, "ORACLE.PATIENCE", str(float(patience))


def usage(url, key=KEY):
    return httpx.get(f"{url}/v1/usage", headers={"Authorization": f"Bearer {key}"}).json()


def oracle(server, patience=5.0):
    return RemoteOracle(Http(server.url, 30, patience), torch.device("cpu"), "tiny", "a test")


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


@pytest.mark.parametrize("name", [*BLACK_BOX, "CBBT with its adapter"])
def test_a_run_over_http_is_the_run_in_process(name, server, data_root, budget, tmp_path):
    options = ADAPTED if "adapter" in name else ()
    name = name.split()[0]
    limit = ("OPTIM.MAX_EPOCH", 2) if name == "ZeroshotOracle" else budget(name, 4)
    if options:
        limit = ("ORACLE.MAX_QUERIES", 60)
    granted = ("ORACLE.GRANTS", str(GRANTS))
    local = trained(name, data_root, tmp_path / "local", *limit, *granted, *options)
    before = usage(server.url)
    far = trained(name, data_root, tmp_path / "far", *limit, *remote(server.url), *options)
    found = distance(far.learner.state_dict(), local.learner.state_dict())
    print(f"{name}: {found:.1e}")
    assert found < 1e-4
    assert used(server.url, before) == billed(tmp_path / "far") == billed(tmp_path / "local")
    assert (test_logits(far) - test_logits(local)).abs().max() < 1e-2


def test_the_client_imports_no_model(server, data_root, tmp_path):
    script = (
        "import sys, train\n"
        "status = train.main(train.parse_args(sys.argv[1:]))\n"
        "models = {'open_clip', 'timm', 'transformers'}\n"
        "print('imported:', sorted(models & set(sys.modules)))\n"
        "sys.exit(status)"
    )
    limit = "ORACLE.MAX_QUERIES", "20"
    given = arguments("ZIP", data_root, tmp_path, *limit, *remote(server.url))
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script, *given],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout and KEY not in done.stdout + done.stderr


# one that sends contexts, one that sends further texts and views, one changed pictures, one with
# image tokens, one that asks for features
@pytest.mark.parametrize("name", ["ZIP", "SONAR", "BlackVIP", "BPTVLM", "GDA"])
def test_whatever_the_network_does_the_run_and_its_bill_are_the_same(
    name, server, data_root, budget, tmp_path
):
    limit = budget(name, 10)
    still = trained(name, data_root, tmp_path / "still", *limit, *remote(server.url))
    with disturbed(server.port, share=0.5, seed=len(name)) as proxy:
        before = usage(server.url)
        far = trained(name, data_root, tmp_path / "far", *limit, *remote(proxy.url, 60))
        after = usage(server.url)
    assert distance(far.learner.state_dict(), still.learner.state_dict()) < 1e-6
    assert used(server.url, before) == billed(tmp_path / "far") == billed(tmp_path / "still")
    assert after["requests"] - before["requests"] == len(proxy.requests)
    assert sum(proxy.met.values()) > 5


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


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_client_that_is_killed_loses_what_is_stated_and_no_more(
    kills, server, data_root, tmp_path, budget
):
    limit, rng = budget("ZIP", 15 * kills), random.Random(kills)
    options = (*limit, *remote(server.url), "ORACLE.SAVE_EVERY", 20)
    command = [sys.executable, "train.py", *arguments("ZIP", data_root, tmp_path / "run", *options)]
    before, hard = usage(server.url), 0
    while True:
        with open(tmp_path / "log", "a") as out:
            life = subprocess.Popen(command, cwd=REPO, stdout=out, stderr=out)
        try:
            if hard < kills:
                deadline = time.monotonic() + 60
                asked = usage(server.url)["queries"]
                while usage(server.url)["queries"] == asked and life.poll() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                time.sleep(rng.uniform(0, 1))
                life.kill()
            status = life.wait(300)
        finally:
            life.kill()
        if status != -signal.SIGKILL:
            break
        hard += 1
    text = (tmp_path / "log").read_text()
    assert status in (0, 1), text
    # written ahead: a kill between the bill and the call leaves one call that was not made
    sent, counted = used(server.url, before)[0], billed(tmp_path / "run")[0]
    largest = max(20, counted // (15 * kills))
    assert hard and sent <= counted <= sent + hard * largest
    assert bill(tmp_path / "run")["training"]["queries"] <= int(limit[1])


@pytest.mark.long
def test_replicas_keep_one_ledger(data_root, tmp_path, budget):
    pytest.importorskip("ray", reason="no Ray is installed")
    limit = budget("SONAR", 4)
    near = trained("SONAR", data_root, tmp_path / "near", *limit)
    with serving(tmp_path / "state", "--replicas", "2") as server:
        with ThreadPoolExecutor(4) as pool:  # so that both are asked
            asked = [oracle(server, 30) for _ in range(4)]
            images = torch.randn(3, 3, 32, 32)

            def ask(one):
                one.set_classes(["one", "two"])
                return [one.query(one.upload(images), Prompt()) for _ in range(10)]

            answers = [answer for found in pool.map(ask, asked) for answer in found]
        assert all((answer - answers[0]).abs().max() < 1e-3 for answer in answers)
        assert usage(server.url)["queries"] == 40
        before = usage(server.url)
        far = trained("SONAR", data_root, tmp_path / "far", *limit, *remote(server.url))
        assert used(server.url, before) == billed(tmp_path / "far") == billed(tmp_path / "near")
    assert distance(far.learner.state_dict(), near.learner.state_dict()) < 1e-4


def test_a_server_that_lost_what_it_was_sent_is_sent_it_again(tmp_path, data_root):
    with serving(tmp_path / "one") as server:
        asked = oracle(server)
        asked.set_classes(["one", "two"])
        images = asked.upload(torch.randn(3, 3, 32, 32))
        first = asked.query(images, Prompt())
        server.end()
        server.state = tmp_path / "another"
        server.start()
        assert torch.equal(asked.query(images, Prompt()), first)


def test_pictures_of_8_bits_cross_as_such_and_others_as_they_are(server, data_root):
    asked = oracle(server)
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    pixels = normalised(pictures, asked.description)
    assert torch.equal(as_8bit(pixels, asked.description), pictures)
    assert torch.equal(as_8bit(pixels + 1e-4, asked.description), pixels + 1e-4)
    assert asked.upload(pixels).pixels.dtype == torch.uint8


def test_what_real_loaders_give_is_of_8_bits(data_root, tmp_path):
    trainer = build("ZIP", data_root, tmp_path)
    for batch in (next(iter(trainer.train_loader_x)), next(iter(trainer.test_loader))):
        assert as_8bit(batch["img"], trainer.description).dtype == torch.uint8


def test_keys_have_grants_budgets_rates_and_top_k(tmp_path, data_root, monkeypatch, capsys):
    keys = [
        {"name": "words", "key": "key-of-words", "grants": ["logits"], "top_k": 3},
        {"name": "poor", "key": "key-of-poor", "max_queries": 25},
        {"name": "slow", "key": "key-of-slow", "rate": 120},
    ]
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump(keys))
    path.chmod(0o600)
    with serving(tmp_path / "state", "--keys", path) as server:
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
        asked = oracle(server)
        asked.set_classes(["one", "two"])
        images = asked.upload(torch.randn(3, 3, 32, 32))
        for _ in range(2):
            asked.query(images, Prompt(torch.zeros(10, 1, 128)))
        with pytest.raises(RemoteBudgetSpent, match="20 of the 25 queries of this key are used"):
            asked.query(images, Prompt(torch.zeros(10, 1, 128)))
        assert usage(server.url, "key-of-poor")["queries"] == 20
        monkeypatch.setenv("BLACKBOX_KEY", "key-of-slow")
        asked, start = oracle(server, 30), time.monotonic()
        asked.set_classes(["one", "two"])
        images = asked.upload(torch.randn(3, 3, 32, 32))
        for _ in range(125):
            asked.query(images, Prompt())
        assert time.monotonic() - start > 2  # it waited as long as it was told, and went on
        monkeypatch.setenv("BLACKBOX_KEY", "another-key")
        assert run("ZIP", data_root, tmp_path / "none", *far) == 1
        said = capsys.readouterr().err
        assert "ORACLE.API and BLACKBOX_KEY." in said and "another-key" not in said


def test_what_a_server_refuses_is_not_on_the_bill(tmp_path, data_root, monkeypatch, capsys):
    """Another client of the key spends what was left for the third step when the run began."""
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump([{"name": "poor", "key": "key-of-poor", "max_queries": 35}]))
    monkeypatch.setenv("BLACKBOX_KEY", "key-of-poor")
    path.chmod(0o600)
    with serving(tmp_path / "state", "--keys", path) as server:
        other = oracle(server)
        other.set_classes(["one", "two"])
        images, epoch = other.upload(torch.randn(3, 3, 32, 32)), SearchTrainer.before_epoch

        def spend(trainer):
            other.query(images, Prompt(torch.zeros(10, 1, 128)))
            epoch(trainer)

        monkeypatch.setattr(SearchTrainer, "before_epoch", spend)
        given = "ORACLE.MAX_QUERIES", 30, *remote(server.url, 5)
        assert run("ZIP", data_root, tmp_path / "run", *given) == 0
        spent = usage(server.url, "key-of-poor")["queries"] - 10
    assert "refuses, since a budget is spent" in capsys.readouterr().out
    # two steps of 10; the third was refused; two batches of the test set
    assert spent == billed(tmp_path / "run")[0] == 22
    assert bill(tmp_path / "run")["training"]["queries"] == 20


def test_requests_of_several_clients_are_answered_together(server, data_root):
    def ask(number):
        asked = oracle(server)
        asked.set_classes(["one", "two", "three"])
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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("ORACLE.URL", "ftp://somewhere"), "http(s)://…, is expected"),
        (("ORACLE.URL", "http://127.0.0.1:9", "ORACLE.PATIENCE", "0.2"), "gave no answer within"),
        (("MODEL.BACKBONE.NAME", "ViT-B/16"), "holds 'tiny'"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(options, sentence, server, data_root, tmp_path, capsys):
    given = (*remote(server.url), *options)
    assert run("ZIP", data_root, tmp_path, *given) == 1
    assert sentence in capsys.readouterr().err


def test_a_foreign_server_is_told_from_ours(data_root, tmp_path, capsys):
    script = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    other = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = re.search(r"port (\d+)", other.stdout.readline())[1]
        assert run("ZIP", data_root, tmp_path, *remote(f"http://127.0.0.1:{port}", 2)) == 1
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert "/v1/description answers 404: " in (said := capsys.readouterr().err)
    assert "Check ORACLE.URL, ORACLE.API" in said


def test_a_local_run_goes_on_over_http(server, data_root, tmp_path, capsys):
    assert run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 40) == 0
    near = accuracy(capsys.readouterr().out)
    trainer = build("ZIP", data_root, tmp_path / "far", *remote(server.url))
    trainer.load_model(str(tmp_path))
    trainer.test()
    assert accuracy(capsys.readouterr().out) == near


def test_a_key_is_in_no_error(monkeypatch):
    monkeypatch.setenv("BLACKBOX_KEY", "ein Schlüssel")
    with pytest.raises(BlackBoxError, match="characters that no header can") as found:
        Http("http://127.0.0.1:9", 1, 1)
    assert "Schl" not in str(found.value)


def test_a_name_of_a_request_is_good_for_one_request(server):
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "one and the same"}
    asked = oracle(server)
    asked.set_classes(["one", "two"])
    images = asked.upload(torch.randn(3, 3, 32, 32))
    asked.query(images, Prompt())
    from dassl_blackbox.trainers.blackbox.oracle.wire import MEDIA, pack

    about = {"images": images.ids, "classes": asked.classes.id, "texts": None}
    before = usage(server.url)["requests"]
    bodies = [pack({}, about), pack({}, about), pack({}, {**about, "images": images.ids[:2]})]
    answers = [
        httpx.post(
            f"{server.url}/v1/query", content=body, headers={**headers, "Content-Type": MEDIA}
        )
        for body in bodies
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 422]
    assert answers[0].content == answers[1].content
    assert json.loads(answers[2].content)["error"]["code"] == "name_taken"
    assert usage(server.url)["requests"] == before + 1


def test_a_refusal_is_said_once(server):
    asked = oracle(server)
    asked.set_classes(["one"])
    with pytest.raises(Refused, match="finite"):
        asked.query(
            asked.upload(torch.randn(1, 3, 32, 32)), Prompt(torch.full((1, 1, 128), torch.nan))
        )
