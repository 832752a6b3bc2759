"""What is kept of a service's answers, in a process and on disk, and when it is asked anew."""

import pickle
import sqlite3

import pytest
import torch
from dassl_blackbox.trainers.blackbox.oracle import Prompt
from dassl_blackbox.trainers.blackbox.oracle.wire import open_cache
from services import SCALE, TEXTS, local_logits, oracle_at
from support import difference


def asked(server, digits, cache, api="openai", **more):
    """Pictures that a new oracle sends."""
    before, oracle = server.pictures, oracle_at(server, cache=cache, api=api, **more)
    answer = oracle.query(oracle.upload(digits), Prompt())[0]
    if api == "openai":
        assert difference(answer, local_logits(digits, TEXTS)) < 1e-5
    return server.pictures - before


def test_answers_outlive_the_process_by_what_they_are_about(service, digits, tmp_path):
    server = service()
    first = asked(server, digits[:20], tmp_path)
    assert first > 10 and asked(server, digits[:20], tmp_path) == 0
    assert asked(server, digits[:20], tmp_path, LOGIT_SCALE=SCALE) == 0
    assert asked(server, digits[:20], "") == first
    scores = service("hf")
    assert asked(scores, digits[:20], tmp_path, "hf") == first - 1  # features: the first twice
    assert asked(scores, digits[:20], tmp_path, "hf") == 0


@pytest.mark.parametrize("noise", [False, True])
def test_a_folder_that_cannot_be_used_is_passed_over(service, digits, tmp_path, capsys, noise):
    folder = tmp_path / "cache"
    if noise:
        (folder / "answers").mkdir(parents=True)
        (folder / "answers" / "cache.db").write_bytes(b"noise" * 5000)
    else:
        folder.write_text("a file")
    assert asked(service(), digits[:3], folder) > 0
    assert f"Note: answers are not kept in ORACLE.CACHE, {folder} (" in capsys.readouterr().out


def test_home_is_the_home_folder(service, digits, monkeypatch, tmp_path):
    server = service()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert asked(server, digits[:3], "~/kept") > 0
    assert asked(server, digits[:3], tmp_path / "kept") == 0


def test_what_is_damaged_on_disk_is_as_what_is_missing(tmp_path):
    cache = open_cache(tmp_path)
    for name in "abc":
        cache[name] = name.encode()
    with sqlite3.connect(tmp_path / "cache.db") as database:
        database.execute("UPDATE Cache SET value = zeroblob(32) WHERE rowid = 1")
        loaded = sqlite3.Binary(pickle.dumps(Loaded(tmp_path / "loaded")))
        database.execute("UPDATE Cache SET value = ?, mode = 4 WHERE rowid = 2", (loaded,))
    fresh = open_cache(tmp_path)
    assert [fresh.get(name) or None for name in "abcd"] == [None, None, b"c", None]
    assert not (tmp_path / "loaded").exists()


class Loaded:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.write_text, ("x",)


def test_another_model_behind_the_name_is_asked_anew(service, digits, tmp_path, capsys):
    server = service()
    assert asked(server, digits[:3], tmp_path) > 0
    noise = torch.randn(128).tolist()
    server.faults = [(200, {}, {"data": [{"index": 0, "embedding": noise}]})]
    assert asked(server, digits[:3], tmp_path) > 0
    assert "no longer holds the tiny of ORACLE.CACHE" in capsys.readouterr().out
