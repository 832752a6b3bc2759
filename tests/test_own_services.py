"""A service by a class of one's own: it runs as others do, and what is none is a sentence."""

import re

import pytest
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from services import at, oracle_at
from support import REPO, accuracy, bill, build, run

OWN = """
import base64
import torch
from dassl_blackbox.trainers.blackbox.oracle.services import FeatureService

class Mine(FeatureService):
    def embed_texts(self, texts):
        return self.post("/embeddings", {"input": texts, "modality": "text"}, rows)
    def embed_images(self, pictures):
        coded = ["data:image/png;base64," + base64.b64encode(png).decode() for png in pictures]
        return self.post("/embeddings", {"input": coded, "modality": "image"}, rows)

def rows(body):
    return torch.tensor([entry["embedding"] for entry in body["data"][::-1]])
"""


def test_a_service_of_ones_own(service, data_root, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_service_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for options in ((), at(service(), api="my_service_of_a_test:Mine")):
        assert run("ZeroshotOracle", data_root, tmp_path / str(len(found)), *options) == 0
        found.append(accuracy(capsys.readouterr().out))
    assert found[0] == found[1]


def test_the_backend_of_the_guide(data_root, tmp_path, monkeypatch, capsys):
    guide = (REPO / "docs" / "REMOTE.md").read_text()
    code = re.search(r"```python\n(# my_backend.py.*?)```", guide, re.S)[1]
    (tmp_path / "my_backend.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("ORACLE.API", "my_backend:MyBackend", "INPUT.SIZE", "(32, 32)")
    out = tmp_path / "out"
    views = "TRAINER.SONAR.VIEWS", "1", "MODEL.BACKBONE.NAME", "mine"
    assert run("SONAR", data_root, out, *options, *views) == 0
    said = capsys.readouterr().out
    assert float(accuracy(said)[:-1]) > 10 and bill(out)["training"]["queries"] > 0
    assert "no effect" not in said
    assert run("ZIP", data_root, tmp_path / "zip", *options) == 1
    assert "asked for 'contexts'" in capsys.readouterr().err


CUT = """
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import TopK

def oracle(cfg, device, client):
    return TopK(LocalOracle(load_model("tiny"), ("logits",), client), 3)
"""


def test_answers_that_are_cut_unannounced_cost_no_more_than_was_told(
    data_root, tmp_path, monkeypatch
):
    """Without ORACLE.TOP_K; then evaluation asks about all texts, not about half of them."""
    (tmp_path / "cut_model_of_a_test.py").write_text(CUT)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = "ORACLE.API", "cut_model_of_a_test:oracle", "TRAINER.SONAR.VIEWS", 1
    trainer = build("SONAR", data_root, tmp_path / "out", *options)
    told = trainer.evaluation(["test"])
    trainer.train()
    assert len(trainer.head.kept) == 40  # all of them
    spent = bill(tmp_path / "out")["evaluation"]
    assert told == trainer.evaluation(["test"]) == (spent["queries"], spent["image_queries"])


@pytest.mark.parametrize(
    "api, words",
    [
        ("no_such_module:Mine", "no_such_module:Mine is not found"),
        ("json:Mine", "json:Mine is not found"),
    ],
)
def test_a_class_that_is_no_service_is_a_sentence(service, api, words):
    with pytest.raises(BlackBoxError, match=words):
        oracle_at(service(), api=api)
