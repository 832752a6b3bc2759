"""Every architecture of open_clip: the oracle's logits are its own, or a sentence says why not."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import (
    check_architecture,
    listed_of,
    load_model,
)
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from safetensors.torch import save_file
from support import difference, seeded

NAMES = ["zero", "a rather long_name", "two"]
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SIGLIP = {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}


def timm(name, size, pool, proj):
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
        "image_size": size,
    }


def config(vision=VIT, text=None, **more):
    return {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {**TEXT, **(text or {})}, **more}


COCA = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
KINDS = {
    "timm-vit": config(timm("test_vit", 160, "token", "linear")),
    "timm-pool": config(timm("resnet10t", 176, "abs_attn", "")),
    "convnext": config(timm("test_convnext", 64, "", "linear")),
    "resnet-mlp": config(timm("test_resnet", 64, "avg", "mlp")),
    "eva": config(timm("eva02_tiny_patch14_224", 224, "token", None), custom_text=True),
    "pe": config(timm("vit_pe_core_tiny_patch16_384", 384, "map", None), custom_text=True),
    "mobile": config(
        timm("fastvit_t8", 64, "avg", None), {"no_causal_mask": True}, custom_text=True
    ),
    "sigmoid": {
        **config(timm("test_vit", 160, "map", "none"), SIGLIP, custom_text=True),
        "embed_dim": 64,
        "init_logit_bias": -10,
    },
    "clipa-like": config(
        {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"pool_type": "last", "no_causal_mask": True},
    ),
    "coca": config(
        {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        {"embed_cls": True, "output_tokens": True},
        custom_text=True,
        multimodal_cfg=COCA,
    ),
    "coca-plain": config(
        {**VIT, "output_tokens": True},
        {"embed_cls": True, "output_tokens": True, "vocab_size": 64000, "pad_id": 1},
        custom_text=True,
        multimodal_cfg=COCA,
    ),
    "eos": config(text={"pool_type": "eos", "eos_id": 49407}, custom_text=True),
    "first": config(text={"pool_type": "first", "no_causal_mask": True}, custom_text=True),
    "query-norm": config({**VIT, "qk_norm": True}, {"qk_norm": True}, custom_text=True),
    "layer-scale": config({**VIT, "ls_init_value": 0.1}, {"ls_init_value": 0.1}),
    "no-projection": config(VIT, {"proj_type": "none"}, custom_text=True),
    "vector-scale": config(nonscalar_logit_scale=True, init_logit_bias=-2.0),
    "oblong": config({**VIT, "image_size": [32, 48]}),
}
REFUSED = {
    "other-width": (
        config(timm("test_vit", 160, "map", "none")),
        "1x64 and 32x1",
    ),
    "other-size": (
        config(timm("vit_tiny_patch16_224", 64, "token", "linear")),
        "cannot be loaded",
    ),
    "towers-tokens": (config({**VIT, "output_tokens": True}), "cannot be loaded"),
    "no-pool": (config({**VIT, "pool_type": "none"}), "have the logit"),
    "few-words": (config(text={"vocab_size": 32000}), "index out of range"),
    "text-unread": (
        config(text={"pool_type": "none"}, custom_text=True),
        "cannot be loaded",
    ),
    "other-end": (config(text={"pool_type": "eos"}, custom_text=True), "ends texts with 2"),
    "hf-words": (config(text={"hf_tokenizer_name": "bert"}), "tokenizer of Hugging Face's"),
    "hf-tower": (config(text={"hf_model_name": "bert"}), "tokenizer of Hugging Face's"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(scope="module")
def built(folder):
    """`build` of one of KINDS, once."""
    kept = {}

    def get(kind):
        if kind not in kept:
            kept[kind] = build(f"of-{kind}", KINDS[kind], folder)
        return kept[kind]

    return get


def build(name, content, folder):
    """Tells open_clip of a configuration; the name of a file of random weights, and the model."""
    (folder / f"{name}.json").write_text(json.dumps(content))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    tower = getattr(model, "text", model)
    with torch.no_grad():  # at their initial size the words hardly count
        tower.token_embedding.weight *= 30
        tower.positional_embedding *= 10
        if hasattr(model, "text_decoder"):  # which open_clip leaves as the memory was
            model.text_decoder.text_projection.fill_(0.1)
    torch.save(model.state_dict(), folder / f"{name}.pt")
    return f"{name}:{folder / name}.pt", model.eval()


def reference(model, images, texts):
    """open_clip's own logits `[B, C]`."""
    tokenizer = open_clip.SimpleTokenizer(
        context_length=getattr(model, "text", model).context_length
    )
    with torch.no_grad():
        image = F.normalize(model.encode_image(images), dim=-1)
        text = F.normalize(model.encode_text(tokenizer(texts)), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T
    return logits if model.logit_bias is None else logits + model.logit_bias


def ask(name, precision="fp32"):
    """(oracle, images, logits)."""
    oracle = LocalOracle(
        load_model(name, precision), ("contexts", "logits", "features", "image_tokens")
    )
    oracle.set_classes(NAMES)
    images = torch.randn(3, 3, *oracle.description.image_size, generator=seeded())
    words = oracle.embed("a photo of a")[None]
    return oracle, images, oracle.query(oracle.upload(images), Prompt(words))[0]


def sentences():
    return [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_open_clips(kind, built):
    name, model = built(kind)
    oracle, images, logits = ask(name)
    expected = reference(model, images, sentences())
    assert expected.std(1).min() > 1e-3 * expected.abs().max()  # the names matter
    assert difference(logits, expected) < 1e-5
    assert (
        oracle.text_features(Prompt(oracle.embed("a")[None])).shape[-1]
        == oracle.description.embed_dim
    )
    assert oracle.image_features(oracle.upload(images)).shape == (3, oracle.description.embed_dim)
    if oracle.description.image_width is None:
        with pytest.raises(BlackBoxError, match="admits no image tokens"):
            oracle.query(
                oracle.upload(images), Prompt(oracle.embed("a")[None], torch.zeros(1, 1, 8))
            )
    else:
        tokens = torch.randn(1, 2, oracle.description.image_width)
        assert (
            oracle.query(oracle.upload(images), Prompt(oracle.embed("a")[None], tokens))
            .isfinite()
            .all()
        )


@pytest.mark.parametrize("kind", ["timm-vit", "convnext", "sigmoid", "coca", "layer-scale"])
@pytest.mark.parametrize("precision, tolerance", [("fp16", 0.02), ("bf16", 0.1), ("amp", 0.1)])
def test_half_precision_is_near_or_refused(kind, precision, tolerance, built):
    name, model = built(kind)
    if kind in ("coca", "layer-scale") and precision != "amp":  # open_clip's own fail, too
        with pytest.raises(BlackBoxError, match="choose another architecture, ORACLE.PREC"):
            ask(name, precision)
    else:
        _, images, logits = ask(name, precision)
        assert difference(logits, reference(model, images, sentences())) < tolerance


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_asked_is_refused(kind, folder):
    content, words = REFUSED[kind]
    if kind.startswith("hf"):
        (folder / f"of-{kind}.json").write_text(json.dumps(content))
        torch.save({}, folder / f"of-{kind}.pt")
        open_clip.add_model_config(folder)
        name = f"of-{kind}:{folder}/of-{kind}.pt"
    else:
        name, _ = build(f"of-{kind}", content, folder)
    with pytest.raises(BlackBoxError, match=words):
        load_model(name)


# Small relatives of the large image towers
FAMILIES = {
    "eva": "eva02_tiny_patch14_224",
    "vit_pe_core": "vit_pe_core_tiny_patch16_384",
    "fastvit": "fastvit_t8",
    "convnext": "test_convnext",
}


def shrunk(content):
    """The same architecture, of a layer and a few channels."""
    vision, text = dict(content["vision_cfg"]), dict(content["text_cfg"])
    if "timm_model_name" in vision:
        family = next((f for f in FAMILIES if vision["timm_model_name"].startswith(f)), None)
        vision["timm_model_name"] = FAMILIES.get(family, "test_vit")
        size = vision["timm_model_name"].rpartition("_")[2]
        vision["image_size"] = int(size) if size.isdigit() else 160
        vision["timm_drop_path"] = None
    elif isinstance(vision["layers"], list):
        vision = {**vision, "layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
    else:
        vision = {**vision, "layers": 1, "width": 64, "head_width": 32, "image_size": 32}
        vision["patch_size"] = 8
    text = {**text, "layers": 1, "width": 32, "heads": 2}
    small = {**content, "embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    if "multimodal_cfg" in content:
        small["multimodal_cfg"] = {
            **content["multimodal_cfg"],
            "layers": 1,
            "width": 32,
            "heads": 2,
        }
    return small


def test_every_architecture_is_described_or_refused(folder):
    described, refused, made = 0, 0, set()
    for name in [name for name in open_clip.list_models() if not name.startswith("of-")]:
        content = open_clip.get_model_config(name)
        try:
            check_architecture(name, content, "a file", None)
        except ValueError as e:
            assert name in str(e) and "Hugging Face" in str(e)
            refused += 1
            continue
        described += 1
        small = json.dumps(shrunk(content), sort_keys=True)
        if small in made:
            continue
        made.add(small)
        file, model = build(f"of-small-{len(made)}", json.loads(small), folder)
        told = load_model(file).description
        features = model.encode_image(torch.zeros(1, 3, *told.image_size))
        assert features.shape == (1, told.embed_dim) and told.context_length > 0, name
    assert described > 60 and refused > 30


@pytest.mark.parametrize(
    "arch, mean, interpolation, mode",
    [
        ("PE-Core-B-16", 0.5, "bilinear", "squash"),
        ("MobileCLIP-S1", 0.0, "bilinear", "shortest"),
        ("ViT-B-32", 0.48145466, "bicubic", "shortest"),
        ("ViT-B-16-plus", None, None, None),  # without listed weights
        ("ViT-L-14", None, None, None),  # whose weights differ in it
    ],
)
def test_a_file_is_fed_as_the_listed_weights_of_its_architecture(arch, mean, interpolation, mode):
    found = listed_of(arch, Path("weights.pt"))
    assert bool(found) == (mean is not None)
    if found:
        assert found["mean"][0] == mean
        assert (found["interpolation"], found["resize_mode"]) == (interpolation, mode)


@pytest.mark.parametrize(
    "told, expected",
    [
        ({"interpolation": "random"}, "bicubic"),
        ({"interpolation": None}, "bicubic"),
        ({"interpolation": "bilinear"}, "bilinear"),
        ({"resize_mode": "squash"}, "bicubic"),
    ],
)
def test_odd_preprocessing_is_understood(told, expected, built, monkeypatch, capsys):
    from dassl_blackbox.trainers.blackbox.openclip import models

    monkeypatch.setattr(models, "listed_of", lambda arch, path: told)
    name, _ = built("oblong")
    found = load_model(name).description
    assert found.interpolation == expected and len(found.mean) == len(found.std) == 3
    assert ("resizes whole images" in capsys.readouterr().out) == ("resize_mode" in told)


# An architecture of one's own

OWN = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "patch_size": 16,
        "head_width": 16,
    },
    "text_cfg": {
        "context_length": 20,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
}


def test_an_architecture_of_ones_own_is_a_json_file_beside_its_weights(tmp_path):
    path, weights = tmp_path / "own-shape.json", tmp_path / "weights.safetensors"
    path.write_text(json.dumps(OWN))
    open_clip.add_model_config(path)
    model = open_clip.create_model("own-shape")
    save_file(model.state_dict(), weights)
    loaded = load_model(f"{path}:{weights}")
    assert loaded.description.embed_dim == 16 and loaded.description.context_length == 20
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


def with_part(part, **entries):
    """OWN with other entries in one of its parts, as JSON."""
    changed = json.loads(json.dumps(OWN))
    (changed[part] if part else changed).update(entries)
    return json.dumps(changed)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("mine.json", "{", "cannot be loaded"),
        ("mine.json", "[" * 100_000, "cannot be loaded"),
        ("mine.json", '{"embed_dim": 3}', "KeyError: 'text_cfg'"),
        ("mine.json", json.dumps(list(OWN)), "cannot be loaded"),
        ("mine.json", json.dumps({"model_cfg": OWN}), "KeyError: 'text_cfg'"),
        ("mine.json", with_part("", text_cfg=None), "cannot be loaded"),
        ("mine.json", with_part("", embed_dim="16"), "cannot be loaded"),
        ("mine.json", with_part("text_cfg", depth=3), "unexpected keyword argument 'depth'"),
        ("mine.json", with_part("text_cfg", context_length="77"), "cannot be loaded"),
        ("mine.json", with_part("vision_cfg", patch_size=0), "cannot be loaded"),
        ("mine.json", with_part("vision_cfg", image_size=-32), "cannot be loaded"),
        ("mine.json", with_part("vision_cfg", image_size=[32, 32, 3]), "cannot be loaded"),
        ("mine.json", with_part("vision_cfg", width=True), "cannot be loaded"),
    ],
)
def test_an_architecture_that_is_none_is_refused(name, content, words, tmp_path):
    (tmp_path / "own-sound.json").write_text(json.dumps(OWN))
    open_clip.add_model_config(tmp_path / "own-sound.json")
    torch.save(open_clip.create_model("own-sound").state_dict(), tmp_path / "weights.pt")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(BlackBoxError, match=words):
        load_model(f"{tmp_path / name}:{tmp_path / 'weights.pt'}")


def test_an_architecture_needs_its_weights(tmp_path):
    path = tmp_path / "own:shape.json"
    path.write_text(json.dumps(OWN))
    with pytest.raises(BlackBoxError, match="no file of weights 'none.pt'"):
        load_model(f"{path}:none.pt")
    with pytest.raises(BlackBoxError, match="no file of weights"):
        load_model(str(path))


def test_an_architecture_of_ones_own_is_said_to_have_its_activation(tmp_path, capsys):
    for told, words in (({}, "has GELU"), ({"quick_gelu": True}, "has QuickGELU")):
        path, weights = tmp_path / "own.json", tmp_path / "own.safetensors"
        path.write_text(json.dumps({**OWN, **told}))
        open_clip.add_model_config(path)
        save_file(open_clip.create_model("own").state_dict(), weights)
        load_model(f"{path}:{weights}")
        assert words in capsys.readouterr().out


def test_weights_that_no_model_has_are_refused(tmp_path):
    path, weights = tmp_path / "own-odd.json", tmp_path / "weights.safetensors"
    path.write_text(json.dumps(OWN))
    open_clip.add_model_config(path)
    state = open_clip.create_model("own-odd").state_dict()
    save_file({**state, "logit_scale": torch.tensor(-1000.0)}, weights)
    with pytest.raises(BlackBoxError, match="scaled by 0.0"):
        load_model(f"{path}:{weights}")
