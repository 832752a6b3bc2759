"""Models are loaded by name or from a file; what is none, or cannot be had, is a sentence."""

import runpy

import pytest
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from oracles import contexts_of, oracle_over, pixels
from support import REPO, difference


def test_the_exported_tiny_model_loads_in_openais_format(loaded, tmp_path):
    path = tmp_path / "tiny_clip.pt"
    runpy.run_path(str(REPO / "tools" / "freeze_tiny.py"))["export"](path)
    exported, tiny = oracle_over(load_model(str(path))), oracle_over(loaded("tiny"))
    images, contexts = pixels(tiny), contexts_of(tiny)
    assert (
        difference(
            exported.query(exported.upload(images), Prompt(contexts)),
            tiny.query(tiny.upload(images), Prompt(contexts)),
        )
        < 1e-5
    )
    assert exported.description.image_size == tiny.description.image_size
    assert exported.description.mean == pytest.approx(tiny.description.mean, abs=1e-6)


@pytest.mark.parametrize(
    "name, precision, words",
    [
        ("tinny", "fp32", "Unknown backbone 'tinny' .* did you mean tiny"),
        ("ViT-B/61", "fp32", "did you mean ViT-B/16"),
        ("RN5O", "fp32", "did you mean RN50"),
        ("ViT-B-32", "fp32", "architecture:tag"),  # the tag is missing
        ("tiny", "fp23", "Unknown precision .* did you mean fp32"),
        (
            "ViT-B-23:openai",
            "fp32",
            "Unknown architecture of open_clip 'ViT-B-23': did you mean .*ViT-B-32",
        ),
        ("ViT-B-32:opena", "fp32", "did you mean openai"),
    ],
)
def test_models_that_do_not_exist(name, precision, words):
    with pytest.raises(BlackBoxError, match=words):
        load_model(name, precision)


@pytest.mark.parametrize("prefix", ["", "ViT-B-32:"])
def test_a_file_that_is_no_model(prefix, tmp_path):
    path = tmp_path / "garbage.pt"
    path.write_bytes(b"no model at all")
    with pytest.raises(BlackBoxError, match=f"{path}|garbage.pt") as caught:
        load_model(f"{prefix}{path}")
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BlackBoxError,
        match=r"(?s)ViT-B/32 cannot be loaded.*Offline, .*copy its file.*~/\.cache/clip",
    ) as caught:
        load_model("ViT-B/32")
    assert "\n" not in str(caught.value)
