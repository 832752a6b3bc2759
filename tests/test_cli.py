"""The command line: what is typed, printed and left behind; bad input is one sentence."""

import json
import re
import shutil
import statistics
import subprocess
import sys

import parse_test_res
import pytest
import torch
from dassl_blackbox import results
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict
from dassl_blackbox.trainers.blackbox.run.files import save_state
from support import (
    OURS,
    REPO,
    TRAINED,
    accuracy,
    arguments,
    assert_same,
    bill,
    last_checkpoint,
    process,
    random_sources,
    run,
)


@pytest.fixture(scope="module")
def runs(data_root, tmp_path_factory):
    """A folder of finished runs: ZIP with two seeds (the first in a process of its own), zero-shot,
    the white-box ceiling.
    """
    root = tmp_path_factory.mktemp("output")
    options = "ORACLE.MAX_QUERIES", 47, "OPTIM.MAX_EPOCH", 2
    first = process("train.py", *arguments("ZIP", data_root, root / "ZIP" / "seed1", *options[:2]))
    assert first.returncode == 0, first.stderr
    (root / "stdout").write_text(first.stdout)
    assert run("ZIP", data_root, root / "ZIP" / "seed2", *options[:2], seed=2) == 0
    assert run("ZeroshotOracle", data_root, root / "ZeroshotOracle" / "seed1") == 0
    assert run("WhiteBox", data_root, root / "WhiteBox" / "seed1", *options) == 0
    return root


def printed(folder):
    return accuracy((folder / "log.txt").read_text())


# A run


def test_a_run_leaves_what_dassls_users_expect(runs):
    folder = runs / "ZIP" / "seed1"
    log = (folder / "log.txt").read_text()
    assert log == (runs / "stdout").read_text()
    lines = log.splitlines()
    for line in (
        "Finish training",
        "=> result",
        "Loading trainer: ZIP",
        "* training queries: 40 (image queries: 320)",
    ):
        assert line in lines
    assert re.search(r"^\* accuracy: \d+\.\d%$", log, re.M) and re.search(
        r"^Elapsed: 0:00:\d\d$", log, re.M
    )
    assert {path.name for path in folder.iterdir()} == {
        "log.txt",
        "config.yaml",
        "queries.json",
        "metrics.json",
        "prompt_learner",
        "tensorboard",
    }
    assert {path.name for path in (folder / "prompt_learner").iterdir()} == {
        "checkpoint",
        "model.pth.tar-500",
    }
    assert (folder / "prompt_learner" / "checkpoint").read_text() == "model.pth.tar-500\n"


def test_eval_only_in_a_fresh_process_with_another_seed(runs, data_root, tmp_path):
    trained = runs / "ZIP" / "seed1"
    fresh = process(
        "train.py",
        *arguments(
            "ZIP", data_root, tmp_path, seed=7, flags=("--eval-only", "--model-dir", trained)
        ),
    )
    assert fresh.returncode == 0, fresh.stderr
    assert accuracy(fresh.stdout) == printed(trained) == printed(tmp_path)
    assert re.findall(r"^\* macro_f1: .*", fresh.stdout, re.M) == re.findall(
        r"^\* macro_f1: .*", (trained / "log.txt").read_text(), re.M
    )
    assert (
        bill(tmp_path)["training"]["queries"] == 0 and bill(tmp_path)["evaluation"]["queries"] == 2
    )


@pytest.mark.parametrize(
    "name, epoch",
    [
        ("ZIP", ("--load-epoch", 500)),
        ("WhiteBox", ()),
        ("WhiteBox", ("--load-epoch", 2)),
        ("ZeroshotOracle", ()),
    ],
)
def test_eval_only(runs, data_root, tmp_path, name, epoch):
    trained = runs / name / "seed1"
    assert (
        run(
            name, data_root, tmp_path, seed=7, flags=("--eval-only", "--model-dir", trained, *epoch)
        )
        == 0
    )
    assert printed(tmp_path) == printed(trained)


@pytest.mark.parametrize("name", TRAINED)
def test_every_trainer_runs_and_is_evaluated(data_root, budget, tmp_path, name):
    assert run(name, data_root, tmp_path / "run", *budget(name, 2)) == 0
    assert (
        run(
            name,
            data_root,
            tmp_path / "again",
            seed=7,
            flags=("--eval-only", "--model-dir", tmp_path / "run"),
        )
        == 0
    )
    assert printed(tmp_path / "run") == printed(tmp_path / "again")


