"""What is kept of a service's answers, in a process and on disk, and when it is asked anew."""

import pickle
import sqlite3

import pytest
import torch
from dassl_blackbox.trainers.blackbox.oracle import Prompt
from dassl_blackbox.trainers.blackbox.oracle import cache as module
from dassl_blackbox.trainers.blackbox.oracle.cache import AnswerCache
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


@pytest.mark.parametrize("what", ["a file", "a database of noise", "no package"])
def test_a_folder_that_cannot_be_used_is_passed_over(
    service, digits, tmp_path, capsys, monkeypatch, what
):
    folder = tmp_path / "cache"
    if what == "a file":
        folder.write_text("x")
    elif what == "a database of noise":
        (folder / "answers").mkdir(parents=True)
        (folder / "answers" / "cache.db").write_bytes(b"noise" * 5000)
    else:
        monkeypatch.setitem(__import__("sys").modules, "diskcache", None)
    assert asked(service(), digits[:3], folder) > 0
    assert f"Note: answers are not kept in ORACLE.CACHE, {folder} (" in capsys.readouterr().out


def row(number):
    return torch.full((4,), float(number))


def test_home_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    AnswerCache("~/kept", "a model").put(row(1), "a")
    assert torch.equal(AnswerCache(str(tmp_path / "kept"), "a model").get("a"), row(1))


def test_what_is_damaged_on_disk_is_as_what_is_missing(tmp_path):
    file = tmp_path / "answers" / "cache.db"
    for i, name in enumerate("abc"):
        AnswerCache(str(tmp_path), "a model").put(row(i), name)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE Cache SET value = zeroblob(32) WHERE rowid = 1")
        loaded = sqlite3.Binary(pickle.dumps(Loaded(tmp_path / "loaded")))
        database.execute("UPDATE Cache SET value = ?, mode = 4 WHERE rowid = 2", (loaded,))
    fresh = AnswerCache(str(tmp_path), "a model")
    assert [fresh.get(name) is not None for name in "abcd"] == [False, False, True, False]
    assert torch.equal(fresh.get("c"), row(2)) and not (tmp_path / "loaded").exists()


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
    assert "no longer answers about tiny as ORACLE.CACHE has it" in capsys.readouterr().out


def test_what_is_kept_in_a_process_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "KEPT", 3)
    answers = AnswerCache("", "a model")
    for i in range(5):
        answers.put(row(i), "text", str(i))
    kept = [i for i in range(5) if answers.get("text", str(i)) is not None]
    assert kept == [2, 3, 4]
    assert answers.get("image", "4") is None
