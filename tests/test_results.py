"""What runs leave in `metrics.json`, and what tables and plots make of it; damage is said."""

import csv
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys

import parse_test_res
import pytest
from dassl_blackbox import plots, results
from dassl_blackbox.results import read_result
from finished import ACCESS, CURVE, DAMAGE, METRICS, OWN, TOOLS, damaged, make, store
from PIL import Image
from support import REPO, TRAINED, bill, build, printed, run, sentence

import interpret_prompt


def rows_of(call, *args):
    """(headers, rows by their first cell, stderr) of a table as CSV."""
    _, out, err = call(results.main, *args, "--format", "csv")
    headers, *rows = csv.reader(io.StringIO(out))
    return headers, {row[0]: row[1:] for row in rows}, err


# What is read


def test_a_table_has_what_real_runs_left(runs, call):
    _, rows, _ = rows_of(call, runs)
    values = [
        json.loads((runs / "ZIP" / seed / METRICS).read_text())["end_of_training"]["accuracy"]
        for seed in ("seed1", "seed2")
    ]
    mean, error = statistics.mean(values), statistics.stdev(values) / 2**0.5
    accuracy = f"{mean:.1f} ± {error:.1f}"
    assert rows["ZIP"][:9] == ["ZIP", "contexts", "2", accuracy, "40", "0", "320", "2", "1"]
    white = ["WhiteBox", "weights", "1", printed(runs / "WhiteBox" / "seed1").rstrip("%")]
    assert rows["WhiteBox"][:9] == [*white, *"–––––"]
    assert rows["ZeroshotOracle"][4:9] == ["0", "0", "0", "2", "1"]
    assert all(re.fullmatch(r"\d+", cells[9]) for cells in rows.values())


def test_what_asks_for_least_comes_first_and_what_is_not_told_is_not_known(tmp_path, call):
    for trainer in (*reversed(ACCESS), "ZIP"):
        make(tmp_path / trainer / "seed1", trainer=trainer)
    store(tmp_path / "ZIP" / "seed1", access=["logits", "telepathy"])
    unknown = {"shots": -1, "batches": 0, "seconds": None, "queries": None}
    store(tmp_path / "GDA" / "seed1", trainer="GDA", **unknown)
    _, rows, err = rows_of(call, tmp_path)
    order = ["words", "words", "features", "weights", "?"]
    assert [cells[1] for cells in rows.values()] == order
    assert rows["GDA"][3:] == ["70.0", *"––––––"] and not err


def test_lost_queries_are_shown_and_marked(tmp_path, call):
    for name, *lost in ("a", 0, 100), ("b", 101), ("c", 0):
        for seed, count in enumerate(lost, start=1):
            make(tmp_path / name / f"seed{seed}", lost=count)
    _, rows, _ = rows_of(call, tmp_path)
    assert [rows[name][3] for name in "abc"] == ["70.0 ± 0.0", "70.0 !", "70.0"]
    assert [rows[name][5] for name in "abc"] == ["50", "101", "0"]
    assert "more than a tenth" in call(results.main, tmp_path)[1]
    assert "more than a tenth" not in call(results.main, tmp_path / "a")[1]
    _, out, _ = call(parse_test_res.main, tmp_path, "--multi-exp")
    for words in ("1,000.", "1,000 (100 lost).", "1,000 (101 lost, more than a tenth)."):
        assert f"queries: {words}\n" in out


def test_runs_of_several_experiments_are_not_averaged(tmp_path, call):
    for changes, words in (
        ({"dataset": "Letters"}, "dataset (Digits, Letters)"),
        ({"shots": 2}, "shots (16, 2)"),
        ({"split": "val"}, "split (test, val)"),
    ):
        root = tmp_path / words
        make(root / "ZIP" / "seed1")
        store(make(root / "ZIP" / "seed3"), **changes)
        make(root / "SONAR" / "seed1", trainer="SONAR")
        _, rows, err = rows_of(call, root)
        assert list(rows) == ["SONAR"]
        assert f"ZIP holds runs that differ in {words}, and is left out" in err


