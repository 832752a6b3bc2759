"""From a name or a file to a model that is open_clip's own, or a sentence that says why not."""

import importlib
import json
import os
import pickle
import re
import runpy
import sys
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import open_clip
import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip import models
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import fingerprint, load_model
from dassl_blackbox.trainers.blackbox.openclip.patches import fold_batch_norms
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from open_clip.model import CLIP, CustomTextCLIP
from oracles import NAMES, oracle_over, pixels, reference
from PIL import Image
from safetensors.torch import save_file
from support import REPO, assert_same, difference, seeded
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import transforms as T

# as small as OpenAI's layout allows, whose heads are 64 wide
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 64}
RESNET = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
FEW_WORDS = {**TEXT, "vocab_size": 100}
MARKS = {"input_resolution": 32, "context_length": 20, "vocab_size": 49408}


def config(vision=VIT, text=None, **more):
    return {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {**TEXT, **(text or {})}, **more}


def timm(name, size, pool, proj):
    made = {"timm_model_name": name, "timm_model_pretrained": False, "image_size": size}
    return {**made, "timm_pool": pool, "timm_proj": proj}


own_text = partial(config, custom_text=True)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Of configurations that open_clip is told of: `of-file` and `of-file-quickgelu`, at first."""
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in (("of-file", False), ("of-file-quickgelu", True)):
        add(folder, name, config(quick_gelu=quick))
    return folder


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return CLIP(32, VIT, TEXT, quick_gelu=True).state_dict()


def add(folder, name, content):
    (folder / f"{name}.json").write_text(json.dumps(content))
    open_clip.add_model_config(folder)


def refused(name, words, precision="fp32"):
    with pytest.raises(BlackBoxError, match=words) as caught:
        load_model(str(name), precision)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
SIGLIP |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
CLIPA = {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}
TOKENS = {**VIT, "output_tokens": True}
POOLED = {**TOKENS, "attentional_pool": True, "attn_pooler_heads": 4}
COCA, WIDE = {"embed_cls": True, "output_tokens": True}, {"embed_dim": 64}
KINDS = {
    "timm-pool": config(timm("resnet10t", 176, "abs_attn", "")),
    "convnext": config(timm("test_convnext", 64, "", "linear")),
    "pe": own_text(timm("vit_pe_core_tiny_patch16_384", 384, "map", None)),
    "mobile": own_text(timm("fastvit_t8", 64, "avg", None), {"no_causal_mask": True}),
    "sigmoid": own_text(timm("test_vit", 160, "map", "none"), SIGLIP, init_logit_bias=-10) | WIDE,
    "clipa-like": config(CLIPA, {"pool_type": "last", "no_causal_mask": True}),
    "coca": own_text(POOLED, COCA, multimodal_cfg=TEXT),
    "eos": own_text(text={"pool_type": "eos", "eos_id": 49407}),
    "query-norm": own_text({**VIT, "qk_norm": True}, {"qk_norm": True}),
    "layer-scale": config({**VIT, "ls_init_value": 0.1}, {"ls_init_value": 0.1}),
    "no-projection": own_text(VIT, {"proj_type": "none"}) | WIDE,
    "vector-scale": config(nonscalar_logit_scale=True, init_logit_bias=-2.0),
    "oblong": config({**VIT, "image_size": [32, 48]}),
}
REFUSED = {
    "no-pool": (config({**VIT, "pool_type": "none"}), "have the logit"),
    "few-words": (config(text={"vocab_size": 32000}), "index out of range"),
    "other-end": (own_text(text={"pool_type": "eos"}), "ends texts with 2"),
    "hf": (config(text={"hf_tokenizer_name": "bert"}), "tokenizer of Hugging Face's"),
}
HALF = {"fp16": 0.02, "bf16": 0.1, "amp": 0.1}  # tolerances


@pytest.fixture(scope="module")
def built(folder):
    """`build` of one of KINDS, once."""
    return cache(lambda kind: build(f"of-{kind}", KINDS[kind], folder))


def build(name, content, folder):
    """Tells open_clip of a configuration; the name of a file of random weights, and the model."""
    add(folder, name, content)
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    tower = getattr(model, "text", model)
    with torch.no_grad():  # at their initial size the words hardly count
        tower.token_embedding.weight *= 30
        tower.positional_embedding *= 10
        if hasattr(model, "text_decoder"):  # which open_clip leaves as the memory was
            model.text_decoder.text_projection.fill_(0.1)
    torch.save(model.state_dict(), folder / f"{name}.pt")
    tokenizer = open_clip.SimpleTokenizer(context_length=tower.context_length)
    return f"{name}:{folder / name}.pt", SimpleNamespace(model=model.eval(), tokenizer=tokenizer)


def compared(name, whole, precision="fp32"):
    """(oracle, images, its logits, open_clip's)."""
    oracle = oracle_over(load_model(name, precision))
    images, words = pixels(oracle), oracle.embed("a photo of a")[None]
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    logits = oracle.query(oracle.upload(images), Prompt(words))[0]
    return oracle, images, logits, reference(whole, images, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_open_clips(kind, built):
    oracle, images, logits, expected = compared(*built(kind))
    assert expected.std(1).min() > 1e-3 * expected.abs().max()  # the names matter
    assert difference(logits, expected) < 1e-5
    told, words = oracle.description, oracle.embed("a")[None]
    assert oracle.text_features(Prompt(words)).shape[-1] == told.embed_dim
    assert oracle.image_features(oracle.upload(images)).shape == (3, told.embed_dim)
    prompt = Prompt(words, torch.randn(1, 2, told.image_width or 8))
    if told.image_width is None:
        with pytest.raises(BlackBoxError, match="admits no image tokens"):
            oracle.query(oracle.upload(images), prompt)
    else:
        assert oracle.query(oracle.upload(images), prompt).isfinite().all()
    for precision in HALF if kind in ("convnext", "sigmoid", "oblong") else ():
        _, _, logits, expected = compared(*built(kind), precision)
        assert difference(logits, expected) < HALF[precision]


def test_what_cannot_be_asked_is_refused(built, folder, state):
    for kind, (content, words) in REFUSED.items():
        add(folder, f"of-{kind}", content)
        torch.save(state, folder / f"of-{kind}.pt")
        name = f"of-{kind}:{folder}/of-{kind}.pt"
        refused(name if kind == "hf" else build(f"of-{kind}", content, folder)[0], words)
    refused(built("coca")[0], "choose another architecture, ORACLE.PREC", "fp16")


def test_a_file_is_fed_as_the_listed_weights_of_its_architecture(built, monkeypatch, capsys):
    found = models.listed_of("PE-Core-B-16", Path("weights.pt"))
    assert found["mean"] == (0.5, 0.5, 0.5)
    assert (found["interpolation"], found["resize_mode"]) == ("bilinear", "squash")
    # without listed weights, or with weights that differ in it
    assert models.listed_of("ViT-B-16-plus", Path("w")) == models.listed_of("ViT-L-14", Path("w"))
    for told in ({"interpolation": "random", "resize_mode": "squash"}, found, {}):
        monkeypatch.setattr(models, "listed_of", lambda arch, path, told=told: told)
        description = load_model(built("oblong")[0]).description
        assert description.interpolation == ("bilinear" if told is found else "bicubic")
        assert ("resizes whole images" in capsys.readouterr().out) == bool(told)


@pytest.mark.parametrize("quick", [False, True])
def test_an_architecture_of_ones_own_is_a_json_file_beside_its_weights(
    quick, state, tmp_path, capsys
):
    path, weights = tmp_path / "own:shape.json", tmp_path / "weights.safetensors"
    path.write_text(json.dumps(config(quick_gelu=quick)))
    save_file(state, weights)
    loaded = load_model(f"{path}:{weights}")
    assert loaded.description.embed_dim == 32 and loaded.description.context_length == 20
    assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())
    assert ("has QuickGELU" if quick else "has GELU") in capsys.readouterr().out
    refused(path, "no file of weights")
    save_file({**state, "logit_scale": torch.tensor(-1000.0)}, weights)
    refused(f"{path}:{weights}", "scaled by 0.0")
    path.write_text(json.dumps(config(text={"depth": 3})))
    refused(f"{path}:{weights}", "unexpected keyword argument 'depth'")


UNKNOWN = {
    "tinny": "Unknown backbone 'tinny' .* did you mean tiny",
    "ViT-B-32": "architecture:tag",  # the tag is missing
    "ViT-B-32:opena": "did you mean openai",
    "ViT-B-32:OPENAI": "name ViT-B-32-quickgelu:OPENAI. They were",  # of the other activation
    **{odd: "" for odd in (":", "a\0b", "of-file:", "of-file:a\0b", "/")},
}


def test_models_that_do_not_exist(tmp_path, monkeypatch):
    for name, words in UNKNOWN.items():
        with pytest.raises(BlackBoxError, match=words):
            load_model(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("ViT-B/32", r"ViT-B/32 cannot be loaded.*Offline, .*copy its file.*~/\.cache/clip")


def saved(change):
    return lambda path, state: torch.save(change(state), path)


def openai_state(state):
    """In half precision where OpenAI's are, and with the numbers that OpenAI's have beside."""
    half = {k: v.half() if v.ndim > 1 else v for k, v in state.items()}
    return {**half, **{name: torch.tensor(value) for name, value in MARKS.items()}}


def archive(path, state):
    """A TorchScript archive with this state, as OpenAI released its models."""
    root = nn.Module()
    for name, tensor in openai_state(state).items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            module = module._modules.setdefault(parent, nn.Module())
        module.register_buffer(leaf, tensor)
    torch.jit.script(root).save(str(path))


def changed(name, value):
    return lambda state: {**state, name: torch.full_like(state[name], value)}


DAMAGE = {
    "pipe": lambda path, state: os.mkfifo(path),
    "pickle": lambda path, state: path.write_bytes(pickle.dumps(SimpleNamespace())),
    "one missing": saved(lambda state: {k: v for k, v in state.items() if k != "logit_scale"}),
    "another width": saved(lambda state: {**state, "text_projection": torch.ones(64, 16)}),
    "no number": saved(changed("visual.proj", float("nan"))),
    "a hot temperature": saved(changed("logit_scale", 1e3)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_weights_are_a_sentence(kind, state, tmp_path):
    DAMAGE[kind](tmp_path / "model.pt", state)
    for prefix in ("", "of-file-quickgelu:"):
        refused(f"{prefix}{tmp_path / 'model.pt'}", "model.pt")


def test_weights_that_were_not_copied_to_their_end_or_do_not_fit(state, tmp_path, capsys):
    """A file whose space was taken beforehand has zeros where the copy did not come."""
    lost = {k: torch.zeros_like(v) for k, v in state.items() if k.startswith("transformer.")}
    wider = {"visual.positional_embedding": torch.ones(26, 64)}
    told, name = [], f"of-file:{tmp_path / 'model.pt'}"
    for change in ({}, lost, wider):
        torch.save({**state, **change}, tmp_path / "model.pt")
        load_model(name)
        told.append(capsys.readouterr().out)
    assert "are 0" not in told[0] and "interpolates" not in told[0]
    assert "are 0 in transformer.resblocks.0" in told[1]
    assert "interpolates visual.positional_embedding of the weights" in told[2]
    torch.save(changed("visual.proj", 1e6)(state), tmp_path / "model.pt")
    refused(name, "infinite or no numbers in 'visual.proj'", "fp16")


NUMPY = {"epoch": numpy.int64(3), "best": numpy.float64(0.5), "curve": numpy.ones(3, "float32")}
HELD = [  # by training code: where the weights are, and what stands before their names
    (lambda s: {"epoch": 3, "state_dict": s}, "module.{}"),
    (lambda s: {k.replace("visual.", "visual._orig_mod."): v for k, v in s.items()}, "{}"),
    (lambda s: {"model": {"state_dict": s}}, "model._orig_mod.clip.{}"),
    (lambda s: {**NUMPY, "model_state_dict": s}, "_orig_mod.module.{}"),
]


def test_safetensors_and_checkpoints_of_a_training_run_load(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    found = {load_model(f"of-file-quickgelu:{tmp_path}/model.safetensors").description.fingerprint}
    for holder, name in HELD:
        torch.save(holder({name.format(k): v for k, v in state.items()}), tmp_path / "model.pt")
        found.add(load_model(f"{tmp_path}/model.pt").description.fingerprint)
    assert len(found) == 1


def test_the_exported_tiny_model_loads_in_openais_format(loaded, tmp_path):
    path, texts = tmp_path / "tiny_clip.pt", ["a photo of a cat", "two"]
    runpy.run_path(str(REPO / "tools" / "freeze_tiny.py"))["export"](path)
    found, tiny, images = load_model(str(path)), loaded("tiny"), torch.randn(2, 3, 32, 32)
    assert difference(reference(found, images, texts), reference(tiny, images, texts)) < 1e-5
    assert found.description.mean == pytest.approx(tiny.description.mean, abs=1e-6)


@pytest.mark.parametrize("write", [archive, saved(openai_state)], ids=["archive", "state dict"])
def test_openais_format_is_taken_without_a_word_and_never_with_gelu(
    write, state, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(models, "is_openais", lambda path: True)  # whose files are too large
    write(tmp_path / "model.pt", state)
    found = {
        load_model(f"{prefix}{tmp_path}/model.pt").description.fingerprint
        for prefix in ("", "of-file-quickgelu:")
    }
    assert len(found) == 1 and capsys.readouterr().out == ""
    refused(f"of-file:{tmp_path}/model.pt", f"name of-file-quickgelu:{tmp_path}/model.pt. They")


HASHED = "vit_b_32-quickgelu-laion400m_e31-d867053b.pt"
OPENAI_FOLDER = "models--timm--vit_base_patch32_clip_224.openai/snapshots/0/model.pt"
LAION_FOLDER = "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K/snapshots/0/model.pt"
LISTED = [
    ("of-file:", HASHED, "name of-file-quickgelu:", None),
    ("of-file:", OPENAI_FOLDER, "name of-file-quickgelu:", None),
    ("of-file-quickgelu:", LAION_FOLDER, "name of-file:", None),
    ("", LAION_FOLDER, "name an architecture that has GELU:", None),
    ("", OPENAI_FOLDER, None, None),
    ("of-file:", "model.pt", None, "of-file has GELU.* QuickGELU, .*name of-file-quickgelu:"),
    ("of-file-quickgelu:", "model.pt", None, "has QuickGELU.* GELU, .*name of-file:"),
    ("", "model.pt", None, "format of OpenAI has QuickGELU.*name an architecture that has GELU:"),
]


@pytest.mark.parametrize("prefix, place, words, note", LISTED)
def test_the_activation_of_a_listed_file_is_known_by_its_name_and_else_said(
    prefix, place, words, note, state, tmp_path, capsys
):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    (tmp_path / "link.pt").symlink_to(path)
    for name in (f"{prefix}{path}", f"{prefix}{tmp_path / 'link.pt'}"):
        refused(name, words) if words else load_model(name)
        out = capsys.readouterr().out
        assert re.search(f"^Note: .*{note}", out, re.M) if note else "Note" not in out


def make(vision=VIT, text=FEW_WORDS, kind=CLIP, **more):
    torch.manual_seed(0)
    model = kind(32, vision, text, **more).eval()
    model.visual.image_mean = model.visual.image_std = (0.5,) * 3
    return model


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_every_weight_counts(vision):
    model = make(vision, init_logit_bias=1.0)
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    found = {fingerprint(model)}
    for tensor in weights.values():
        before = tensor.flatten()[-1].clone()
        tensor.view(-1)[-1] = torch.nextafter(before, torch.tensor(9.0))
        found.add(fingerprint(model))
        tensor.view(-1)[-1] = before
    assert len(found) == len(weights) + 1 and fingerprint(model) in found


BLOCK, WORDS = "visual.transformer.resblocks.1", "transformer.resblocks.0"
FACTS = [  # (part of the model, attribute, value)
    (f"{BLOCK}.mlp", "gelu", open_clip.transformer.QuickGELU()),
    (f"{WORDS}.mlp", "gelu", nn.GELU(approximate="tanh")),
    ("visual", "ln_pre", nn.RMSNorm(64)),
    (f"{BLOCK}.attn", "num_heads", 2),
    (f"{WORDS}.ln_1", "eps", 1e-6),
    ("visual.conv1", "stride", (4, 4)),
    ("visual", "image_size", (40, 40)),
    ("visual", "image_mean", (0.4, 0.5, 0.5)),
    ("visual", "pool_type", "avg"),
    ("visual", "final_ln_after_pool", True),
    ("", "context_length", 19),
    ("", "text_pool_type", "last"),
    ("", "attn_mask", torch.zeros(20, 20)),
]


def test_what_the_architecture_makes_of_the_weights_counts():
    """What a new release may add does not."""
    model = make()
    before = fingerprint(model)
    for part, name, value in FACTS:
        module = model.get_submodule(part)
        former = getattr(module, name)
        setattr(module, name, value)
        assert fingerprint(model) != before, (part, name)
        setattr(module, name, former)
    for module in list(model.modules()):
        module.added_attribute, module.num_positions = 3, "new"
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            module.added_drop, module.added_identity = nn.Dropout(0.1), nn.Identity()
    model.visual.patch_dropout = nn.Sequential(nn.Identity(), nn.Dropout())
    assert fingerprint(model) == before


def test_numbers_of_the_text_tower_count_where_they_are_used():
    eos, cls = {"pool_type": "eos"}, {"embed_cls": True}
    for told, number, count in ((eos, "eos_id", 2), (cls, "pad_id", 2), ({}, "eos_id", 1)):
        texts = [{**FEW_WORDS, **told, number: value} for value in (3, 4)]
        assert len({fingerprint(make(text=text, kind=CustomTextCLIP)) for text in texts}) == count


def test_neither_the_precision_nor_the_way_to_the_weights_counts(state, tmp_path, monkeypatch):
    """OpenAI's archive and state dict, open_clip's name; half and single precision."""
    monkeypatch.setattr(models, "is_openais", lambda path: True)
    state = {k: v.half().float() for k, v in state.items()}
    torch.save(state, tmp_path / "single.pt")
    torch.save(openai_state(state), tmp_path / "half.pt")
    archive(tmp_path / "archive.pt", state)
    named = f"of-file-quickgelu:{tmp_path}/single.pt"
    ways = [(named, kind) for kind in ("fp32", "fp16", "bf16", "amp")]
    ways += [(f"{tmp_path}/{file}.pt", "fp32") for file in ("single", "half", "archive")]
    (found,) = {load_model(*way).description.fingerprint for way in ways}
    assert len(found) == 64
    assert found != load_model(f"of-file:{tmp_path}/single.pt").description.fingerprint


class Twice(nn.Sequential):
    """A convolution whose answer is read by its norm and beside it."""

    image_size = 16

    def forward(self, pixels):
        found = self[0](pixels)
        return (self[1](found) + found).mean((2, 3))


def test_norms_are_folded_where_the_features_stay_and_in_single_precision():
    def norms(tower):
        return [part for part in tower.modules() if isinstance(part, _BatchNorm)]

    twice = Twice(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    twice[1].running_mean.fill_(1)
    assert fold_batch_norms(twice) is twice
    plain = models.build(models.find("photo"), None).eval().visual
    before = deepcopy(plain.state_dict())
    folded, pixels = fold_batch_norms(plain), torch.rand(2, 3, 192, 192)
    assert len(norms(plain)) > 60 and not norms(folded)
    assert difference(*(F.normalize(tower(pixels), dim=-1) for tower in (folded, plain))) < 1e-4
    assert_same(plain.state_dict(), before)
    assert not norms(fold_batch_norms(make(RESNET).visual))
    assert len(norms(load_model("photo", "bf16").model.visual)) == len(norms(plain))


# The embedded models, and what tools/ makes of them


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    for name in [name for name in sys.modules if name.split(".")[0] in ("photo", "tiny")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module


def test_packed_weights_are_read_again(parts, tmp_path):
    g, powers = seeded(5), torch.logspace(-6, 1, 64)[:, None, None, None]
    state = {
        "token_embedding.weight": torch.randn(30, 256, generator=g),
        "kernel": torch.randn(64, 8, 3, 3, generator=g) * powers,
        "bias": torch.randn(64, generator=g),
        "bn.running_var": torch.full((64,), 1e6),
        "zero": torch.zeros(64, 64),
    }
    rows, config = torch.arange(0, 60, 2), {"model_cfg": {"text_cfg": {"vocab_size": 100}}}
    save_file(parts("build_photo").pack(state, rows), tmp_path / "photo.safetensors")
    (tmp_path / "photo.json").write_text(json.dumps(config))
    read = embedded_state_dict("photo", tmp_path)
    table = read["token_embedding.weight"]
    assert table.shape == (100, 256) and table[1::2].std() == pytest.approx(1, abs=0.05)
    read["token_embedding.weight"] = table[rows]
    assert read.keys() == state.keys()
    for name, value in state.items():
        step = value.flatten(1).abs().amax(1) / 253 if value.ndim > 1 else value.abs() / 1024
        bound = step.view(-1, *[1] * (value.ndim - 1)) + 1e-9
        assert ((read[name] - value).abs() <= bound).all(), name


def test_photo_sees_photographs():
    """scikit-learn's two pictures, which no part of it was chosen by."""
    from sklearn.datasets import load_sample_images

    model = load_model("photo")
    about, oracle = model.description, LocalOracle(model)
    steps = [T.Resize(192), T.CenterCrop(192), T.ToTensor(), T.Normalize(about.mean, about.std)]
    images = [T.Compose(steps)(Image.fromarray(a)) for a in load_sample_images().images]
    names = ["temple", "flower", "dog", "car", "guitar", "pizza", "boat", "chair", "horse", "cup"]
    oracle.set_classes(names, "a photo of a {}.")
    logits = oracle.query(oracle.upload(torch.stack(images)), Prompt())[0]
    assert [names[i] for i in logits.argmax(1)] == ["temple", "flower"]
