"""Files of weights: OpenAI's formats, damage of every kind, and what open_clip knows of GELU."""

import io
import json
import os
import pickle
import random
import re

import numpy
import open_clip
import pytest
import torch
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip import embedded, models
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from torch import nn

VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
MARKS = {"input_resolution": 32, "context_length": 20, "vocab_size": 49408}


@pytest.fixture
def openais(monkeypatch):
    """Whatever is TorchScript here counts as OpenAI's, whose files are too large for a test."""
    monkeypatch.setattr(models, "is_openais", lambda path: True)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return CLIP(32, VIT, TEXT, quick_gelu=True).state_dict()


@pytest.fixture(scope="module", autouse=True)
def configs(tmp_path_factory):
    """`of-file` and `of-file-quickgelu`, known to open_clip."""
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in (("of-file", False), ("of-file-quickgelu", True)):
        config = {"embed_dim": 32, "quick_gelu": quick, "vision_cfg": VIT, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def openai_state(state):
    """In half precision where OpenAI's are, and with the numbers that OpenAI's have beside."""
    half = {k: v.half() if v.ndim > 1 else v for k, v in state.items()}
    return {**half, **{name: torch.tensor(value) for name, value in MARKS.items()}}


def archive(state, path):
    """A TorchScript archive with this state, as OpenAI released its models."""
    root = nn.Module()
    for name, tensor in state.items():
        module = root
        *parents, leaf = name.split(".")
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_buffer(leaf, tensor)
    torch.jit.script(root).save(str(path))


# Damage


def image(path, state):
    Image.new("RGB", (30, 30)).save(path, format="png")


def folder(path, state):
    path.mkdir()


def pipe(path, state):
    os.mkfifo(path)


def endless_link(path, state):
    path.symlink_to(path)


def cut(share, write=None):
    def act(path, state):
        (write or (lambda path, state: torch.save(state, path)))(path, state)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return act


def saved(change):
    return lambda path, state: torch.save(change(state), path)


def bytes_of(content):
    return lambda path, state: path.write_bytes(content)


def archived(path, state):
    archive(openai_state(state), path)


def changed(name, value):
    def change(state):
        other = {k: v.clone() for k, v in state.items()}
        other[name].view(-1)[0] = value
        return other

    return change


def npz():
    content = io.BytesIO()
    numpy.savez(content, a=numpy.ones(3))
    return content.getvalue()


class Foreign:
    """What reading must not make."""


def bare_assertion(state):
    """open_clip raises an AssertionError without a message."""
    return {
        **{f"visual.layer{i}.0.conv1.weight": torch.ones(4, 4) for i in (1, 2, 3, 4)},
        "visual.attnpool.positional_embedding": torch.ones(7, 4),
    }


DAMAGE = {
    "zero bytes": bytes_of(b""),
    "text": bytes_of(b"no model at all\n"),
    "another encoding": bytes_of('{"état": {}}'.encode("utf-16")),
    "json": bytes_of(b'{"state_dict": {}}'),
    "image": image,
    "folder": folder,
    "pipe": pipe,
    "endless link": endless_link,
    "cut at the start": cut(0.01),
    "cut in the middle": cut(0.5),
    "cut at the end": cut(0.999),
    "cut archive": cut(0.7, archived),
    "pickle": lambda path, state: path.write_bytes(pickle.dumps(Foreign())),
    "numpy": lambda path, state: path.write_bytes(npz()),
    "a module": saved(lambda state: nn.Linear(2, 2)),
    "a tensor": saved(lambda state: torch.ones(3)),
    "a list": saved(lambda state: [1, 2]),
    "nothing": saved(lambda state: None),
    "an empty dict": saved(lambda state: {}),
    "numbers": saved(lambda state: {"epoch": 3, "loss": 0.1}),
    "tensors and numbers": saved(lambda state: {**state, "epoch": 3}),
    "numbered tensors": saved(lambda state: dict(enumerate(state.values()))),
    "another model": saved(lambda state: nn.Linear(2, 2).state_dict()),
    "a tower": saved(lambda state: {k: v for k, v in state.items() if k.startswith("visual")}),
    "one missing": saved(lambda state: {k: v for k, v in state.items() if k != "logit_scale"}),
    "one too many": saved(lambda state: {**state, "more": torch.ones(2)}),
    "another width": saved(lambda state: {**state, "text_projection": torch.ones(64, 16)}),
    "scalars": saved(lambda state: {k: torch.tensor(0.0) for k in state}),
    "whole numbers": saved(lambda state: {k: v.long() for k, v in state.items()}),
    "complex numbers": saved(lambda state: {**state, "ln_final.bias": torch.ones(64) * 1j}),
    "sparse": saved(lambda state: {**state, "ln_final.bias": torch.ones(64).to_sparse()}),
    "a bare assertion": saved(bare_assertion),
    "no number": saved(changed("visual.proj", float("nan"))),
    "infinite": saved(changed("token_embedding.weight", float("-inf"))),
    "a hot temperature": saved(changed("logit_scale", 1e3)),
}


@pytest.mark.parametrize("prefix", ["", "of-file-quickgelu:"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_weights_are_a_sentence(kind, prefix, state, tmp_path):
    path = tmp_path / "model.pt"
    DAMAGE[kind](path, state)
    with pytest.raises(BlackBoxError, match="model.pt") as caught:
        load_model(f"{prefix}{path}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_half_precision_does_not_hold(value, state, tmp_path):
    torch.save(changed("visual.proj", value)(state), tmp_path / "model.pt")
    with pytest.raises(BlackBoxError, match="infinite or no numbers in 'visual.proj'"):
        load_model(f"of-file:{tmp_path / 'model.pt'}", "fp16")


def test_weights_that_were_not_copied_to_their_end_are_noted(state, tmp_path, capsys):
    """A file whose space was taken beforehand has zeros where the copy did not come."""
    torch.save(state, tmp_path / "model.pt")
    load_model(f"of-file:{tmp_path / 'model.pt'}")
    assert "are 0" not in capsys.readouterr().out
    lost = {k: torch.zeros_like(v) for k, v in state.items() if k.startswith("transformer.")}
    torch.save({**state, **lost}, tmp_path / "model.pt")
    load_model(f"of-file:{tmp_path / 'model.pt'}", "fp16")
    assert "are 0 in transformer.resblocks.0" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["", "of-file-quickgelu:"])
@pytest.mark.parametrize("kind", ["text", "cut in the middle", "zero bytes"])
def test_damaged_safetensors_are_a_sentence(kind, prefix, state, tmp_path):
    path = tmp_path / "model.safetensors"
    write = cut(0.5, lambda path, state: save_file(state, path))
    (write if kind == "cut in the middle" else DAMAGE[kind])(path, state)
    with pytest.raises(BlackBoxError, match="model.safetensors"):
        load_model(f"{prefix}{path}")


def within(name):
    """The names as `torch.compile` of one tower leaves them."""
    return name.replace("visual.", "visual._orig_mod.")


NUMPY = {"epoch": numpy.int64(3), "best": numpy.float64(0.5), "curve": numpy.ones(3, "float32")}


@pytest.mark.parametrize(
    "holder, rename",
    [
        (lambda s: {"epoch": 3, "state_dict": s}, "module.{}".format),
        (lambda s: s, "_orig_mod.{}".format),
        (lambda s: s, "module._orig_mod.{}".format),
        (lambda s: {"state_dict": s}, "_orig_mod.module.{}".format),
        (lambda s: s, within),
        (lambda s: {"model": {"state_dict": s}}, "model._orig_mod.clip.{}".format),
        (lambda s: {**NUMPY, "state_dict": s}, "{}".format),
        (lambda s: {**NUMPY, "model_state_dict": s}, "model.module.{}".format),
    ],
)
def test_safetensors_and_checkpoints_of_a_training_run_load(holder, rename, state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    torch.save(holder({rename(k): v for k, v in state.items()}), tmp_path / "model.pt")
    names = [tmp_path / "model.safetensors", tmp_path / "model.pt"]
    names += [f"of-file-quickgelu:{tmp_path / 'model.pt'}"]
    assert len({load_model(str(name)).description.fingerprint for name in names}) == 1


@pytest.mark.parametrize("write", ["zip", "legacy", "safetensors", "archive"])
def test_flipped_and_lost_bytes_are_a_sentence(write, tmp_path, openais):
    """Never another exception, and never a hang."""
    rng, small = random.Random(write), {"a.weight": torch.randn(4, 4), "b": torch.ones(3)}
    path = tmp_path / ("model.safetensors" if write == "safetensors" else "model.pt")
    if write == "safetensors":
        save_file(small, path)
    elif write == "archive":
        archive(small, path)
    else:
        torch.save(small, path, _use_new_zipfile_serialization=write == "zip")
    sound = path.read_bytes()
    for _ in range(150):
        content = bytearray(sound)
        for _ in range(rng.choice([0, 1, 1, 5, 50])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        del content[rng.choice([len(content), rng.randrange(len(content))]) :]
        path.write_bytes(content)
        with pytest.raises(BlackBoxError, match="model"):
            load_model(str(path))


@pytest.mark.parametrize(
    "kind", ["zero bytes", "another encoding", "cut in the middle", "folder", "absent"]
)
@pytest.mark.parametrize("file", ["tiny.safetensors", "tiny.json"])
def test_a_damaged_embedded_model_is_a_sentence(file, kind, tmp_path, monkeypatch):
    for name in ("tiny.safetensors", "tiny.json"):
        (tmp_path / name).write_bytes((embedded.ASSETS / name).read_bytes())
    sound = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if kind == "cut in the middle":
        (tmp_path / file).write_bytes(sound[: len(sound) // 2])
    elif kind != "absent":
        DAMAGE[kind](tmp_path / file, None)
    monkeypatch.setattr(embedded, "ASSETS", tmp_path)
    with pytest.raises(BlackBoxError, match="tiny cannot be loaded"):
        load_model("tiny")


def test_a_home_that_cannot_be_found(monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BlackBoxError, match="cannot be loaded"):
        load_model("ViT-B/32")


@pytest.mark.parametrize(
    "name", ["", ":", "a\0b", "x" * 5000, "of-file:", "of-file:a\0b", "/", "."]
)
def test_odd_names(name):
    with pytest.raises(BlackBoxError):
        load_model(name)


# GELU and QuickGELU


@pytest.mark.parametrize(
    "name, words",
    [
        ("ViT-B-32:openai", "name ViT-B-32-quickgelu:openai. They were"),
        ("ViT-B-32:OPENAI", "name ViT-B-32-quickgelu:OPENAI"),
        ("RN50:cc12m", "name RN50-quickgelu:cc12m"),
        ("ViT-H-14:dfn5b", "name ViT-H-14-quickgelu:dfn5b"),
        ("ViT-B-32-quickgelu:laion2b_s34b_b79k", "Unknown pretrained tag"),
        ("ViT-B-32-quickgelu:nothing", "Unknown pretrained tag"),
    ],
)
def test_a_tag_of_the_other_activation_is_refused(name, words):
    with pytest.raises(BlackBoxError, match=words):
        load_model(name)


@pytest.mark.parametrize("write", [archived, saved(openai_state)], ids=["archive", "state dict"])
def test_openais_format_in_a_gelu_architecture_is_refused(write, state, tmp_path, openais):
    path = tmp_path / "model.pt"
    write(path, state)
    with pytest.raises(BlackBoxError, match=f"name of-file-quickgelu:{path}. They were"):
        load_model(f"of-file:{path}")


def test_openais_format_as_a_state_dict(state, tmp_path, capsys):
    torch.save(openai_state(state), tmp_path / "model.pt")
    for prefix in ("", "of-file-quickgelu:"):
        load_model(f"{prefix}{tmp_path / 'model.pt'}")
    assert capsys.readouterr().out == ""


HASHED = "vit_b_32-quickgelu-laion400m_e31-d867053b.pt"
OPENAI_FOLDER = "models--timm--vit_base_patch32_clip_224.openai/snapshots/0/model.pt"
LAION_FOLDER = "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K/snapshots/0/model.pt"


@pytest.mark.parametrize(
    "prefix, place, words",
    [
        ("of-file:", HASHED, "name of-file-quickgelu:"),
        ("of-file:", OPENAI_FOLDER, "name of-file-quickgelu:"),
        ("of-file-quickgelu:", LAION_FOLDER, "name of-file:"),
        ("", LAION_FOLDER, "name an architecture that has GELU:"),
        ("of-file-quickgelu:", HASHED, None),
        ("of-file-quickgelu:", OPENAI_FOLDER, None),
        ("of-file:", LAION_FOLDER, None),
        ("", OPENAI_FOLDER, None),
    ],
)
def test_a_file_that_open_clip_lists_is_known_by_its_name(
    prefix, place, words, state, tmp_path, capsys
):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    (tmp_path / "link.pt").symlink_to(path)
    for name in (f"{prefix}{path}", f"{prefix}{tmp_path / 'link.pt'}"):
        if words:
            with pytest.raises(BlackBoxError, match=words):
                load_model(name)
        else:
            load_model(name)
    assert "Note" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "prefix, words",
    [
        ("of-file:", "of-file has GELU.* QuickGELU, .*name of-file-quickgelu:"),
        ("of-file-quickgelu:", "of-file-quickgelu has QuickGELU.* GELU, .*name of-file:"),
        ("", "format of OpenAI has QuickGELU.*name an architecture that has GELU:"),
    ],
)
def test_a_file_of_unknown_activation_is_said(prefix, words, state, tmp_path, capsys):
    torch.save(state, tmp_path / "model.pt")
    load_model(f"{prefix}{tmp_path / 'model.pt'}")
    assert re.search(f"^Note: .*{words}", capsys.readouterr().out, re.MULTILINE)


def test_openais_own_format_is_taken_without_a_word(state, tmp_path, capsys, openais):
    archived(tmp_path / "model.pt", state)
    for prefix in ("", "of-file-quickgelu:"):
        load_model(f"{prefix}{tmp_path / 'model.pt'}")
    assert capsys.readouterr().out == ""


def test_positions_that_open_clip_interpolates_are_said(state, tmp_path, capsys):
    wider = {**state, "visual.positional_embedding": torch.zeros(26, 64)}
    torch.save(wider, tmp_path / "model.pt")
    load_model(f"of-file:{tmp_path / 'model.pt'}")
    assert "interpolates visual.positional_embedding of the weights" in capsys.readouterr().out