def test_an_evaluation_of_unfinished_training_is_no_result(tmp_path, call):
    """In its own folder; elsewhere it is one. On val, it is told."""
    for name in ("ZIP", "evaluation"):
        store(make(tmp_path / name / "seed1"), "evaluation", split="val")
    (tmp_path / "ZIP" / "seed1" / "prompt_learner").mkdir()
    _, rows, err = rows_of(call, tmp_path)
    assert list(rows) == ["evaluation"] and rows["evaluation"][3] == "70.0 (val)"
    assert "ZIP/seed1 has no result in metrics.json: it is not finished. The run is left out" in err


# The shapes of tables


def test_data_sets_across_and_methods_down(tmp_path, call):
    for name, config, accuracies in (("EuroSAT", "eurosat", (60.0, 62.0)), ("DTD", "DTD", (40.0,))):
        for seed, accuracy in enumerate(accuracies, start=1):
            folder = make(tmp_path / config / "ZIP" / "a_16shots" / f"seed{seed}")
            store(folder, dataset=name, accuracy=accuracy)
    store(make(tmp_path / "eurosat" / "ZIP" / "b" / "seed1"), dataset="EuroSAT", accuracy=9.0)
    for name in ("cats", "cars"):  # two folders of pictures are two data sets
        folder = make(tmp_path / name / "SONAR" / "seed1", trainer="SONAR")
        store(folder, trainer="SONAR", dataset="ImageFolder", root=f"/{name}")
    headers, rows, err = rows_of(call, tmp_path, "--across")
    folders = ["ImageFolder (/cars)", "ImageFolder (/cats)"]
    assert headers == ["method", "EuroSAT", "DTD", *folders, "mean"]
    assert rows["ZIP/a_16shots"] == ["61.0 ± 1.0", "40.0", "–", "–", "–"]
    assert rows["ZIP/b"] == ["9.0", *"––––"]
    assert "eurosat/ZIP/b has 1 of 2 seeds, and its mean is of these" in err
    headers, rows, _ = rows_of(call, tmp_path, "--across", "--published")
    shown = dict(zip(headers[1:], rows["ZIP (published, ViT-B/16)"]))
    assert shown["EuroSAT"] == "64.0" and shown["DTD"] == shown["mean"] == "–"
    figures = results.PUBLISHED.mean(axis=1, skipna=False)
    assert f"{figures['ZIP']:.1f}" == "63.1" and figures["zero-shot"] != figures["zero-shot"]


def test_both_halves_of_a_protocol_are_of_the_same_seeds(tmp_path, call):
    for half, seeds, share in (("train_base", (1, 2, 3), 10.0), ("test_new", (2, 3, 4), 5.0)):
        for seed in seeds:
            for name, factor in (("Digits", 1), ("Letters", 2)):
                folder = make(tmp_path / half / name.lower() / "ZIP" / f"seed{seed}")
                about = {"dataset": name, "classes": half[-4:].strip("_")}
                store(folder, accuracy=factor * share * seed, **about)
    _, out, err = call(results.main, tmp_path, "--base2new", "--format", "csv")
    assert "ZIP,Digits,25.0 ± 5.0,12.5 ± 2.5,16.7\n" in out and "ZIP,mean,37.5,18.8,25.0\n" in out
    assert "ZIP has seed1, seed4 of one half alone on Digits, which is left out" in err
    status, _, err = call(results.main, tmp_path / "test_new", "--base2new")
    assert status == 1 and "has no experiment in both train_base and test_new" in err


# Damage


# plots read metrics.json one way: "gain" stands for all
ALIKE = [(kind, METRICS) for kind in ("shots", "budgets", "queries")]
DAMAGED = [(name, file) for name, (files, _) in TOOLS.items() for file in files]
DAMAGED = [row for row in DAMAGED if row not in ALIKE]


@pytest.mark.parametrize("name, file", DAMAGED)
def test_damage_is_a_note_or_a_sentence(sound, tmp_path, call, name, file):
    tool_of = TOOLS[name][1]
    assert call(*tool_of(sound))[0] == 0
    for what, how in {**DAMAGE, **OWN[file]}.items():
        one, every = tmp_path / f"one {what}", tmp_path / f"every {what}"
        for root in (one, every):
            shutil.copytree(sound, root)
            for path in [one / "ZIP_16shots" / "seed1" / file] if root == one else root.rglob(file):
                damaged(path, how)
            status, out, err = call(*tool_of(root))
            assert status in ((0,) if root == one and file != CURVE else (0, 1)), (what, err)
            assert "Traceback" not in out + err and err.count("error: ") == status
            assert f"{file} " in err or f"{file}:" in err, (what, err)