def test_no_train_announces_the_cost_and_leaves_nothing(data_root, tmp_path, capsys):
    assert (
        run("ZIP", data_root, tmp_path / "out", "ORACLE.MAX_QUERIES", 47, flags=("--no-train",))
        == 0
    )
    assert (
        "This run would cost 4 steps of 10 queries: 40 training queries, 320 image queries\n"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "out").exists()


def test_resume_from_another_folder(runs, data_root, tmp_path):
    source = runs / "ZIP" / "seed1"
    assert (
        run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 60, flags=("--resume", source)) == 0
    )
    assert bill(tmp_path)["training"]["queries"] == 60
    assert bill(source)["training"]["queries"] == 40
    assert (
        last_checkpoint(source)["optimizer"]["k"],
        last_checkpoint(tmp_path)["optimizer"]["k"],
    ) == (5, 7)  # four steps, two more


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_skip_done_skips_a_finished_run_of_the_same_configuration(
    runs, data_root, tmp_path, capsys
):
    folder = tmp_path / "seed1"
    options = "ORACLE.MAX_QUERIES", 20
    assert (
        run("ZIP", data_root, folder, *options, flags=("--skip-done",)) == 0
    )  # there is nothing to skip yet
    before = snapshot(folder)
    assert run("ZIP", data_root, folder, *options, flags=("--skip-done",)) == 0
    assert "holds a finished run of this configuration: skipped" in capsys.readouterr().out
    for name, then, now in (
        ("ORACLE.MAX_QUERIES", 20, 10),
        ("TRAINER.ZIP.RANK", 5, 3),
        ("TEST.FINAL_MODEL", "last_step", "best_val"),
    ):
        assert run("ZIP", data_root, folder, *options, name, now, flags=("--skip-done",)) == 1
        assert (
            f"finished run of another configuration ({name}: {then} there, {now} here)"
            in capsys.readouterr().err
        )
    assert snapshot(folder) == before
    config = folder / "config.yaml"  # of a version that did not know a key yet
    config.write_text(re.sub(r"\n  VIEWS: 0", "", config.read_text()))
    assert len(config.read_bytes()) < len(before[config])
    assert run("ZIP", data_root, folder, *options, "INPUT.CACHE_MB", 1, flags=("--skip-done",)) == 0
    assert "skipped" in capsys.readouterr().out
    (folder / "log.txt").write_text(
        (folder / "log.txt").read_text().split("Finish training")[0]
    )  # a crashed run is none
    (folder / "metrics.json").unlink()
    assert run("ZIP", data_root, folder, *options, flags=("--skip-done",)) == 0
    assert (
        "skipped" not in capsys.readouterr().out
        and "Finish training" in (folder / "log.txt").read_text()
    )
    assert run("ZIP", data_root, folder, "ORACLE.MAX_QUERIES", 30, flags=("--skip-done",)) == 0
    assert (
        "a smaller budget (ORACLE.MAX_QUERIES: 20 there, 30 here): it goes on"
        in capsys.readouterr().out
    )
    assert json.loads((folder / "queries.json").read_text())["training"]["queries"] == 30


# Bad input


def sentence(capsys, *args, **kwargs):
    """Run, and return the one sentence that it fails with."""
    capsys.readouterr()
    assert run(*args, **kwargs) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and err.endswith(errors[0] + "\n")
    return errors[0]


