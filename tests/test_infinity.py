"""The real Infinity, a server of embeddings, over the embedded model.

Runs with `--services` alone. The environment variable INFINITY_VENV names the folder of a virtual
environment for it, which is made where it is missing (a download of a gigabyte, a few minutes):
Infinity wants other versions of packages than we do. DATA names the folder of data sets; where
`photos` is among them, that set is looked at as well.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict
from support import REPO, accuracy, bill, run

pytestmark = pytest.mark.services

PACKAGES = ["infinity-emb[server,torch]==0.0.78", "sentence-transformers<4", "pillow", "aiohttp"]
TORCH = "torch==2.13.0"  # a later one has no release of what Infinity pins beside it
KEY = "key-of-a-test-8c1f"
ACCURACY = {"Digits": "49.1%", "Letters": "41.5%", "Shapes": "56.2%", "ImageFolder": "35.3%"}
PHOTOS = Path(os.environ.get("DATA", "")) / "photos"
SETS = [name for name in ACCURACY if name != "ImageFolder" or (PHOTOS / "test").is_dir()]


def environment():
    """The folder of a virtual environment with Infinity."""
    if not os.environ.get("INFINITY_VENV"):
        pytest.fail("Set INFINITY_VENV to a folder for Infinity's virtual environment.")
    folder = Path(os.environ["INFINITY_VENV"])
    if not (folder / "bin" / "infinity_emb").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for packages in ([TORCH], PACKAGES):
            subprocess.run([folder / "bin" / "pip", "install", "-q", *packages], check=True)
    return folder


class Infinity:
    """The server's process; it can be ended and started again at its address."""

    def __init__(self, venv, model, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        self.command = [
            *(venv / "bin" / "infinity_emb", "v2", "--model-id", model),
            *("--served-model-name", "tiny", "--engine", "torch", "--device", "cpu"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--api-key", KEY),
            *("--no-bettertransformer", "--no-model-warmup"),
        ]
        self.start()

    def start(self):
        # no telemetry, no look for a newer model
        alone = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **alone}, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self):
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                time.sleep(0.5)
        pytest.fail(f"Infinity does not answer: {self.log.read_text()[-2000:]}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def infinity(tmp_path_factory):
    folder = tmp_path_factory.mktemp("infinity")
    writer = [sys.executable, REPO / "tools" / "transformers_clip.py", folder / "model"]
    subprocess.run(writer, check=True)
    server = Infinity(environment(), folder / "model", folder / "log.txt")
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BLACKBOX_KEY", KEY)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATASET.ROOT with the generated sets, whole."""
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(tmp_path_factory.mktemp("whole"))
    for name in SETS:
        if name != "ImageFolder":
            DATASET_REGISTRY.get(name)(cfg)
    return Path(cfg.DATASET.ROOT)


def at(server, cache="", **more):
    """Options of a run over the server, with the published numbers of images."""
    scale = embedded_state_dict("tiny")["logit_scale"].exp().item()
    given = {"URL": server.url, "API": "openai", "CACHE": cache, "LOGIT_SCALE": scale, **more}
    oracle = [part for key, value in given.items() for part in (f"ORACLE.{key}", str(value))]
    sizes = ["INPUT.SIZE", "(32, 32)", "INPUT.INTERPOLATION", "bicubic"]
    return [*oracle, *sizes, "DATASET.NUM_SHOTS", "16", "DATALOADER.TEST.BATCH_SIZE", "128"]


@pytest.mark.parametrize("name", SETS)
def test_zero_shot_is_the_published_figure(infinity, root, tmp_path, capsys, name):
    folder = PHOTOS if name == "ImageFolder" else root
    options = [*at(infinity), "DATASET.NAME", name]
    assert run("ZeroshotOracle", folder, tmp_path, *options) == 0
    assert accuracy(capsys.readouterr().out) == ACCURACY[name]


def test_sonar_is_the_published_figure_and_gda_asks_no_more(infinity, root, tmp_path, capsys):
    options, cache = ("TRAINER.SONAR.VIEWS", "4"), tmp_path / "cache"
    assert run("SONAR", root, tmp_path / "a", *at(infinity, cache), *options) == 0
    assert accuracy(capsys.readouterr().out) == "92.4%"
    assert bill(tmp_path / "a")["training"] == {"queries": 50, "image_queries": 800}
    infinity_log = infinity.log.read_text().count("POST /embeddings")
    options = ("TRAINER.GDA.VIEWS", "4")
    assert run("GDA", root, tmp_path / "b", *at(infinity, cache), *options) == 0
    assert infinity.log.read_text().count("POST /embeddings") == infinity_log + 1


def test_a_server_that_is_ended_and_started_again_is_waited_for(infinity, root, tmp_path, capsys):
    def restart():
        time.sleep(2)
        infinity.stop()
        infinity.start()

    thread = threading.Thread(target=restart)
    thread.start()
    assert run("ZeroshotOracle", root, tmp_path, *at(infinity, BATCH=1)) == 0
    thread.join()
    assert accuracy(capsys.readouterr().out) == ACCURACY["Digits"]


def test_more_pictures_than_it_takes_are_a_sentence(infinity, root, tmp_path, capsys):
    assert run("ZeroshotOracle", root, tmp_path, *at(infinity, BATCH=33)) == 1
    said = capsys.readouterr().err
    assert "at most 32 items" in said and "ORACLE.BATCH" in said and len(said) < 1000


def test_a_wrong_key_is_a_sentence(infinity, root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BLACKBOX_KEY", "another")
    assert run("ZeroshotOracle", root, tmp_path, *at(infinity)) == 1
    assert "401: Unauthorized" in capsys.readouterr().err
