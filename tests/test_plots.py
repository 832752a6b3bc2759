"""Plots of finished runs: their lines, levels and files."""

import re
import shutil

import pytest
from dassl_blackbox import plots, results, runs
from finished import CURVE, make, store
from PIL import Image


def grouped(root):
    return results.grouped(runs.read(root))


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
    access = "" if kind == "gain" else " (words)"
    label = {"queries": "SONAR_16shots", "shots": "SONAR"}.get(kind, "SONAR_16shots")
    assert f"{label}{access}" in words and "$x$" in words
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


@pytest.mark.parametrize("first, log", [(5, True), (500, False)])
def test_queries_over_more_than_two_decades_have_a_logarithmic_axis(
    sound, tmp_path, call, first, log
):
    curve = "".join(f"{queries},1,50.0\n" for queries in (first, 1000))
    (sound / "ZIP_16shots" / "seed1" / CURVE).write_text(curve)
    shutil.rmtree(sound / "ZIP_16shots" / "seed2")
    out = tmp_path / "plot.svg"
    assert call(plots.main, "queries", sound, "--out", out)[0] == 0
    ticks = re.findall(r"<!-- ([\d,]+) -->", out.read_text())
    assert ({"10", "100", "1,000"} <= {*ticks} and "600" not in ticks) == log


def test_what_cannot_be_drawn_or_written_is_a_note_or_a_sentence(sound, tmp_path, call):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "none" / "a.png", tmp_path / "file" / "a.png", "/dev/full"):
        status, _, err = call(plots.main, "gain", sound, "--out", out)
        assert status == 1 and "cannot be written or read" in err
    status, _, err = call(plots.main, "gain", sound, "--out", tmp_path / "a.zebra")
    assert status == 1 and "Choose another ending" in err
    store(make(sound / "CraFT_16shots" / "seed1"), split="val")
    _, _, err = call(plots.main, "budgets", sound, "--out", tmp_path / "a.png")
    assert "CraFT_16shots was evaluated on val, and is left out." in err
    for kind, words in (("gain", "zero-shot run"), ("queries", "ORACLE.VAL_EVERY")):
        (sound / "CraFT_16shots" / "seed1" / CURVE).unlink(missing_ok=True)
        status, _, err = call(plots.main, kind, sound / "CraFT_16shots", "--out", tmp_path / "a")
        assert status == 1 and "Nothing to draw below" in err and words in err
