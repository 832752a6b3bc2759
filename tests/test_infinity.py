"""The real Infinity over the embedded model, with `--services` alone.

INFINITY_VENV names the folder of a virtual environment for it, which is made where it is missing (a
download of a gigabyte): it wants other versions of packages.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl_blackbox import ScoreClassifier, listed
from dassl_blackbox.commands import draw
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict
from support import REPO, accuracy, bill, run

pytestmark = pytest.mark.services

PACKAGES = ["infinity-emb[server,torch]==0.0.78", "sentence-transformers<4", "pillow", "aiohttp"]
TORCH = "torch==2.13.0"  # a later one has no release of what Infinity pins beside it
KEY = "key-of-a-test-8c1f"
ACCURACY = {"Digits": "49.1%", "Letters": "41.5%", "Shapes": "56.2%"}


@pytest.fixture(scope="module")
def infinity(tmp_path_factory):
    """(URL, log) of the server."""
    folder, venv = tmp_path_factory.mktemp("infinity"), Path(os.environ["INFINITY_VENV"])
    if not (venv / "bin" / "infinity_emb").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        for packages in ([TORCH], PACKAGES):
            subprocess.run([venv / "bin" / "pip", "install", "-q", *packages], check=True)
    writer = [sys.executable, REPO / "tools" / "transformers_clip.py", folder / "model"]
    subprocess.run(writer, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        *(venv / "bin" / "infinity_emb", "v2", "--model-id", folder / "model"),
        *("--served-model-name", "tiny", "--engine", "torch", "--device", "cpu"),
        *("--host", "127.0.0.1", "--port", port, "--api-key", KEY),
        *("--no-bettertransformer", "--no-model-warmup"),
    ]
    # no telemetry, no look for a newer model
    alone = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    url, log = f"http://127.0.0.1:{port}", folder / "log.txt"
    how = {"env": {**os.environ, **alone}, "stderr": subprocess.STDOUT}
    with open(log, "ab") as out, subprocess.Popen(command, stdout=out, **how) as process:
        try:
            for _ in range(240):
                assert process.poll() is None, log.read_text()[-2000:]
                with suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=5)
                    break
                time.sleep(0.5)
            yield url, log
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BLACKBOX_KEY", KEY)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATASET.ROOT with the generated sets, whole."""
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(tmp_path_factory.mktemp("whole"))
    for name in ACCURACY:
        DATASET_REGISTRY.get(name)(cfg)
    return Path(cfg.DATASET.ROOT)


def at(infinity, cache="", **more):
    """Options of a run over the server, with the published numbers of images."""
    scale = embedded_state_dict("tiny")["logit_scale"].exp().item()
    given = {"URL": infinity[0], "API": "openai", "CACHE": cache, "LOGIT_SCALE": scale, **more}
    oracle = [part for key, value in given.items() for part in (f"ORACLE.{key}", str(value))]
    sizes = ["INPUT.SIZE", "(32, 32)", "INPUT.INTERPOLATION", "bicubic"]
    return [*oracle, *sizes, "DATASET.NUM_SHOTS", "16", "DATALOADER.TEST.BATCH_SIZE", "128"]


@pytest.mark.parametrize("name", ACCURACY)
def test_zero_shot_is_the_published_figure(infinity, root, tmp_path, capsys, name):
    assert run("ZeroshotOracle", root, tmp_path, *at(infinity), "DATASET.NAME", name) == 0
    assert accuracy(capsys.readouterr().out) == ACCURACY[name]


def test_sonar_is_the_published_figure_and_gda_asks_no_more(infinity, root, tmp_path, capsys):
    cache = tmp_path / "cache"
    options = [*at(infinity, cache), "TRAINER.SONAR.VIEWS", "4", "TRAINER.GDA.VIEWS", "4"]
    assert run("SONAR", root, tmp_path / "a", *options) == 0
    assert accuracy(capsys.readouterr().out) == "91.4%"
    assert bill(tmp_path / "a")["training"] == {"queries": 50, "image_queries": 800}
    before = infinity[1].read_text().count("POST /embeddings")
    assert run("GDA", root, tmp_path / "b", *options) == 0
    assert infinity[1].read_text().count("POST /embeddings") == before + 1


def test_what_it_refuses_is_a_sentence(infinity, root, tmp_path, capsys):
    assert run("ZeroshotOracle", root, tmp_path, *at(infinity, BATCH=33)) == 1
    said = capsys.readouterr().err
    assert "at most 32 items" in said and "ORACLE.BATCH" in said and len(said) < 1000


def test_a_classifier_s_quote_is_its_bill(infinity, root, tmp_path):
    draw(Namespace(folder=tmp_path, shots=16))
    words = at(infinity, PRICE=0.0001)[:-4]  # without those of Dassl's loaders
    options = dict(zip(words[::2], words[1::2]))
    clf = ScoreClassifier("tiny", template="a scan of a handwritten {}.", flip=False)
    clf.set_params(options=options, progress=False)
    quoted = clf.quote(tmp_path / "train")
    before = infinity[1].read_text().count("POST /embeddings")
    spent = clf.fit(tmp_path / "train").bill_
    assert spent.pop("tokens") > 0  # which it tells afterwards
    assert spent == quoted and quoted["pictures"] < 801
    assert quoted["calls"] == infinity[1].read_text().count("POST /embeddings") - before
    more = clf.quote(tmp_path / "new", purpose="predict")
    labels = clf.predict(tmp_path / "new")
    assert all(clf.bill_[name] == pytest.approx(spent[name] + more[name]) for name in spent)
    truth = [Path(path).stem[:-3] for path in listed(tmp_path / "new")]
    assert sum(a == b for a, b in zip(labels, truth)) > 160
