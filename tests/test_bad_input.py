"""Bad input, and checkpoints that do not fit: one sentence, and nothing left behind."""

import re
import shutil

import pytest
import torch
from dassl_blackbox.trainers.blackbox.config import node_of
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.files import save_state
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict
from support import OURS, TRAINED, build, examples, own, printed, run, seeded, sentence


@pytest.fixture
def refused(data_root, tmp_path, capsys):
    """`refused(words, *options)`: a run ends with a sentence that has the words, leaves nothing."""

    def check(words, *options, name="ZIP", root=data_root, flags=()):
        said = sentence(capsys, name, root, tmp_path / "out", *options, flags=flags)
        assert re.search(words, said), said
        assert not (tmp_path / "out").exists()

    return check


# flags or options, and words of the sentence; keys whose value does not fit are in test_config.py
BAD = [
    ("DATASET.NAME Digit", "Unknown data set.*'Digit': did you mean Digits"),
    ("MODEL.BACKBONE.NAME ViT-B/61", "Unknown backbone 'ViT-B/61'.*did you mean ViT-B/16"),
    ("ORACLE.GRANTS ['logit']", "GRANTS.*logit.*contexts, image_tokens, logits, features"),
    ("TRAINER.ZIP.RANK", "KEY VALUE"),
    ("TRAINER.ZIP.ID 1100", "between 8 and 1031"),
    ("ORACLE.MAX_QUERIES 9", "more: 0 of 9 queries are used, the next request costs 10"),
    ("ORACLE.MAX_IMAGE_QUERIES 79", "more: 0 of 79 image queries are used, the next .* costs 80"),
    ("INPUT.SIZE (64,64)", r"INPUT.SIZE is \(64, 64\), but tiny expects \(32, 32\)"),
    ("INPUT.TRANSFORMS ['random_flip']", "'normalize'"),
    ("--trainer ZIPP", "Unknown trainer.*'ZIPP': did you mean ZIP"),
    ("--config-file no/such.yaml", "no/such.yaml cannot be read"),
    # options behind a flag that takes them
    ("--transforms normalize", "built .*INPUT.TRANSFORMS"),
    ("--eval-only --model-dir no/such/run", "no/such/run: no such folder. Give the output folder"),
    ("--eval-only", "There is no .*--model-dir"),
]


@pytest.mark.parametrize("given, words", BAD)
def test_bad_words_on_the_command_line(refused, given, words):
    given = given.split()
    flags = given if given[0].startswith("-") else []
    refused(words, *([] if flags else given), flags=flags)


@pytest.mark.parametrize("name", [name for name, cls in OURS.items() if "N_CTX" in cls.keys])
def test_a_context_that_leaves_no_room_for_the_class_names(refused, name):
    words = "The class name 'zero' takes 2 tokens with its template; with 74 context tokens"
    refused(words, *own(name, N_CTX=74, CTX_INIT=""), name=name)


def another_method(path):
    state = torch.load(path, weights_only=True)
    state["blackbox"]["identity"]["method"] = "Foreign"
    save_state(path, state)


def of_coop(path):
    save_state(path, {"state_dict": {"ctx": torch.zeros(8, 128)}, "epoch": 200})


def truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


UNFIT = {
    "of another method": (another_method, {}, "Foreign.*ZIP"),
    "of another prompt size": (None, {"N_CTX": 4}, "N_CTX: 8 there, 4 here"),
    "of another rank": (None, {"RANK": 3}, "TRAINER.ZIP.RANK: 5 there, 3 here"),
    "truncated": (truncated, {}, "model.pth.tar-500 is not a checkpoint that can be read"),
    "of CoOp": (of_coop, {}, "is no checkpoint of these trainers"),
}


@pytest.mark.parametrize("flags", [("--eval-only", "--model-dir"), ("--resume",)])
@pytest.mark.parametrize("change, options, words", UNFIT.values(), ids=UNFIT)
def test_an_unfit_checkpoint(runs, data_root, tmp_path, capsys, change, options, words, flags):
    folder = tmp_path / "trained"
    shutil.copytree(runs / "ZIP" / "seed1", folder)
    if change:
        change(folder / "prompt_learner" / "model.pth.tar-500")
    line = "ZIP", data_root, tmp_path / "out", *own("ZIP", **options)
    assert re.search(words, sentence(capsys, *line, flags=(*flags, folder)))
    assert flags == ("--resume",) or not (tmp_path / "out").exists()


