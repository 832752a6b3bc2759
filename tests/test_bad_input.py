"""Bad input on the command line: one sentence that says what is wrong, and nothing left behind."""

import re

import pytest
import torch
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict
from support import OURS, arguments, process, sentence

BAD = {
    "trainer": (["--trainer", "ZIPP"], [], "Unknown trainer.*'ZIPP': did you mean ZIP"),
    "data set": ([], ["DATASET.NAME", "Digit"], "Unknown data set.*'Digit': did you mean Digits"),
    "backbone": (
        [],
        ["MODEL.BACKBONE.NAME", "ViT-B/61"],
        "Unknown backbone 'ViT-B/61'.*did you mean ViT-B/16",
    ),
    "precision": ([], ["ORACLE.PREC", "fp61"], "ORACLE.PREC is 'fp61'.*'fp32' or 'fp16'"),
    "rule": ([], ["TRAINER.ZIP.RULE", "spsaclip"], "RULE is 'spsaclip'.*'spsa-clip'"),
    "grant": (
        [],
        ["ORACLE.GRANTS", "['logit']"],
        "GRANTS.*logit.*contexts, image_tokens, logits, features",
    ),
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
    "too many tokens": ([], ["TRAINER.ZIP.N_CTX", "75"], "with 75 context tokens"),
    "too many words": ([], ["TRAINER.ZIP.CTX_INIT", "x " * 80], "with 80 context tokens"),
    "too small ID": ([], ["TRAINER.ZIP.ID", "7"], "ID // n = 0"),
    "too large ID": ([], ["TRAINER.ZIP.ID", "1100"], "between 8 and 1031"),
    "rank": ([], ["TRAINER.ZIP.RANK", "0"], "RANK is 0"),
    "budget": (
        [],
        ["ORACLE.MAX_QUERIES", "9"],
        "MAX_QUERIES does not pay for more: 0 of 9 queries are used, the next request costs 10",
    ),
    "image budget": (
        [],
        ["ORACLE.MAX_IMAGE_QUERIES", "79"],
        "MAX_IMAGE_QUERIES does not pay .*: 0 of 79 image queries are used, the next .* costs 80",
    ),
    "input size": (
        [],
        ["INPUT.SIZE", "(64, 64)"],
        r"INPUT.SIZE is \(64, 64\), but tiny expects \(32, 32\)",
    ),
    "input mean": ([], ["INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]"], "INPUT.PIXEL_MEAN"),
    "transforms": ([], ["INPUT.TRANSFORMS", "['random_flip']"], "'normalize'"),
    "options behind a flag that takes them": (
        ["--transforms", "normalize"],
        [],
        "built .*INPUT.TRANSFORMS",
    ),
    "missing model": (
        ["--eval-only", "--model-dir", "no/such/run"],
        [],
        "no/such/run: no such folder. Give the output folder",
    ),
    "no model": (["--eval-only"], [], "There is no .*--model-dir"),
    "a tag of an embedded model": (
        [],
        ["MODEL.BACKBONE.NAME", "photo:x"],
        "Unknown architecture of open_clip 'photo'",
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
        (None, "has no split file {}/split_zhou_Caltech101.json"),
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
    assert "nan.pt cannot be loaded" in text and "no numbers in 'logit_scale'" in text
    assert not (tmp_path / "out").exists()