def test_words_of_runs_that_are_damaged_or_asked_too_much(runs, tmp_path, call):
    out = shutil.copytree(runs / "ZIP" / "seed2", tmp_path / "run")
    main, path = interpret_prompt.main, out / "config.yaml"
    for number in (-1, 10**30):
        status, _, err = call(main, out, number)
        assert status == 1 and re.match(rf"error: {number} words .* from 1 to \d+,\d+ is", err)
    text = path.read_text()
    for content in (b"- DATASET\n", b"{a: " * 5000, b"\xff", text[:900].encode()):
        path.write_bytes(content)
        status, _, err = call(main, out)
        assert status == 1 and err.startswith("error: ") and "Traceback" not in err
    for name, other in (("ZIP", "Zap"), ("Digits", "Digit")):
        path.write_text(text.replace(f"NAME: {name}\n", f"NAME: {other}\n"))
        assert f"config.yaml '{other}': did you mean {name}" in call(main, out)[2]


# CoOp's parser of logs


def test_parse_test_res(runs, call):
    values = [float(printed(runs / "ZIP" / seed).rstrip("%")) for seed in ("seed1", "seed2")]
    mean, std, error = statistics.mean(values), statistics.pstdev(values), statistics.stdev(values)
    for flags, spread in (((), std), (("--ci95",), 1.96 * std / 2**0.5)):
        _, out, _ = call(parse_test_res.main, runs / "ZIP", *flags)
        line = f"file: {runs}/ZIP/seed1/log.txt. accuracy: {values[0]:.2f}%. queries: 40.\n"
        assert line in out and f"* accuracy: {mean:.2f}% +- {spread:.2f}%\n" in out
        line = f"* accuracy, standard error over 2 seeds: {mean:.2f}% +- {error / 2**0.5:.2f}%\n"
        assert line in out
    _, out, _ = call(parse_test_res.main, runs, "--multi-exp")
    assert "Average performance\n* accuracy: " in out
    assert "queries: –." in out and "queries: 0." in out  # no count is not a count of 0


def test_parse_test_res_of_logs_of_several_lives(runs, tmp_path, call):
    log = (runs / "ZIP" / "seed1" / "log.txt").read_text()
    evaluated = log.replace("eval_only: False", "eval_only: True").replace("Finish training\n", "")
    crashed = log[: log.index("Finish training")]
    main, folder = parse_test_res.main, tmp_path / "a" / "seed1"
    folder.mkdir(parents=True)
    for text, flags, known in (
        (log + evaluated, (), True),
        (log + crashed, (), False),
        (evaluated, (), False),
        (evaluated, ("--test-log", "--keyword", "macro_f1"), True),
    ):
        (folder / "log.txt").write_text(text)
        status, out, _ = call(main, tmp_path / "a", *flags)
        assert status == (not known) and ("standard error over 1 seeds: –" in out) == known
    for args, words in (
        ([tmp_path / "nowhere"], "is not a directory"),
        ([tmp_path], "no log at .*--multi-exp"),
        ([folder], "Nothing found"),
    ):
        status, _, err = call(main, *args)
        assert status == 1 and re.match(f"error: .*{words}", err)


# Terminals


