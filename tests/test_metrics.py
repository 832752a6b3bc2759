"""`metrics.json`: the last result of each kind, as it was printed; what is damaged is not read."""

import json
import re

import pytest
from dassl_blackbox import results
from dassl_blackbox.runs import read_result
from dassl_blackbox.trainers.blackbox.record import NAME as METRICS
from finished import make, store
from support import OURS, TRAINED, bill, build, run, sentence


def stored(folder):
    return json.loads((folder / METRICS).read_text())


@pytest.mark.parametrize("name", OURS)
def test_metrics_are_what_was_printed(name, data_root, budget, tmp_path):
    folder = tmp_path / "seed1"
    steps = budget(name, 2, rest=1) if name in TRAINED else ("OPTIM.MAX_EPOCH", 1)
    assert run(name, data_root, folder, *steps) == 0
    log, (section,) = (folder / "log.txt").read_text(), stored(folder).values()
    printed = dict(re.findall(r"^\* (.*): ([\d,.]+)%?$", log, re.M))
    images, right = (int(printed[key].replace(",", "")) for key in ("total", "correct"))
    assert (section["split"], section["images"], section["seed"]) == ("test", images, 1)
    assert section["accuracy"] == 100 * right / images  # to the last digit
    for key, key_there in (("accuracy",) * 2, ("error_rate", "error"), ("macro_f1",) * 2):
        assert f"{section[key]:.1f}" == printed[key_there]
    if name in TRAINED:
        assert (section["steps"], section["ended_by"]) == (2, "budget")
        assert section["queries"]["lost"] == {"queries": 0, "image_queries": 0}
    here = read_result(folder)
    assert (here["trainer"], here["dataset"], here["backbone"]) == (name, "Digits", "tiny")
    assert here["access"] != "?" and (here["access"] == "weights") == (name == "WhiteBox")


def test_an_evaluation_leaves_the_result_of_training(data_root, budget, tmp_path):
    for name, folder in (("run", tmp_path / "run"), ("elsewhere", tmp_path / "elsewhere")):
        if name == "run":
            assert run("ZIP", data_root, folder, *budget("ZIP", 2)) == 0
            trained = stored(folder)["end_of_training"]
        flags = "--eval-only", "--model-dir", tmp_path / "run"
        for split in ("val", "test"):
            assert run("ZIP", data_root, folder, "TEST.SPLIT", split, flags=flags) == 0
            evaluated = stored(folder)["evaluation"]
            assert evaluated["split"] == split and evaluated["steps"] is None
            images = {"queries": evaluated["batches"], "image_queries": evaluated["images"]}
            assert evaluated["queries"]["test"] == images
            assert evaluated["queries"]["evaluation"] == bill(folder)["evaluation"]
        assert evaluated["accuracy"] == trained["accuracy"]
        assert stored(folder).get("end_of_training", trained) == trained
        assert read_result(folder)["training"] == 20


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
    assert not (tmp_path / METRICS).exists()


@pytest.mark.parametrize(
    "name, steps, resumed, ended",
    [
        ("ZIP", None, False, "epochs"),
        ("ZIP", 4, True, "budget"),
        ("WhiteBox", None, False, "epochs"),
        ("ZeroshotOracle", None, False, None),
    ],
)
def test_what_ended_a_run_and_how_long_it_took(
    name, steps, resumed, ended, data_root, budget, tmp_path
):
    options = budget(name, steps) if steps else ("OPTIM.MAX_EPOCH", 1)
    if resumed:
        build(name, data_root, tmp_path, *budget(name, 2)).train()
    for again in (False, True):  # where nothing is left to do
        build(name, data_root, tmp_path, *options).train()
        section = stored(tmp_path)["end_of_training"]
        assert section["ended_by"] == ended
        known = section["seconds"] is not None
        assert known == (name == "ZeroshotOracle" or not (resumed or again))


def test_a_result_that_cannot_be_written_is_an_error(data_root, tmp_path, capsys):
    (tmp_path / METRICS).mkdir()
    (tmp_path / METRICS / "x").write_text("")
    said = sentence(capsys, "ZeroshotOracle", data_root, tmp_path, flags=("--eval-only",))
    assert f"Could not write {tmp_path / METRICS}" in said


def test_metrics_stand_without_a_log(tmp_path, call):
    folder = store(make(tmp_path / "a" / "seed1"))
    for path in folder.iterdir():
        if path.name != METRICS:
            path.unlink()
    _, out, err = call(results.main, tmp_path, "--format", "csv")
    wanted = 'a,ZIP,contexts,1,70.0,"1,000",0,"8,000","1,000",100,60'
    assert out.splitlines()[1] == wanted and not err
