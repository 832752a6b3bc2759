"""`metrics.json`: the last result of each kind, as it was printed; what is damaged is not read."""

import json
import re

import parse_test_res
import pytest
from dassl_blackbox import results
from dassl_blackbox.runs import is_finished, read_result
from dassl_blackbox.trainers.blackbox.record import NAME as METRICS
from finished import DAMAGE, TOOLS, damaged, make, store
from support import TRAINED, bill, build, run, trained


def stored(folder):
    return json.loads((folder / METRICS).read_text())


@pytest.mark.parametrize("name", ["ZIP", "GDA", "ZeroshotOracle", "WhiteBox"])
def test_metrics_are_what_was_printed(name, data_root, budget, tmp_path):
    folder = tmp_path / "seed1"
    steps = budget(name, 2, rest=1) if name in TRAINED else ("OPTIM.MAX_EPOCH", 1)
    assert run(name, data_root, folder, *steps) == 0
    (section,) = stored(folder).values()
    printed = dict(re.findall(r"^\* (.*): ([\d,.]+)%?$", (folder / "log.txt").read_text(), re.M))
    images, right = (int(printed[key].replace(",", "")) for key in ("total", "correct"))
    assert (section["split"], section["images"], section["seed"]) == ("test", images, 1)
    assert section["accuracy"] == 100 * right / images  # to the last digit
    for key, word in {
        "accuracy": "accuracy",
        "error_rate": "error",
        "macro_f1": "macro_f1",
    }.items():
        assert f"{section[key]:.1f}" == printed[word]
    if name in TRAINED:
        assert (section["steps"], section["ended_by"]) == (2, "budget")
        assert section["queries"]["lost"] == {"queries": 0, "image_queries": 0}
    found = read_result(folder)
    assert (found.trainer, found.dataset, found.backbone) == (name, "Digits", "tiny")
    assert (found.shots, found.classes) == (3, "all")
    wanted = {"ZIP": "contexts", "GDA": "features", "WhiteBox": "weights"}
    assert found.access == wanted.get(name, "words") and is_finished(folder)


def test_an_evaluation_leaves_the_result_of_training(data_root, budget, tmp_path):
    there, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert run("ZIP", data_root, there, *budget("ZIP", 2)) == 0
    trained = stored(there)["end_of_training"]
    for folder in (there, elsewhere):
        for split in ("val", "test"):
            flags = "--eval-only", "--model-dir", there
            assert run("ZIP", data_root, folder, "TEST.SPLIT", split, flags=flags) == 0
            evaluated = stored(folder)["evaluation"]
            assert evaluated["split"] == split and evaluated["steps"] is None
            images = {"queries": evaluated["batches"], "image_queries": evaluated["images"]}
            assert evaluated["queries"]["test"] == images
            assert evaluated["queries"]["evaluation"] == bill(folder)["evaluation"]
        assert evaluated["accuracy"] == trained["accuracy"]
        assert read_result(folder).counts["training"]["queries"] == 20
    assert stored(there)["end_of_training"] == trained


def test_a_look_at_val_is_no_result(data_root, budget, tmp_path):
    """And neither is what a run had reached that goes on, and crashes."""
    options = "ORACLE.VAL_EVERY", 1, "TEST.FINAL_MODEL", "best_val"
    trainer = build("ZIP", data_root, tmp_path, *budget("ZIP", 4), *options)
    looks, test = [], trainer.test

    def looked(split=None):
        result = test(split)
        looks.append((split, (tmp_path / METRICS).exists()))
        return result

    trainer.test = looked
    trainer.train()
    assert len(looks) > 4 and looks == [("val", False)] * (len(looks) - 1) + [(None, True)]
    assert stored(tmp_path)["end_of_training"]["split"] == "test"
    further = build("ZIP", data_root, tmp_path, *budget("ZIP", 8), *options)
    further.forward_backward = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        further.train()
    assert not (tmp_path / METRICS).exists() and read_result(tmp_path) is None


@pytest.mark.parametrize(
    "name, steps, ended", [("ZIP", 0, "epochs"), ("ZIP", 4, "budget"), ("ZeroshotOracle", 0, None)]
)
def test_what_ended_a_run_and_how_long_it_took(name, steps, ended, data_root, budget, tmp_path):
    options = budget(name, steps) if steps else ("OPTIM.MAX_EPOCH", 1)
    if steps:
        trained(name, data_root, tmp_path, *budget(name, 2))
    for again in (False, True):  # where nothing is left to do
        trained(name, data_root, tmp_path, *options)
        section = stored(tmp_path)["end_of_training"]
        assert section["ended_by"] == ended
        known = name == "ZeroshotOracle" or not (steps or again)
        assert (section["seconds"] is not None) == known


def test_a_result_that_cannot_be_written_is_a_note(data_root, tmp_path, call):
    (tmp_path / METRICS).mkdir()
    (tmp_path / METRICS / "x").write_text("")
    assert run("ZeroshotOracle", data_root, tmp_path, flags=("--eval-only",)) == 0
    note = f"Note: {tmp_path / METRICS} could not be written \\(.*the result is in the log"
    assert re.search(note, (tmp_path / "log.txt").read_text())
    status, out, err = call(results.main, tmp_path)
    assert status == 0 and "ZeroshotOracle" in out and err.startswith("note: ")


@pytest.mark.parametrize("name", ["results", "parse_test_res", "shots"])
def test_damaged_metrics_are_a_note_and_the_log_is_read(sound, call, name):
    main, *arguments = TOOLS[name][1](sound)
    folder = sound / "ZIP_16shots" / "seed1"
    expected = call(main, *arguments)
    text = store(folder).joinpath(METRICS).read_text()
    replaced = {
        **{"no accuracy": ("accuracy", "precision"), "out of range": ("70.04", "170")},
        **{"no number": ("70.04", "NaN"), "true": ("70.04", "true")},
        **{"no bill": ("image_queries", "images"), "no counts": ("8000", "-1")},
    }
    damages = {what: text.replace(*pair).encode() for what, pair in replaced.items()}
    damages |= {"a list": b"[1]", "deep": b"[" * 5000, "no sections": b'{"end_of_training": 3}'}
    for what, how in {**damages, **DAMAGE}.items():
        damaged(folder / METRICS, how)
        status, out, err = call(main, *arguments)
        assert (status, out) == expected[:2], what
        assert (METRICS in err) == (main is not parse_test_res.main), (what, err)
        if what == "a folder":
            (folder / METRICS).rmdir()
            (folder / METRICS).touch()


def test_metrics_stand_without_a_log_and_odd_values_are_not_known(tmp_path, call):
    names = "trainer", "access", "dataset", "shots", "batches", "seconds"
    store(make(tmp_path / "a" / "seed1"), **{name: {} for name in names})
    store(make(tmp_path / "b" / "seed1"), access=["logits", "telepathy"], queries=None)
    for path in store(make(tmp_path / "c" / "seed1")).iterdir():
        if path.name != METRICS:
            path.unlink()
    _, out, err = call(results.main, tmp_path, "--format", "csv")
    first, second, third = sorted(out.splitlines()[1:])
    assert first.startswith("a,?,?,1,70.0,") and second.startswith("b,ZIP,?,1,70.0,")
    assert third == 'c,ZIP,contexts,1,70.0,"1,000",0,"8,000","1,000",100,60' and not err
