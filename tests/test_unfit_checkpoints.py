"""Checkpoints that do not fit: of another method, size or backbone, damaged, not there."""

import re
import shutil

import pytest
import torch
from dassl_blackbox.trainers.blackbox.config import node_of
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import save_state
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict
from support import OURS, TRAINED, build, examples, printed, run, seeded, sentence


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
    "of another prompt size": (None, ["TRAINER.ZIP.N_CTX", "4"], "N_CTX: 8 there, 4 here"),
    "of another rank": (None, ["TRAINER.ZIP.RANK", "3"], "TRAINER.ZIP.RANK: 5 there, 3 here"),
    "truncated": (truncated, [], "model.pth.tar-500 is not a checkpoint that can be read"),
    "of CoOp": (of_coop, [], "is no checkpoint of these trainers"),
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
    key = "TRAINER.CRAFT.HEAD"
    made = *budget("CraFT", 1), key, trained_with
    assert run("CraFT", data_root, tmp_path / "run", *made) == 0
    flags, here = ("--eval-only", "--model-dir", tmp_path / "run"), (key, not trained_with)
    words = f"{key}: {trained_with} there, {not trained_with} here"
    assert words in sentence(capsys, "CraFT", data_root, tmp_path / "out", *here, flags=flags)
    assert not (tmp_path / "out").exists()


def test_an_epoch_that_was_not_saved(runs, data_root, tmp_path, capsys):
    flags = "--eval-only", "--model-dir", runs / "ZIP" / "seed1", "--load-epoch", 77
    text = sentence(capsys, "ZIP", data_root, tmp_path / "out", flags=flags)
    assert (
        f"There is no {runs}/ZIP/seed1/prompt_learner/model.pth.tar-77. In that folder: "
        "model.pth.tar-500." in text
    )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_backbone(runs, data_root, tmp_path, capsys):
    state = embedded_state_dict("tiny")
    state["positional_embedding"] *= 1.01
    torch.save(state, tmp_path / "other.pt")
    flags = "--eval-only", "--model-dir", runs / "ZIP" / "seed1"
    other = "MODEL.BACKBONE.NAME", tmp_path / "other.pt"
    text = sentence(capsys, "ZIP", data_root, tmp_path / "out", *other, flags=flags)
    assert "tiny" in text and str(tmp_path / "other.pt") in text
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_does_not_depend_on_where_its_backbone_lies(runs, data_root, tmp_path):
    torch.save(embedded_state_dict("tiny"), tmp_path / "same.pt")
    flags = "--eval-only", "--model-dir", runs / "ZIP" / "seed1"
    same = "MODEL.BACKBONE.NAME", tmp_path / "same.pt"
    assert run("ZIP", data_root, tmp_path / "out", *same, flags=flags) == 0
    assert printed(tmp_path / "out") == printed(runs / "ZIP" / "seed1")


@pytest.mark.parametrize("folder", ["ZIP/seed1", "nothing"])
def test_the_white_box_refuses_what_is_not_its_own(runs, data_root, tmp_path, capsys, folder):
    flags = "--eval-only", "--model-dir", runs / folder
    text = sentence(capsys, "WhiteBox", data_root, tmp_path / "out", flags=flags)
    assert str(runs / folder) in text
    assert not (tmp_path / "out").exists()


def answers(trainer, folder):
    """What the model of a run says of four images."""
    pixels = torch.randn(4, 3, 32, 32, generator=seeded())
    trainer.load_model(str(folder))
    trainer.set_model_mode("eval")
    with torch.no_grad(), trainer.oracle.evaluation():
        return trainer.model_inference(pixels)


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINED)
def test_evaluation_with_another_setting_is_the_same_or_says_so(
    data_root, budget, tmp_path, capsys, name
):
    """Of every key of the method: a checkpoint carries it, or a note or an error names it."""
    folder = tmp_path / "run"
    assert not run(name, data_root, folder, *budget(name, 2))
    expected = answers(build(name, data_root, tmp_path / "same"), folder)
    for key, entry in OURS[name].keys.items():
        full = f"TRAINER.{node_of(OURS[name])}.{key}"
        for number, value in enumerate(examples(entry, True)[:3]):
            out = tmp_path / f"{key}{number}"
            capsys.readouterr()
            try:
                found = answers(build(name, data_root, out, full, value), folder)
            except BlackBoxError as e:
                assert str(e)
                continue
            if full not in capsys.readouterr().out:
                assert torch.equal(found, expected), (full, value)


def test_a_head_is_not_evaluated_on_other_answers_than_it_was_fitted_to(
    data_root, budget, tmp_path, capsys
):
    for name in ("SONAR", "BlackVIP"):
        assert not run(name, data_root, tmp_path / name, *budget(name, 2))
    flags = "--eval-only", "--model-dir", tmp_path / "SONAR"
    for name, value in (("TRAINER.SONAR.TEMPLATE", "an odd {}"), ("ORACLE.TOP_K", 2)):
        error = sentence(capsys, "SONAR", data_root, tmp_path / "out", name, value, flags=flags)
        assert f"made with other settings ({name}: " in error
    flags = "--eval-only", "--model-dir", tmp_path / "BlackVIP"
    options = "TRAINER.BLACKVIP.EPS", 0.5
    assert not run("BlackVIP", data_root, tmp_path / "noted", *options, flags=flags)
    assert "other settings (TRAINER.BLACKVIP.EPS: 1.0 there, 0.5 here), which evaluation reads" in (
        capsys.readouterr().out
    )