def test_output_that_is_closed_early(sound):
    for seed in range(3, 400):
        shutil.copytree(sound / "ZIP_16shots" / "seed1", sound / "ZIP_16shots" / f"seed{seed}")
    pipe = f"{sys.executable} parse_test_res.py {sound}/ZIP_16shots | head -n 1"
    line = ["bash", "-c", f"{pipe}; echo ${{PIPESTATUS[0]}}"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, cwd=REPO, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"Parsing files in {sound}/ZIP_16shots\n141\n", done.stderr
    assert not re.search("Error|Exception|Traceback", done.stderr)


# What a run leaves


def stored(folder):
    return json.loads((folder / METRICS).read_text())


@pytest.mark.parametrize("name", ["ZIP", "SONAR", "GDA", "ZeroshotOracle", "WhiteBox"])
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
    trainer.test = lambda split=None: looks.append((tmp_path / METRICS).exists()) or test(split)
    trainer.train()
    assert len(looks) > 4 and not any(looks)
    assert stored(tmp_path)["end_of_training"]["split"] == "test"
    further = build("ZIP", data_root, tmp_path, *budget("ZIP", 8), *options)
    further.forward_backward = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        further.train()
    assert not (tmp_path / METRICS).exists()


@pytest.mark.parametrize(
    "name, resumed, ended",
    [("ZIP", True, "budget"), ("WhiteBox", False, "epochs"), ("ZeroshotOracle", False, None)],
)
def test_what_ended_a_run_and_how_long_it_took(name, resumed, ended, data_root, budget, tmp_path):
    options = budget(name, 4) if resumed else ("OPTIM.MAX_EPOCH", 1)
    if resumed:
        build(name, data_root, tmp_path, *budget(name, 2)).train()
    for again in (False, True):  # where nothing is left to do
        build(name, data_root, tmp_path, *options).train()
        section = stored(tmp_path)["end_of_training"]
        assert section["ended_by"] == ended
        assert name != "ZIP" or bill(tmp_path)["training"]["queries"] == options[1]
        known = section["seconds"] is not None
        assert known == (name == "ZeroshotOracle" or not (resumed or again))


def test_a_result_that_cannot_be_written_is_an_error(data_root, tmp_path, capsys):
    (tmp_path / METRICS).mkdir()
    (tmp_path / METRICS / "x").write_text("")
    said = sentence(capsys, "ZeroshotOracle", data_root, tmp_path, flags=("--eval-only",))
    assert f"Could not write {tmp_path / METRICS}" in said


# Plots


def grouped(root):
    return results.grouped(results.read(root))


@pytest.mark.parametrize("kind", plots.KINDS)
def test_plots_are_pictures_with_a_legend_and_a_title(sound, tmp_path, call, kind):
    shutil.copytree(sound / "ZIP_16shots", sound / "SONAR_16shots")
    for folder in (sound / "SONAR_16shots").iterdir():
        store(folder, trainer="SONAR", accuracy=60.0)
    out = tmp_path / "plot"
    assert call(plots.main, kind, sound, "--out", out)[::2] == (0, "")
    with Image.open(out) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(10**6)) > 10
    assert call(plots.main, kind, sound, "--title", "$x$", "--out", f"{out}.svg")[0] == 0
    words = re.findall(r"<!-- (.*) -->", (tmp_path / "plot.svg").read_text())
    label = "SONAR" if kind == "shots" else "SONAR_16shots"
    assert f"{label}{'' if kind == 'gain' else ' (words)'}" in words and "$x$" in words
    status, _, err = call(plots.main, kind, tmp_path / "none", "--out", out)
    assert status == 1 and "There is no finished run" in err


def test_a_line_is_one_method_and_zero_shot_is_of_what_the_lines_are_of(tmp_path):
    for backbone, accuracies in {"tiny": {"Digits": 40.0, "Letters": 90.0}, "photo": {}}.items():
        for shots, accuracy in ((4, 60.0), (16, 70.0)):
            for seed in (1, 2):
                folder = make(tmp_path / backbone / "ZIP" / f"{shots}shots" / f"seed{seed}")
                store(folder, backbone=backbone, shots=shots, accuracy=accuracy + 2 * seed)
        for name, accuracy in {"Digits": 20.0, **accuracies}.items():
            zero = {"trainer": results.ZERO_SHOT, "dataset": name, "accuracy": accuracy}
            store(make(tmp_path / backbone / name), shots=1, backbone=backbone, **zero)
    new = {"trainer": results.ZERO_SHOT, "classes": "new", "accuracy": 99.0, "shots": 1}
    store(make(tmp_path / "new" / "zero"), **new)
    lines, levels = plots.shots(grouped(tmp_path))
    assert levels == {"zero-shot (photo)": 20.0, "zero-shot (tiny)": 40.0}
    tiny = lines[lines.label == "tiny/ZIP/"].sort_values("x")
    assert list(tiny.x) == [4, 16] and list(tiny.accuracy) == [63.0, 73.0]
    assert list(tiny.error) == pytest.approx([1.0, 1.0]) and len(lines) == 4


