"""Reading the results: `parse_test_res.py`, and the table of `dassl_blackbox.results`."""

import json
import re
import statistics
import sys

import parse_test_res
import pytest
from dassl_blackbox import results
from support import printed, process, run


def parsed(monkeypatch, capsys, module, *args):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
    capsys.readouterr()
    module.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("ci95", [False, True])
def test_parse_test_res(runs, monkeypatch, capsys, ci95):
    out = parsed(monkeypatch, capsys, parse_test_res, runs / "ZIP", *["--ci95"] * ci95)
    values = [float(printed(runs / "ZIP" / seed).rstrip("%")) for seed in ("seed1", "seed2")]
    mean, std = statistics.mean(values), statistics.pstdev(values)
    spread = 1.96 * std / 2**0.5 if ci95 else std
    for seed, value in zip((1, 2), values):
        assert f"file: {runs}/ZIP/seed{seed}/log.txt. accuracy: {value:.2f}%. queries: 40.\n" in out
    assert f"* accuracy: {mean:.2f}% +- {spread:.2f}%\n" in out
    error = statistics.stdev(values) / 2**0.5
    assert f"* accuracy, standard error over 2 seeds: {mean:.2f}% +- {error:.2f}%\n" in out


def test_parse_test_res_of_several_experiments(runs, monkeypatch, capsys):
    out = parsed(monkeypatch, capsys, parse_test_res, runs, "--multi-exp")
    means = [
        statistics.mean(
            float(printed(log.parent).rstrip("%")) for log in (runs / name).glob("*/log.txt")
        )
        for name in ("WhiteBox", "ZIP", "ZeroshotOracle")
    ]
    assert f"Average performance\n* accuracy: {statistics.mean(means):.2f}%" in out
    assert "queries: –." in out and "queries: 0." in out  # no count is not a count of 0


def test_parse_test_res_of_an_evaluation_and_another_keyword(
    runs, data_root, tmp_path, monkeypatch, capsys
):
    assert (
        run(
            "ZIP",
            data_root,
            tmp_path / "seed1",
            seed=7,
            flags=("--eval-only", "--model-dir", runs / "ZIP" / "seed1"),
        )
        == 0
    )
    out = parsed(
        monkeypatch, capsys, parse_test_res, tmp_path, "--test-log", "--keyword", "macro_f1"
    )
    value = re.findall(
        r"^\* macro_f1: (.*)%$", (runs / "ZIP" / "seed1" / "log.txt").read_text(), re.M
    )[-1]
    assert (
        f"* macro_f1: {float(value):.2f}% +- 0.00%\n" in out
        and "standard error over 1 seeds: –" in out
    )


def test_parse_test_res_fails_in_a_sentence(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for args, words in (
        ([tmp_path / "nowhere"], "is not a directory"),
        ([runs], "no log at .*--multi-exp"),
        ([tmp_path / "empty"], "nothing found"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{words}"):
            parsed(monkeypatch, capsys, parse_test_res, *args)


def test_the_table_of_results(runs, monkeypatch, capsys):
    rows = [
        line.split("|")[1:-1]
        for line in parsed(
            monkeypatch, capsys, results, runs, "--wide", "--format", "github"
        ).splitlines()
        if line.startswith("| ")
    ]
    table = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows[1:]}
    assert set(table) == {"ZIP", "WhiteBox", "ZeroshotOracle"}
    values = [
        json.loads((runs / "ZIP" / seed / "metrics.json").read_text())["end_of_training"][
            "accuracy"
        ]
        for seed in ("seed1", "seed2")
    ]
    error = statistics.stdev(values) / 2**0.5
    assert table["ZIP"][:8] == [
        "ZIP",
        "contexts",
        "2",
        f"{statistics.mean(values):.1f} ± {error:.1f}",
        "40",
        "0",
        "320",
        "2",
    ]
    assert table["WhiteBox"][3:8] == [
        printed(runs / "WhiteBox" / "seed1").rstrip("%"),
        "–",
        "–",
        "–",
        "–",
    ]
    assert table["ZeroshotOracle"][4:8] == ["0", "0", "0", "2"]
    a_batch = {name: cells[8] for name, cells in table.items()}
    assert a_batch == {"ZIP": "1", "WhiteBox": "–", "ZeroshotOracle": "1"}
    assert all(re.fullmatch(r"\d+", cells[9]) for cells in table.values())


def test_the_table_of_nothing(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="^error: no finished run"):
        parsed(monkeypatch, capsys, results, tmp_path)


def test_the_table_runs_as_it_is_called(runs):
    table = process("-m", "dassl_blackbox.results", runs)
    assert table.returncode == 0 and "WhiteBox" in table.stdout
