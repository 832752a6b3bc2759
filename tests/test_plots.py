"""Plots of finished runs: their axes, titles and files."""

import re
import shutil

import pytest
from dassl_blackbox import plots, results
from finished import BILL, CURVE, make, store


@pytest.mark.parametrize("first, log", [(5, True), (500, False)])
def test_budgets_over_more_than_two_decades_have_a_logarithmic_axis(
    sound, tmp_path, call, first, log
):
    curve = "".join(f"{queries},1,50.0\n" for queries in (first, 1000))
    (sound / "ZIP_16shots" / "seed1" / CURVE).write_text(curve)
    shutil.rmtree(sound / "ZIP_16shots" / "seed2")
    out = tmp_path / "plot.svg"
    assert call(plots.main, "queries", sound, "--out", out)[0] == 0
    ticks = re.findall(r"<!-- (.*) -->", out.read_text())
    assert (ticks[:4] == ["1", "10", "100", "1,000"]) == log


def test_plots_that_cannot_be_written(sound, tmp_path, call):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "none" / "a.png", tmp_path / "file" / "a.png", "/dev/full"):
        status, _, err = call(plots.main, "gain", sound, "--out", out)
        assert status == 1 and err.startswith(f"error: {out} ")
    status, _, err = call(plots.main, "gain", sound, "--out", tmp_path / "a.zebra")
    assert status == 1 and "Choose another ending" in err


def test_zero_shot_is_of_what_the_lines_are_of(tmp_path, call):
    """A level a backbone, over the data sets that are drawn."""
    for backbone, accuracies in {"tiny": {"Digits": 40.0, "Letters": 90.0}, "photo": {}}.items():
        store(make(tmp_path / backbone / "ZIP" / "16shots"), backbone=backbone)
        for name, accuracy in {"Digits": 20.0, **accuracies}.items():
            folder = make(tmp_path / backbone / name)
            store(
                folder,
                trainer=results.ZERO_SHOT,
                dataset=name,
                accuracy=accuracy,
                shots=1,
                backbone=backbone,
            )
    store(
        make(tmp_path / "new" / "zero"),
        trainer=results.ZERO_SHOT,
        classes="new",
        accuracy=99.0,
        shots=1,
    )
    found = results.groups(tmp_path)
    drawn = {plots.Kind("Digits", name, "all") for name in ("tiny", "photo")}
    assert plots.levels_of(found, drawn) == {("tiny", "all"): 40.0, ("photo", "all"): 20.0}
    out = tmp_path / "plot.svg"
    assert call(plots.main, "shots", tmp_path, "--out", out)[0] == 0
    assert {"zero-shot (tiny)", "zero-shot (photo)"} <= set(
        re.findall(r"<!-- (.*) -->", out.read_text())
    )


def test_what_cannot_be_drawn_beside_the_others_is_left_out(sound, tmp_path, call):
    (sound / "ZIP_16shots" / "seed2" / BILL).unlink()
    store(make(sound / "CraFT_16shots" / "seed1"), split="val")
    status, _, err = call(plots.main, "budgets", sound, "--out", tmp_path / "a.png")
    assert status == 0
    assert "ZIP_16shots has runs without a bill, and is left out." in err
    assert "CraFT_16shots was evaluated on val, and is left out." in err


def test_plots_of_folders_and_titles_with_dollars(sound, tmp_path, call):
    (sound / "ZIP_16shots").rename(sound / "$a_$ ZIP_16shots")
    out = tmp_path / "plot"
    status, _, err = call(plots.main, "gain", sound, "--title", "$x$", "--out", out)
    assert (status, err) == (0, "") and out.read_bytes().startswith(b"\x89PNG")