def test_gains_are_over_zero_shot_on_the_same(tmp_path):
    for name, accuracies in {"cats": (40.0, 60.0), "cars": (90.0, 95.0)}.items():
        for trainer, accuracy in zip((results.ZERO_SHOT, "ZIP"), accuracies):
            changes = {"trainer": trainer, "dataset": "ImageFolder", "root": f"/{name}"}
            store(make(tmp_path / name / trainer / "seed1"), accuracy=accuracy, **changes)
    gains = plots.gain(grouped(tmp_path))[0].set_index("dataset").gain
    assert dict(gains) == {"ImageFolder (/cats)": 20.0, "ImageFolder (/cars)": 5.0}


def test_budgets_of_a_method_are_one_line_and_what_asks_none_is_a_level(tmp_path):
    for queries in (50, 500):
        asked = {"queries": queries, "image_queries": 0}
        counts = dict.fromkeys(("training", "evaluation", "test"), asked)
        store(make(tmp_path / "a" / "ZIP" / f"x_{queries}queries" / "seed1"), queries=counts)
        name = f"x_{queries}queries"  # one for each budget, as scripts/compare.py has it
        store(make(tmp_path / "a" / "WhiteBox" / name), trainer="WhiteBox", queries=None)
    lines, levels = plots.budgets(grouped(tmp_path))
    assert sorted(lines.x) == [50, 500] and {*lines.label} == {"ZIP/x"}
    assert levels == {"WhiteBox/x": 70.04}


def test_many_methods_leave_the_axes_their_height(tmp_path):
    heights = []
    for count in (1, 60):
        for number in range(count):
            make(tmp_path / f"method{number}" / "seed1")
        assert plots.plot("queries", grouped(tmp_path), tmp_path / "a.svg", "")
        corners = re.search(r'id="patch_2">\s*<path d="([^"]*)z', (tmp_path / "a.svg").read_text())
        heights.append(max(ys := [float(y) for y in corners[1].split()[2::3]]) - min(ys))
        shutil.rmtree(tmp_path / "method0")
    assert heights[1] == pytest.approx(heights[0])


def test_a_curve_is_the_mean_at_what_all_seeds_looked_at(sound):
    curve = sound / "ZIP_16shots" / "seed1" / CURVE
    curve.write_text("500,4000,10.0\n700,5600,1.0\n1000,8000,2.0\n1000,8000,80.0\n")
    lines, _ = plots.queries(grouped(sound / "ZIP_16shots"))
    assert list(lines.x) == [500, 1000] and list(lines.accuracy) == [30.0, 70.0]
    curve.unlink()
    assert plots.queries(grouped(sound / "ZIP_16shots"))[0].empty


def test_what_cannot_be_drawn_or_written_is_said(sound, tmp_path, call, monkeypatch):
    for out, words in (("/dev/full", "cannot be written or read"), ("a.zebra", "another ending")):
        status, _, err = call(plots.main, "gain", sound, "--out", tmp_path / out)
        assert status == 1 and words in err
    store(make(sound / "CraFT_16shots" / "seed1"), split="val")
    _, _, err = call(plots.main, "budgets", sound, "--out", tmp_path / "a.png")
    assert "CraFT_16shots was evaluated on val, and is left out." in err
    for kind, words in (("gain", "zero-shot run"), ("queries", "ORACLE.VAL_EVERY")):
        (sound / "CraFT_16shots" / "seed1" / CURVE).unlink(missing_ok=True)
        status, _, err = call(plots.main, kind, sound / "CraFT_16shots", "--out", tmp_path / "a")
        assert status == 1 and "Nothing to draw below" in err and words in err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = call(plots.main, "gain", sound, "--out", tmp_path / "a")
    assert status == 1 and re.search("^error: .*matplotlib", err, re.M) and "fault" not in err