HEADS = [
    ("CraFT", {"HEAD": True}, {"HEAD": False}),
    ("JOLT", {"HEAD_FOLDS": 4}, {"HEAD_FOLDS": 2}),
    # what the head's answers depend on
    ("SONAR", {"TEMPLATE": "{}."}, {"TEMPLATE": "an odd {}"}),
]


@pytest.mark.parametrize("name, made, here", HEADS)
def test_a_head_that_is_not_of_the_settings(name, made, here, data_root, tmp_path, budget, refused):
    options = *budget(name, 1), *own(name, **made)
    assert run(name, data_root, tmp_path / "run", *options) == 0
    ((key, there),) = made.items()
    words = f"TRAINER.{name.upper()}.{key}: {there} there, {here[key]} here"
    flags = "--eval-only", "--model-dir", tmp_path / "run"
    refused(re.escape(words), *own(name, **here), name=name, flags=flags)
    if name == "SONAR":
        words = r"made with other settings \(ORACLE.TOP_K: "
        refused(words, "ORACLE.TOP_K", 2, *own(name, **made), name=name, flags=flags)


def test_a_setting_that_evaluation_reads_is_noted(data_root, budget, tmp_path, capsys):
    assert run("BlackVIP", data_root, tmp_path / "run", *budget("BlackVIP", 2)) == 0
    flags = "--eval-only", "--model-dir", tmp_path / "run"
    assert run("BlackVIP", data_root, tmp_path, *own("BlackVIP", EPS=0.5), flags=flags) == 0
    words = "other settings (TRAINER.BLACKVIP.EPS: 1.0 there, 0.5 here), which evaluation reads"
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["ZIP/seed1", "nothing"])
def test_the_white_box_refuses_what_is_not_its_own(runs, refused, folder):
    flags = "--eval-only", "--model-dir", runs / folder
    refused(re.escape(str(runs / folder)), name="WhiteBox", flags=flags)


def test_an_epoch_that_was_not_saved(runs, refused):
    folder = runs / "ZIP" / "seed1"
    words = f"There is no {folder}/prompt_learner/model.pth.tar-77. In that folder: "
    flags = "--eval-only", "--model-dir", folder, "--load-epoch", 77
    refused(re.escape(f"{words}model.pth.tar-500."), flags=flags)


def test_a_checkpoint_is_of_its_backbone_wherever_that_lies(runs, data_root, tmp_path, refused):
    trained, key, path = runs / "ZIP" / "seed1", "MODEL.BACKBONE.NAME", tmp_path / "model.pt"
    flags, state = ("--eval-only", "--model-dir", trained), embedded_state_dict("tiny")
    torch.save(state, path)
    assert run("ZIP", data_root, tmp_path / "same", key, path, flags=flags) == 0
    assert printed(tmp_path / "same") == printed(trained)
    state["positional_embedding"] *= 1.01
    torch.save(state, path)
    refused(f"tiny.*{path}", key, path, flags=flags)


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINED)
def test_evaluation_with_other_settings_is_the_same_or_says_so(
    data_root, budget, tmp_path, capsys, name
):
    """Of every key of the method: a checkpoint carries it, or a note or an error names it."""

    def answers(trainer):
        pixels = torch.randn(4, 3, 32, 32, generator=seeded())
        trainer.load_model(str(folder))
        trainer.set_model_mode("eval")
        with torch.no_grad(), trainer.oracle.evaluation():
            return trainer.model_inference(pixels)

    folder = tmp_path / "run"
    assert not run(name, data_root, folder, *budget(name, 2))
    expected = answers(build(name, data_root, tmp_path / "same"))
    for key, entry in OURS[name].keys.items():
        full = f"TRAINER.{node_of(OURS[name])}.{key}"
        for number, value in enumerate(examples(entry, True)[:3]):
            out = tmp_path / f"{key}{number}"
            capsys.readouterr()
            try:
                found = answers(build(name, data_root, out, full, value))
            except BlackBoxError as e:
                assert str(e)
                continue
            if full not in capsys.readouterr().out:
                assert torch.equal(found, expected), (full, value)
