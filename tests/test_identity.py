"""The fingerprint of a model: everything that its answers come from, and nothing else."""

import json
import os

import open_clip
import pytest
import torch
from dassl_blackbox.trainers.blackbox.openclip import identity, models, weights
from dassl_blackbox.trainers.blackbox.openclip.identity import fingerprint
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from open_clip.model import CLIP, CustomTextCLIP
from test_weights import archive, openai_state
from torch import nn

VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 64}
RESNET = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache file, in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dassl-blackbox" / "fingerprints.json"


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
        found = set()
        for precision in ("fp16", "bf16", "amp", "fp32"):
            (tmp_path / "cache" / "dassl-blackbox" / "fingerprints.json").unlink(missing_ok=True)
            found.add(load_model(name, precision).description.fingerprint)
        assert len(found) == 1 and all(len(text) == 64 for text in found)


def test_the_way_to_the_same_weights_does_not_count(configs, tmp_path, monkeypatch):
    """OpenAI's archive and state dict, open_clip's name; half and single precision."""
    state = {k: v.half().float() for k, v in make(text=TEXT, quick_gelu=True).state_dict().items()}
    torch.save(state, tmp_path / "single.pt")
    torch.save(openai_state(state), tmp_path / "half.pt")
    archive(openai_state(state), tmp_path / "archive.pt")
    monkeypatch.setattr(weights, "is_openais", lambda path: True)
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


# The cache


@pytest.fixture
def counted(monkeypatch):
    """How often a fingerprint was computed, as a list that grows."""
    calls = []
    monkeypatch.setattr(models, "fingerprint", lambda model: calls.append(1) or fingerprint(model))
    return calls


def load(tmp_path):
    return load_model(str(tmp_path / "model.pt")).description.fingerprint


def test_a_file_is_hashed_once(counted, tmp_path):
    torch.save(make(text=TEXT).state_dict(), tmp_path / "model.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "model.pt")
    first = load(tmp_path)
    assert load(tmp_path) == first and len(counted) == 1
    assert load_model(str(tmp_path / "link.pt"), "fp16").description.fingerprint == first
    assert len(counted) == 1


def test_a_changed_file_is_hashed_again(counted, tmp_path):
    """Of the same size and the same date, written over or put in its place."""
    model = make(text=TEXT)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "new").mkdir()
    date, found = os.stat(tmp_path / "model.pt"), {load(tmp_path)}
    for i in range(2):
        with torch.no_grad():
            model.logit_scale += 1
        torch.save(model.state_dict(), tmp_path / "new" / "model.pt")
        if i:
            (tmp_path / "new" / "model.pt").rename(tmp_path / "model.pt")
        else:
            (tmp_path / "model.pt").write_bytes((tmp_path / "new" / "model.pt").read_bytes())
        os.utime(tmp_path / "model.pt", ns=(date.st_atime_ns, date.st_mtime_ns))
        assert os.stat(tmp_path / "model.pt").st_size == date.st_size
        found.add(load(tmp_path))
    assert len(found) == len(counted) == 3


def test_another_way_to_load_a_file_is_hashed_again(configs, counted, tmp_path):
    torch.save(make(text=TEXT).state_dict(), tmp_path / "model.pt")
    names = [f"{arch}:{tmp_path / 'model.pt'}" for arch in ("of-id", "of-id-quickgelu")] * 2
    assert len({load_model(name).description.fingerprint for name in names}) == len(counted) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"digest": "x", "models": {}}',
        "flipped",
    ],
)
def test_a_damaged_cache_is_computed_anew(content, counted, cache, tmp_path):
    torch.save(make(text=TEXT).state_dict(), tmp_path / "model.pt")
    first = load(tmp_path)
    if content == "flipped":
        content = cache.read_bytes().replace(first[:8].encode(), b"01234567")
    cache.write_bytes(content)
    assert load(tmp_path) == first and len(counted) == 2
    assert load(tmp_path) == first and len(counted) == 2  # and the cache is sound again


def a_file_in_its_place(folder, monkeypatch):
    folder.write_text("")


def a_pipe_in_its_place(folder, monkeypatch):
    (folder / "dassl-blackbox").mkdir(parents=True)
    os.mkfifo(folder / "dassl-blackbox" / "fingerprints.json")


def no_home(folder, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(identity.Path, "home", fail)


@pytest.mark.parametrize("obstacle", [a_file_in_its_place, a_pipe_in_its_place, no_home])
def test_without_a_cache_it_is_computed_each_time(obstacle, counted, monkeypatch, tmp_path):
    torch.save(make(text=TEXT).state_dict(), tmp_path / "model.pt")
    obstacle(tmp_path / "cache", monkeypatch)
    assert load(tmp_path) == load(tmp_path) and len(counted) >= 1


def test_the_cache_stays_small(cache, monkeypatch):
    monkeypatch.setattr(identity, "KEPT", 3)
    for i in range(5):
        identity.remember(f"model {i}", {"state": None, "fingerprint": str(i)})
    assert list(identity.remembered()) == ["model 2", "model 3", "model 4"]
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
