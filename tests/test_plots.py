"""Plots of finished runs: their axes, titles and files."""

import re
import shutil

import pytest
from dassl_blackbox import plots
from finished import CURVE


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


def test_plots_of_folders_and_titles_with_dollars(sound, tmp_path, call):
    (sound / "ZIP_16shots").rename(sound / "$a_$ ZIP_16shots")
    out = tmp_path / "plot"
    status, _, err = call(plots.main, "gain", sound, "--title", "$x$", "--out", out)
    assert (status, err) == (0, "") and out.read_bytes().startswith(b"\x89PNG")
