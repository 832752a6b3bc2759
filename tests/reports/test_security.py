"""What is read is never run, and secrets stay secret."""

import hashlib
import os
import pickle
import sqlite3
from types import SimpleNamespace

import pytest
import torch
from dassl_blackbox.serve import __main__ as serve
from dassl_blackbox.serve.replica import Contents
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import load_state, save_state, write_atomically
from dassl_blackbox.trainers.blackbox.openclip import models
from support import run, sentence
from torch import nn


class Planted:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Script(nn.Module):
    """TorchScript that overwrites a file when it is read."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self):
        return 0

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state[0], state[1]
        torch.from_file(state[0], shared=True, size=4, dtype=torch.float32).zero_()


def test_torchscript_is_not_run_unless_its_sha_256_is_openais(tmp_path, capsys, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "model.pt"
    torch.jit.script(Script(str(victim))).save(str(path))
    victim.write_bytes(b"precious" * 4)
    for arch in ("", "ViT-B-32-quickgelu:"):
        name = "MODEL.BACKBONE.NAME", f"{arch}{path}"
        said = sentence(capsys, "SONAR", tmp_path, tmp_path / "out", *name)
        assert "TorchScript" in said and f'torch.jit.load("{path}"' in said
    assert victim.read_bytes() == b"precious" * 4 and not models.is_openais(path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(models, "get_pretrained_url", lambda *_: f"https://x/{sha}/ViT-B-32.pt")
    assert models.is_openais(path)


def test_a_checkpoint_of_cma_es_holds_no_pickle(data_root, tmp_path, capsys):
    small = "TRAINER.CRAFT.HEAD", "False", "ORACLE.MAX_QUERIES"
    assert run("CraFT", data_root, tmp_path / "out", *small, 12) == 0
    (path,) = (tmp_path / "out" / "prompt_learner").glob("model.pth.tar-*")
    state = load_state(path)
    planted = pickle.dumps(Planted(tmp_path / "made"))
    state["optimizer"]["history"] = torch.frombuffer(bytearray(planted), dtype=torch.uint8)
    save_state(path, state)
    assert "train anew" in sentence(capsys, "CraFT", data_root, tmp_path / "out", *small, 24)
    assert not (tmp_path / "made").exists()


def test_the_cache_of_a_server_unpickles_nothing(tmp_path):
    about, folder = SimpleNamespace(image_size=(2, 2)), tmp_path / "contents"
    contents = Contents(folder, 2**20, about, ["me"])
    contents.put_images("me", ["a"], torch.zeros(1, 3, 2, 2))
    contents.caches["me"].close()
    planted = pickle.dumps(Planted(tmp_path / "made"))
    (own,) = folder.iterdir()
    with sqlite3.connect(own / "cache.db") as db:
        db.execute("UPDATE Cache SET mode = 4, value = ?", (planted,))
    assert Contents(folder, 2**20, about, ["me"]).image("me", "a") is None
    assert not (tmp_path / "made").exists()
    assert own.stat().st_mode & 0o077 == folder.stat().st_mode & 0o077 == 0


def test_no_draft_goes_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".bill.json.tmp").symlink_to(victim)
    write_atomically(tmp_path / "bill.json", b"new")
    assert victim.read_text() == "precious" and (tmp_path / "bill.json").read_text() == "new"
    assert not (tmp_path / "bill.json").is_symlink()


SECRET = "s3cr3t-of-somebody"
FINE = "- {name: a, key: another-key}\n"
LINES = [
    f"- {{name: me, key: {SECRET}",
    f"- {{name: me, {SECRET}: 1, {SECRET}: 2}}",
    f"- {{name: me, key: *{SECRET}}}",
    f"- {{name: me, key: !{SECRET} a}}",
    f"- {{{SECRET}: me}}",
    f"- {{name: {SECRET}, key: me}}",
    f"- {{name: me, key: '{SECRET} '}}",
    f"- {{name: {SECRET}, key: {SECRET}, grants: all}}",
    *(f"- {{name: a, key: a-long-key, {of}: {SECRET}}}" for of in ("grants", "rate", "metrics")),
]


def test_no_error_quotes_keys_and_no_file_of_them_may_be_read_by_others(tmp_path, monkeypatch):
    def refused(content, mode=0o600):
        path = tmp_path / "keys.yaml"
        path.write_text(content)
        path.chmod(mode)
        arguments = ["--backbone", "tiny", "--port", "0", "--keys", str(path)]
        with pytest.raises(BlackBoxError) as caught:
            serve.main([*arguments, "--state", str(path)])  # no folder: it never comes to serve
        assert SECRET not in str(caught.value)
        return str(caught.value)

    for line in LINES:
        assert "keys.yaml, line " in refused(FINE + line), line
    for mode in (0o644, 0o640, 0o604):
        assert "chmod 600" in refused(FINE, mode)
    monkeypatch.setenv("BLACKBOX_KEYS", SECRET)
    assert "Entry 1 of BLACKBOX_KEYS" in refused(FINE)