BAD = {
    "trainer": (["--trainer", "ZIPP"], [], "Unknown trainer.*'ZIPP': did you mean ZIP"),
    "data set": ([], ["DATASET.NAME", "Digit"], "Unknown data set.*'Digit': did you mean Digits"),
    "backbone": (
        [],
        ["MODEL.BACKBONE.NAME", "ViT-B/61"],
        "Unknown backbone 'ViT-B/61'.*did you mean ViT-B/16",
    ),
    "precision": ([], ["ORACLE.PREC", "fp61"], "ORACLE.PREC is 'fp61'.*Did you mean fp16"),
    "rule": ([], ["TRAINER.ZIP.RULE", "spsaclip"], "RULE is 'spsaclip'.*Did you mean spsa-clip"),
    "grant": ([], ["ORACLE.GRANTS", "['logit']"], "GRANTS is .*'logit'.*Did you mean logits"),
    "denied": (
        [],
        ["ORACLE.GRANTS", "['features']"],
        "ZIP asked for 'contexts', which this oracle does not grant",
    ),
    "key": ([], ["TRAINER.ZIP.RANKS", "3"], "RANKS"),
    "key without value": ([], ["TRAINER.ZIP.RANK"], "KEY VALUE"),
    "type": ([], ["TRAINER.ZIP.RANK", "many"], "RANK is 'many'; a whole number .* is expected"),
    "configuration file": (
        ["--config-file", "no/such.yaml"],
        [],
        "no/such.yaml cannot be read",
    ),
    "no tokens": ([], ["TRAINER.ZIP.N_CTX", "0"], "N_CTX is 0; a whole number from 1"),
    "too many tokens": ([], ["TRAINER.ZIP.N_CTX", "75"], "A context of 75 tokens.*1 to 74"),
    "too many words": ([], ["TRAINER.ZIP.CTX_INIT", "x " * 80], "A context of 80 tokens"),
    "too small ID": ([], ["TRAINER.ZIP.ID", "7"], "ID // n = 0"),
    "too large ID": ([], ["TRAINER.ZIP.ID", "1100"], "between 8 and 1031"),
    "rank": ([], ["TRAINER.ZIP.RANK", "0"], "RANK is 0"),
    "budget": (
        [],
        ["ORACLE.MAX_QUERIES", "9"],
        "One step of ZIP costs 10 queries, but the budget.*MAX_QUERIES.* is 9",
    ),
    "image budget": (
        [],
        ["ORACLE.MAX_IMAGE_QUERIES", "79"],
        "One step of ZIP costs 80 image queries.*MAX_IMAGE_QUERIES.* is 79",
    ),
    "input size": (
        [],
        ["INPUT.SIZE", "(64, 64)"],
        r"INPUT.SIZE is \(64, 64\), but tiny expects \(32, 32\)",
    ),
    "input mean": ([], ["INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]"], "INPUT.PIXEL_MEAN"),
    "transforms": ([], ["INPUT.TRANSFORMS", "['random_flip']"], "'normalize'"),
    "options behind a flag that takes them": (["--transforms", "normalize"], [], "'USE_CUDA'"),
    "missing model": (
        ["--eval-only", "--model-dir", "no/such/run"],
        [],
        "No checkpoint at no/such/run/prompt_learner",
    ),
}


@pytest.mark.parametrize("flags, options, words", BAD.values(), ids=BAD)
def test_bad_input_is_a_sentence_and_leaves_nothing(
    data_root, tmp_path, capsys, flags, options, words
):
    assert re.search(
        words, sentence(capsys, "ZIP", data_root, tmp_path / "out", *options, flags=flags)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name, cls in OURS.items() if "N_CTX" in cls.keys])
def test_a_context_that_leaves_no_room_for_the_class_names(data_root, tmp_path, capsys, name):
    options = f"TRAINER.{name.upper()}.N_CTX", 74, f"TRAINER.{name.upper()}.CTX_INIT", ""
    text = sentence(capsys, name, data_root, tmp_path / "out", *options)
    assert "The class name 'zero' takes 2 tokens with its template; with 74 context tokens" in text
    assert not (tmp_path / "out").exists()


