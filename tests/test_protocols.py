"""The four protocols through the shell scripts, and the tables, plots and words that are read from
what they leave.
"""

import csv
import io
import os
import re
import statistics
import subprocess
import sys

import pytest
import torch
import trees
from dassl_blackbox import plots, results
from dassl_blackbox.published import DATASETS, FIGURES
from dassl_blackbox.runlog import is_evaluated
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from PIL import Image
from support import REPO, SMALL, accuracy, bill, process, run
from trees import everything

import interpret_prompt

OPTIONS = (*SMALL, "ORACLE.MAX_QUERIES", "20")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATASET.ROOT with four data sets of four classes."""
    root = tmp_path_factory.mktemp("data")
    for name in ("Caltech101", "EuroSAT", "ImageNet", "ImageNetV2"):
        trees.make(name, root)
    before = everything(root)
    yield root
    assert (
        everything(root) == before
    )  # whatever the tests of this file ran, the data are as they were


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


def script(name, *args, root, output, **environment):
    """A script of ours in the environment of these tests."""
    env = {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "DATA": str(root),
        "OUTPUT": str(output),
        "SEEDS": "1",
        **environment,
    }
    return subprocess.run(
        ["bash", str(REPO / "scripts" / name), *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


# The scripts


def test_base_to_new(root, output):
    early = script("base2new_test.sh", "ZIP", "caltech101", "tiny", 2, root=root, output=output)
    assert early.returncode == 1
    assert early.stderr.splitlines()[-1].endswith(
        "and options: bash scripts/base2new_train.sh ZIP caltech101 tiny 2"
    )
    for name in ("base2new_train.sh", "base2new_test.sh"):
        done = script(name, "ZIP", "caltech101", "tiny", 2, *OPTIONS, root=root, output=output)
        assert done.returncode == 0, done.stderr
    folders = [
        output / "base2new" / half / "caltech101" / "shots_2" / "ZIP" / "tiny" / "seed1"
        for half in ("train_base", "test_new")
    ]
    assert (
        bill(folders[0])["training"]["queries"] == 20
        and bill(folders[1])["training"]["queries"] == 0
    )
    assert all(
        "* total: 4\n" in (folder / "log.txt").read_text() for folder in folders
    )  # half of the classes each
    again = script(
        "base2new_test.sh", "ZIP", "caltech101", "tiny", 2, *OPTIONS, root=root, output=output
    )
    assert "holds this evaluation: skipped" in again.stdout
    header = (folders[1] / "log.txt").read_text().partition("** System info **")[0]
    assert is_evaluated(folders[1], header, folders[0])
    os.utime(folders[0] / "prompt_learner" / "checkpoint")  # trained anew since then
    assert not is_evaluated(folders[1], header, folders[0])


def test_transfer_and_domain_generalisation(root, output):
    for name, targets in (("xd_train.sh", ""), ("xd_test.sh", "food101 imagenetv2 eurosat")):
        done = script(
            name,
            "CBBT",
            "tiny",
            2,
            "TRAINER.CBBT.Q",
            6,
            *OPTIONS,
            root=root,
            output=output,
            TARGETS=targets,
            TAG="small",
        )
        assert done.returncode == (1 if targets else 0), done.stderr
    assert "error: Food101 has no split file" in done.stderr  # and the others had their turn
    assert (
        bill(output / "imagenet" / "CBBT" / "tiny_2shots_small" / "seed1")["training"]["queries"]
        == 14
    )
    for target in ("imagenetv2", "eurosat"):
        folder = output / "evaluation" / "CBBT" / "tiny_2shots_small" / target / "seed1"
        assert (
            accuracy((folder / "log.txt").read_text()) and bill(folder)["training"]["queries"] == 0
        )


def test_zero_shot(root, output):
    assert script("zeroshot.sh", "eurosat", "tiny", root=root, output=output).returncode == 0
    assert (
        'Template: "a centered satellite photo of {}."'
        in (output / "ZeroshotOracle" / "tiny" / "eurosat" / "log.txt").read_text()
    )


def test_a_dry_run_prints_what_would_run(root, tmp_path):
    done = script(
        "zip/main.sh",
        "caltech101",
        "vit_b16",
        4,
        "TRAINER.ZIP.CTX_INIT",
        "a photo of a",
        root=root,
        output=tmp_path,
        SEEDS="1 5",
        DRY_RUN="1",
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2 and not list(tmp_path.iterdir())
    assert (
        lines[1]
        .rstrip()
        .endswith(
            f"--output-dir {tmp_path}/caltech101/ZIP/vit_b16_4shots/seed5 DATASET.NUM_SHOTS 4 "
            "TRAINER.ZIP.CTX_INIT a\\ photo\\ of\\ a"
        )
    )
    done = script("xd_test.sh", "CraFT", "rn50", 16, root=root, output=tmp_path, DRY_RUN="1")
    assert (
        len(done.stdout.splitlines()) == 14
        and done.stdout.count("configs/trainers/CraFT/rn50_imagenet.yaml") == 14
    )  # its training's settings
    done = script("craft/main.sh", "eurosat", "rn50", 16, root=root, output=tmp_path, DRY_RUN="1")
    assert "configs/trainers/CraFT/rn50_eurosat.yaml" in done.stdout


@pytest.mark.parametrize(
    "name",
    sorted(str(path.relative_to(REPO / "scripts")) for path in (REPO / "scripts").rglob("*.sh")),
)
def test_a_script_without_arguments_says_how_it_is_called(name, tmp_path):
    if name in ("setup.sh", "run.sh", "quickstart.sh", "test.sh"):
        assert (
            (REPO / "scripts" / name).read_text().splitlines()[-1]
        )  # sourced, or without arguments
        return
    done = script(name, root=tmp_path, output=tmp_path)
    assert done.returncode == 2 and "bash scripts/" in done.stderr


def test_a_head_cannot_move_to_other_classes(root, tmp_path, capsys):
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "caltech101.yaml"
    assert run("CraFT", root, tmp_path / "run", "ORACLE.MAX_QUERIES", 10, flags=flags) == 0
    flags += "--eval-only", "--model-dir", tmp_path / "run"
    assert (
        run("CraFT", root, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", flags=flags) == 1
    )
    assert "It cannot move to others" in capsys.readouterr().err
    assert run("CraFT", root, tmp_path / "same", flags=flags) == 0


# Tables


@pytest.fixture(scope="module")
def tree(root, tmp_path_factory):
    """Two methods on two data sets in CoOp's layout, one of them with two seeds and two numbers of
    shots; base and new classes of one.
    """
    out = tmp_path_factory.mktemp("tree")
    for config in ("caltech101", "eurosat"):
        flags = "--dataset-config-file", REPO / "configs" / "datasets" / f"{config}.yaml"
        assert (
            run(
                "ZeroshotOracle",
                root,
                out / "ZeroshotOracle" / "tiny" / config,
                flags=(*flags, "--eval-only"),
            )
            == 0
        )
        for seed, shots in ((1, 2), (2, 2), (1, 4)) if config == "eurosat" else ((1, 2),):
            folder = out / config / "ZIP" / f"tiny_{shots}shots" / f"seed{seed}"
            assert (
                run(
                    "ZIP",
                    root,
                    folder,
                    "ORACLE.MAX_QUERIES",
                    20,
                    "ORACLE.VAL_EVERY",
                    10,
                    "DATASET.NUM_SHOTS",
                    shots,
                    seed=seed,
                    flags=flags,
                )
                == 0
            )
    for half, which in (("train_base", "base"), ("test_new", "new")):
        for config in ("caltech101", "eurosat"):
            flags = "--dataset-config-file", REPO / "configs" / "datasets" / f"{config}.yaml"
            assert (
                run(
                    "ZeroshotOracle",
                    root,
                    out / "base2new" / half / config / "seed1",
                    "DATASET.SUBSAMPLE_CLASSES",
                    which,
                    flags=flags,
                )
                == 0
            )
    return out


def value(folder):
    return float(accuracy((folder / "log.txt").read_text()).rstrip("%"))


def table(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["results", *map(str, args), "--format", "csv"])
    results.main()
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    return rows[0], {row[0]: row[1:] for row in rows[1:]}, rows[1:]


def test_data_sets_across_and_methods_down(tree, monkeypatch, capsys):
    headers, rows, _ = table(monkeypatch, capsys, tree, "--across")
    assert headers == ["method", "Caltech101", "EuroSAT", "mean"]
    seeds = [value(tree / "eurosat" / "ZIP" / "tiny_2shots" / f"seed{seed}") for seed in (1, 2)]
    caltech = value(tree / "caltech101" / "ZIP" / "tiny_2shots" / "seed1")
    mean, error = statistics.mean(seeds), statistics.stdev(seeds) / 2**0.5
    assert rows["ZIP/tiny_2shots"] == [
        f"{caltech:.1f}",
        f"{mean:.1f} ± {error:.1f}",
        f"{(caltech + mean) / 2:.1f}",
    ]
    assert rows["ZIP/tiny_4shots"][0] == rows["ZIP/tiny_4shots"][2] == "–"
    zero = [
        value(tree / "ZeroshotOracle" / "tiny" / config) for config in ("caltech101", "eurosat")
    ]
    assert rows["ZeroshotOracle/tiny"] == [
        *(f"{v:.1f}" for v in zero),
        f"{statistics.mean(zero):.1f}",
    ]


def test_published_rows_stand_below(tree, monkeypatch, capsys):
    headers, rows, _ = table(monkeypatch, capsys, tree, "--across", "--published")
    assert set(headers) == {"method", *DATASETS, "mean"}
    published = rows["ZIP (published, ViT-B/16)"]
    assert dict(zip(headers[1:], published))["EuroSAT"] == "64.0" and published[-1] == "63.1"
    assert rows["zero-shot (published, ViT-B/16)"][-1] == "–" and rows["ZIP/tiny_2shots"][-1] == "–"
    assert all(len(figures) == len(DATASETS) for figures in FIGURES.values())


def test_base_new_and_their_harmonic_mean(tree, monkeypatch, capsys):
    headers, _, rows = table(monkeypatch, capsys, tree / "base2new", "--base2new")
    assert headers == ["method", "data set", "base", "new", "H"]
    pairs = {
        name: [
            value(tree / "base2new" / half / config / "seed1")
            for half in ("train_base", "test_new")
        ]
        for name, config in (("Caltech101", "caltech101"), ("EuroSAT", "eurosat"))
    }
    pairs["mean"] = [statistics.mean(column) for column in zip(*pairs.values())]
    assert {row[1]: [float(cell) for cell in row[2:]] for row in rows} == {
        name: pytest.approx([base, new, statistics.harmonic_mean([base, new])], abs=0.051)
        for name, (base, new) in pairs.items()
    }
    with pytest.raises(
        SystemExit, match="error: .* has no experiment in both train_base and test_new"
    ):
        table(monkeypatch, capsys, tree / "eurosat", "--base2new")


def test_what_an_unfinished_run_saw_on_val_is_no_result(tree, tmp_path):
    log = (tree / "eurosat" / "ZIP" / "tiny_2shots" / "seed1" / "log.txt").read_text()
    assert "Evaluate on the *val* set" in log
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1" / "log.txt").write_text(log.split("Finish training")[0])
    assert results.groups(tmp_path) == []


def test_a_comparison_without_words_leaves_out_what_starts_from_them(root, tmp_path):
    done = process(
        REPO / "scripts" / "compare.py",
        "--root",
        root,
        "--dataset",
        "dtd",
        "--methods",
        "ZIP, from words",
        "--output",
        tmp_path,
    )
    assert "ZIP, from words left out" in done.stdout


# Plots


def plotted(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["plots", *map(str, args)])
    plots.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["shots", "queries", "gain", "budgets"])
def test_plots_are_pictures(tree, tmp_path, monkeypatch, capsys, kind):
    out = tmp_path / "plot.png"
    assert f"Plot written to {out}" in plotted(monkeypatch, capsys, kind, tree, "--out", out)
    with Image.open(out) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(10**6)) > 10
    with pytest.raises(SystemExit, match="error: no finished run"):
        plotted(monkeypatch, capsys, kind, tmp_path, "--out", out)


def test_what_the_plots_show(tree, tmp_path):
    found = results.groups(tree)
    zips = [group for group in found if group.runs[0].trainer == "ZIP"]
    assert plots.shots(zips, tmp_path / "a.png", "") == 1  # 2 and 4 shots are one line
    assert plots.gain(found, tmp_path / "b.png", "") == 3
    assert plots.budgets(found, tmp_path / "c.png", "") == len({group.path for group in found})
    assert plots.short(["x_5queries/ZIP", "x_10queries/ZIP", "x_5queries/a/b"]) == [
        "ZIP",
        "ZIP",
        "a/b",
    ]
    assert plots.short(["ZIP_5queries", "SONAR"]) == ["ZIP", "SONAR"]
    folders = [tree / "eurosat" / "ZIP" / "tiny_2shots" / f"seed{seed}" for seed in (1, 2)]
    lines = [
        [line.split(",") for line in (folder / "val_curve.csv").read_text().splitlines()]
        for folder in folders
    ]
    assert plots.curve(folders) == [
        (queries, (float(a[2]) + float(b[2])) / 2) for queries, a, b in zip((10, 20), *lines)
    ]
    assert plots.curve([*folders, tree / "ZeroshotOracle" / "tiny" / "eurosat"]) == []


def test_a_method_with_fewer_seeds_than_others_is_told(tree, capsys):
    results.note_fewer_seeds(results.groups(tree))  # of zero-shot there is one seed, too
    assert re.findall("note: (.*) has (.*) seeds", capsys.readouterr().err) == [
        ("caltech101/ZIP/tiny_2shots", "1 of 2"),
        ("eurosat/ZIP/tiny_4shots", "1 of 2"),
    ]


def test_nothing_to_draw_is_a_sentence(tree, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="error: nothing to draw .* train with ORACLE.VAL_EVERY"):
        plotted(
            monkeypatch, capsys, "queries", tree / "ZeroshotOracle", "--out", tmp_path / "a.png"
        )
    with pytest.raises(SystemExit, match="error: nothing to draw .* zero-shot run"):
        plotted(monkeypatch, capsys, "gain", tree / "eurosat", "--out", tmp_path / "a.png")


# Words


def test_the_words_of_a_prompt_that_starts_from_words(root, tmp_path, capsys):
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "eurosat.yaml"
    assert (
        run(
            "CBBT",
            root,
            tmp_path / "run",
            "ORACLE.MAX_QUERIES",
            20,
            "TRAINER.CBBT.CTX_INIT",
            "a photo of the",
            flags=flags,
        )
        == 0
    )
    shown = process(REPO / "interpret_prompt.py", tmp_path / "run", 2)
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if re.match(r"\d+: ", line)]
    assert [line.split()[1] for line in lines] == ["a", "photo", "of", "the"] and all(
        line.count("(") == 2 for line in lines
    )


def test_nearest_words_are_nearest():
    torch.manual_seed(0)
    table = {}

    def embed(text):
        return torch.stack([table.setdefault(word, torch.randn(4)) for word in text.split(" ")])

    words = interpret_prompt.nearest_words(torch.zeros(1, 4), embed, 3)[0]
    assert [word for word, _ in words] == sorted(table, key=lambda word: table[word].norm().item())[
        :3
    ]
    assert [distance for _, distance in words] == pytest.approx(
        [table[word].norm().item() for word, _ in words], rel=1e-4
    )


def test_interpreting_what_is_no_run(root, tmp_path):
    with pytest.raises(BlackBoxError, match="There is no .*config.yaml. Give the output folder"):
        interpret_prompt.main([str(tmp_path)])
    flags = "--dataset-config-file", REPO / "configs" / "datasets" / "eurosat.yaml"
    assert run("ZeroshotOracle", root, tmp_path / "run", flags=flags) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(BlackBoxError, match="ZeroshotOracle puts no context in front of"):
        interpret_prompt.main([str(tmp_path / "run")])
