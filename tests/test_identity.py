"""The fingerprint of a model: everything that its answers come from, and nothing else."""

import json

import open_clip
import pytest
import torch
from dassl_blackbox.trainers.blackbox.openclip import models
from dassl_blackbox.trainers.blackbox.openclip.models import fingerprint, load_model
from open_clip.model import CLIP, CustomTextCLIP
from test_weights import archive, openai_state
from torch import nn

VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 64}
RESNET = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """`of-id` and `of-id-quickgelu`, known to open_clip."""
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in (("of-id", False), ("of-id-quickgelu", True)):
        config = {"embed_dim": 32, "quick_gelu": quick, "vision_cfg": VIT, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


FEW_WORDS = {**TEXT, "vocab_size": 100}


def make(vision=VIT, text=FEW_WORDS, kind=CLIP, **more):
    torch.manual_seed(0)
    model = kind(32, vision, text, **more).eval()
    model.visual.image_mean = model.visual.image_std = (0.5,) * 3
    return model


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_every_weight_counts(vision):
    model = make(vision, init_logit_bias=1.0)
    found = {fingerprint(model)}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        before = tensor.flatten()[-1].clone()
        tensor.view(-1)[-1] = torch.nextafter(before, torch.tensor(9.0))
        other = fingerprint(model)
        assert other not in found, name
        found.add(other)
        tensor.view(-1)[-1] = before
    assert fingerprint(model) in found


def change(path, **values):
    """Sets attributes of a part of the model."""

    def act(model):
        for name, value in values.items():
            setattr(model.get_submodule(path), name, value)

    return act


def other_module(path, module):
    """Puts another module in a place."""

    def act(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)

    return act


@pytest.mark.parametrize(
    "act",
    [
        other_module("visual.transformer.resblocks.1.mlp.gelu", open_clip.transformer.QuickGELU()),
        other_module("transformer.resblocks.0.mlp.gelu", nn.GELU(approximate="tanh")),
        other_module("visual.ln_pre", nn.RMSNorm(64)),
        change("visual.transformer.resblocks.0.attn", num_heads=2),
        change("transformer.resblocks.1.attn", num_heads=4),
        change("transformer.resblocks.0.ln_1", eps=1e-6),
        change("visual.conv1", stride=(4, 4)),
        change("visual.conv1", padding=(1, 1)),
        change("visual", image_size=(40, 40)),
        change("visual", image_mean=(0.4, 0.5, 0.5)),
        change("visual", image_std=(0.4, 0.5, 0.5)),
        change("visual", pool_type="avg"),
        change("visual", final_ln_after_pool=True),
        change("", context_length=19),
        change("", text_pool_type="last"),
        change("", attn_mask=None),
        change("", attn_mask=torch.zeros(20, 20)),
    ],
)
def test_what_the_architecture_makes_of_the_weights_counts(act):
    model = make()
    before = fingerprint(model)
    act(model)
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    "change_text", [{"pool_type": "eos", "eos_id": 7}, {"embed_cls": True, "pad_id": 3}]
)
def test_numbers_of_the_text_tower_count_where_they_are_used(change_text):
    found = {fingerprint(make(text={**FEW_WORDS, **change_text}, kind=CustomTextCLIP))}
    number = {name: value + 1 for name, value in change_text.items() if name.endswith("_id")}
    found.add(fingerprint(make(text={**FEW_WORDS, **change_text, **number}, kind=CustomTextCLIP)))
    assert len(found) == 2
    plain = {
        fingerprint(make(text={**FEW_WORDS, "pad_id": i, "eos_id": i}, kind=CustomTextCLIP))
        for i in (3, 4)
    }
    assert len(plain) == 1


def test_what_a_new_release_may_add_does_not_count():
    model = make()
    before = fingerprint(model)
    for module in list(model.modules()):
        module.added_attribute, module.num_positions = 3, "new"
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            module.added_drop, module.added_identity = nn.Dropout(0.1), nn.Identity()
    model.visual.patch_dropout = nn.Sequential(nn.Identity(), nn.Dropout())
    assert fingerprint(model) == before


def test_the_precision_does_not_count(configs, tmp_path):
    torch.save(make(text=TEXT).state_dict(), tmp_path / "model.pt")
    for name in ("tiny", f"of-id:{tmp_path / 'model.pt'}"):
        precisions = ("fp16", "bf16", "amp", "fp32")
        found = {load_model(name, kind).description.fingerprint for kind in precisions}
        assert len(found) == 1 and all(len(text) == 64 for text in found)


def test_the_way_to_the_same_weights_does_not_count(configs, tmp_path, monkeypatch):
    """OpenAI's archive and state dict, open_clip's name; half and single precision."""
    state = {k: v.half().float() for k, v in make(text=TEXT, quick_gelu=True).state_dict().items()}
    torch.save(state, tmp_path / "single.pt")
    torch.save(openai_state(state), tmp_path / "half.pt")
    archive(openai_state(state), tmp_path / "archive.pt")
    monkeypatch.setattr(models, "is_openais", lambda path: True)
    names = [
        *(str(tmp_path / f"{file}.pt") for file in ("single", "half", "archive")),
        *(f"of-id-quickgelu:{tmp_path / file}.pt" for file in ("single", "archive")),
    ]
    assert len({load_model(name).description.fingerprint for name in names}) == 1
    other = load_model(f"of-id:{tmp_path / 'single.pt'}").description.fingerprint
    assert other != load_model(names[0]).description.fingerprint


def test_single_precision_in_openais_layout_is_kept(configs, tmp_path):
    state = make(text=TEXT, quick_gelu=True).state_dict()
    torch.save(state, tmp_path / "single.pt")
    loaded = load_model(str(tmp_path / "single.pt"))
    assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())