def test_bad_input_in_a_process_of_its_own(data_root, tmp_path):
    failed = process(
        "train.py", *arguments("ZIP", data_root, tmp_path / "out", "MODEL.BACKBONE.NAME", "tinny")
    )
    assert failed.returncode == 1
    assert (
        failed.stderr.startswith("error: Unknown backbone 'tinny'")
        and failed.stderr.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()


def test_a_configuration_file_that_is_no_yaml(data_root, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("OPTIM: [unclosed\n")
    assert str(tmp_path / "bad.yaml") in sentence(
        capsys, "ZIP", data_root, tmp_path / "out", flags=("--config-file", tmp_path / "bad.yaml")
    )
    assert not (tmp_path / "out").exists()


def test_zero_shot_needs_a_slot(data_root, tmp_path, capsys):
    assert "exactly one slot {}" in sentence(
        capsys,
        "ZeroshotOracle",
        data_root,
        tmp_path / "out",
        "TRAINER.ZEROSHOT.TEMPLATE",
        "a photo of it",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no such folder"),
        ("", "has no split file {}/split_zhou_Caltech101.json"),
        ("{", "{}/split_zhou_Caltech101.json is not a split"),
        (
            '{"train": [["a.jpg", 0, "a"]], "val": [], "test": []}',
            "1 of the 1 images that {}/split_zhou_Caltech101.json names are missing.*a.jpg",
        ),
    ],
)
def test_data_that_are_missing(tmp_path, capsys, content, words):
    folder = tmp_path / "caltech-101"
    if content is not None:
        folder.mkdir()
    if content:
        (folder / "split_zhou_Caltech101.json").write_text(content)
    text = sentence(capsys, "ZIP", tmp_path, tmp_path / "out", "DATASET.NAME", "Caltech101")
    assert re.search(words.format(folder), text) and str(folder) in text
    assert not (tmp_path / "out").exists()


def test_a_class_name_that_is_too_long(vary_root, tmp_path, capsys):
    def rename(split):
        for part in ("train", "val", "test"):
            split[part] = [
                [image, label, " ".join("x" * 76) if label == 3 else name]
                for image, label, name in split[part]
            ]

    assert "takes 77 tokens" in sentence(capsys, "ZIP", vary_root(rename), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def broken(vary_root, tmp_path):
    """A file that is no image, and a DATASET.ROOT whose test split names it."""
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    return path, vary_root(
        lambda split: split.update(test=split["test"] + [[str(path), 0, "zero"]])
    )


def test_an_image_that_cannot_be_decoded_is_named(broken, tmp_path, capsys):
    text = sentence(capsys, "ZeroshotOracle", broken[1], tmp_path / "out")
    assert text.startswith(f"error: The image {broken[0]} cannot be decoded (")
    assert not (tmp_path / "out").exists()


def test_an_image_that_a_worker_cannot_decode_is_named(broken, tmp_path):
    failed = process(
        "train.py",
        *arguments("ZeroshotOracle", broken[1], tmp_path / "out", "DATALOADER.NUM_WORKERS", 2),
    )
    assert failed.returncode == 1 and "Traceback" not in failed.stdout + failed.stderr
    assert failed.stderr.splitlines()[-1].startswith(
        f"error: The image {broken[0]} cannot be decoded ("
    )


@pytest.mark.parametrize("name", ["ZIP", "WhiteBox"])
def test_weights_that_are_not_finite_are_refused(name, data_root, tmp_path, capsys):
    state = embedded_state_dict("tiny")
    state["logit_scale"] = torch.tensor(float("nan"))
    torch.save(state, tmp_path / "nan.pt")
    options = "MODEL.BACKBONE.NAME", tmp_path / "nan.pt"
    text = sentence(capsys, name, data_root, tmp_path / "out", *options)
    assert "nan.pt are infinite or no numbers in 'logit_scale'" in text
    assert not (tmp_path / "out").exists()


# Checkpoints that do not fit


def another_method(folder):
    path = folder / "prompt_learner" / "model.pth.tar-500"
    state = torch.load(path, weights_only=True)
    state["blackbox"]["identity"]["method"] = "Foreign"
    save_state(path, state)


def truncated(folder):
    path = folder / "prompt_learner" / "model.pth.tar-500"
    path.write_bytes(path.read_bytes()[:5000])


def of_coop(folder):
    save_state(
        folder / "prompt_learner" / "model.pth.tar-500",
        {"state_dict": {"ctx": torch.zeros(8, 128)}, "epoch": 200},
    )


UNFIT = {
    "of another method": (another_method, [], "Foreign.*ZIP"),
    "of another prompt size": (None, ["TRAINER.ZIP.N_CTX", "4"], "prompt of another size"),
    "of another rank": (None, ["TRAINER.ZIP.RANK", "3"], "prompt of another size"),
    "truncated": (truncated, [], "model.pth.tar-500 is not a checkpoint that can be read"),
    "of CoOp": (of_coop, [], "was not written by this version of a black-box trainer"),
}


@pytest.mark.parametrize("how", ["--eval-only", "--resume"])
@pytest.mark.parametrize("change, options, words", UNFIT.values(), ids=UNFIT)
def test_a_checkpoint_that_does_not_fit(
    runs, data_root, tmp_path, capsys, change, options, words, how
):
    folder = tmp_path / "trained"
    shutil.copytree(runs / "ZIP" / "seed1", folder)
    if change:
        change(folder)
    flags = ["--eval-only", "--model-dir", folder] if how == "--eval-only" else ["--resume", folder]
    assert re.search(
        words, sentence(capsys, "ZIP", data_root, tmp_path / "out", *options, flags=flags)
    )
    if how == "--eval-only":
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trained_with", [True, False])
def test_a_checkpoint_with_or_without_a_head(data_root, tmp_path, capsys, budget, trained_with):
    assert (
        run(
            "CraFT",
            data_root,
            tmp_path / "run",
            *budget("CraFT", 1),
            "TRAINER.CRAFT.HEAD",
            trained_with,
        )
        == 0
    )
    flags = "--eval-only", "--model-dir", tmp_path / "run"
    assert "head" in sentence(
        capsys,
        "CraFT",
        data_root,
        tmp_path / "out",
        "TRAINER.CRAFT.HEAD",
        not trained_with,
        flags=flags,
    )
    assert not (tmp_path / "out").exists()


def test_an_epoch_that_was_not_saved(runs, data_root, tmp_path, capsys):
    flags = "--eval-only", "--model-dir", runs / "ZIP" / "seed1", "--load-epoch", 77
    text = sentence(capsys, "ZIP", data_root, tmp_path / "out", flags=flags)
    assert (
        f"No checkpoint at {runs}/ZIP/seed1/prompt_learner/model.pth.tar-77. In that folder: "
        "model.pth.tar-500." in text
    )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_backbone(runs, data_root, tmp_path, capsys):
    state = embedded_state_dict("tiny")
    state["positional_embedding"] *= 1.01
    torch.save(state, tmp_path / "other.pt")
    flags = "--eval-only", "--model-dir", runs / "ZIP" / "seed1"
    text = sentence(
        capsys,
        "ZIP",
        data_root,
        tmp_path / "out",
        "MODEL.BACKBONE.NAME",
        tmp_path / "other.pt",
        flags=flags,
    )
    assert "tiny" in text and str(tmp_path / "other.pt") in text
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_does_not_depend_on_where_its_backbone_lies(runs, data_root, tmp_path):
    torch.save(embedded_state_dict("tiny"), tmp_path / "same.pt")
    flags = "--eval-only", "--model-dir", runs / "ZIP" / "seed1"
    assert (
        run(
            "ZIP",
            data_root,
            tmp_path / "out",
            "MODEL.BACKBONE.NAME",
            tmp_path / "same.pt",
            flags=flags,
        )
        == 0
    )
    assert printed(tmp_path / "out") == printed(runs / "ZIP" / "seed1")


@pytest.mark.parametrize("folder", ["ZIP/seed1", "nothing"])
def test_the_white_box_refuses_what_is_not_its_own(runs, data_root, tmp_path, capsys, folder):
    text = sentence(
        capsys,
        "WhiteBox",
        data_root,
        tmp_path / "out",
        flags=("--eval-only", "--model-dir", runs / folder),
    )
    assert str(runs / folder) in text
    assert not (tmp_path / "out").exists()


# Reading the results


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
        for line in parsed(monkeypatch, capsys, results, runs, "--format", "github").splitlines()
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


def test_two_processes_that_run_alike_are_alike(runs, data_root, tmp_path):
    assert run("ZIP", data_root, tmp_path, "ORACLE.MAX_QUERIES", 47) == 0
    here, there = last_checkpoint(tmp_path), last_checkpoint(runs / "ZIP" / "seed1")
    assert_same(here["state_dict"], there["state_dict"])
    assert_same(random_sources(here), random_sources(there))


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_reader_that_goes_away_does_not_end_a_run(gone, data_root, tmp_path):
    command = [sys.executable, "train.py", *arguments("ZIP", data_root, tmp_path / "run")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, gone: subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPO, **pipes) as started:
        getattr(started, gone).close()
        assert started.wait(600) == 0
    assert "Finish training" in (tmp_path / "run" / "log.txt").read_text()
