"""The embedded models, and the parts that `tools/` makes them of."""

import importlib
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip.embedded import ASSETS, embedded_state_dict
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from PIL import Image
from safetensors.torch import save_file
from support import REPO, seeded
from torchvision import transforms as T

NOUNS = """\
00000001 06 n 01 thing 0 000 | whatever there is
00000002 05 n 02 dog 0 domestic_dog 1 001 @ 00000001 n 0000 | a barking animal; "the dog barked"
00000003 06 n 01 dog 2 001 @ 00000001 n 0000 | a metal supporter for logs
00000004 05 n 01 Puppy 0 002 @ 00000002 n 0000 ~ 00000002 n 0000 | a young dog
"""
INDEX = """\
thing n 1 0 1 1 00000001
dog n 2 1 @ 2 1 00000002 00000003
domestic_dog n 1 1 @ 1 0 00000002
puppy n 1 1 @ 1 0 00000004
"""


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    for name in [name for name in sys.modules if name.split(".")[0] in ("photo", "pretrain_tiny")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module


@pytest.fixture
def wordnet(parts, tmp_path):
    for name, text in {"data.noun": NOUNS, "index.noun": INDEX}.items():
        (tmp_path / name).write_text("  1 This is the licence\n" + text)
    (tmp_path / "cntlist.rev").write_text("dog%1:05:00:: 1 42\ndog%2:38:00:: 1 7\n")
    return parts("photo.teacher").WordNet(tmp_path)


def test_wordnet_is_read(wordnet):
    dog, everything = wordnet.synsets["00000002"], wordnet.synsets.keys()
    assert dog.words == ("dog", "domestic dog") and dog.parents == ("00000001",)
    assert (dog.category, dog.gloss) == (5, "a barking animal")
    assert wordnet.chain("00000004", 5) == ["dog", "thing"]
    assert wordnet.above("00000004") == {"00000001", "00000002", "00000004"}
    shares = {"00000002": 42.5 / 43, "00000003": 0.5 / 43}
    assert wordnet.shares("dog", everything) == pytest.approx(shares)
    assert wordnet.shares("dog", {"00000003"}) == {"00000003": 1}
    assert wordnet.shares("Puppy", everything) == {"00000004": 1}
    assert wordnet.shares("unheard of", everything) == {}


def test_prototypes_are_the_classifier(parts):
    """`(V f) . (U S)`, before its lengths are made one, differs between classes as logits do."""
    model = torch.nn.Module()
    model.classifier = torch.nn.Linear(40, 12)
    directions, prototypes = parts("photo.tower").prototypes(model, 12)
    features = torch.randn(7, 40, generator=seeded(1))
    rows = model.classifier.weight - model.classifier.weight.mean(0)
    found = (features @ directions.T) @ (prototypes * rows.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(found, features @ rows.T, rtol=1e-4, atol=1e-5)


def test_a_meaning_of_the_classifier_keeps_its_prototype(parts, wordnet):
    teach, offsets = parts("photo.teacher").teach, sorted(wordnet.synsets)
    described = F.normalize(torch.randn(4, 8, generator=seeded(2)), dim=1)
    prototypes = F.normalize(torch.randn(2, 5, generator=seeded(3)), dim=1)
    targets = teach(wordnet, offsets, described, ["00000002", "00000003"], prototypes)
    torch.testing.assert_close(targets[[1, 2]], prototypes)
    torch.testing.assert_close(targets.norm(dim=1), torch.ones(4))
    alike = torch.cat([described[:3], described[1:2]])  # puppy is described as dog is
    targets = teach(wordnet, offsets, alike, ["00000002", "00000003"], prototypes)
    assert targets[3] @ prototypes[0] > 0.7 > targets[3] @ prototypes[1]


def test_the_first_layers_take_clips_pixels(parts):
    """Folded, the tower says of CLIP's input what it said of its own, but at the border."""
    import timm

    tower = parts("photo.tower")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    pixels = torch.rand(1, 3, 32, 32, generator=seeded(4))
    before = model.bn1(model.conv_stem((pixels - 0.5) / 0.5))
    tower.fold_normalisation(model)
    mean, std = (torch.tensor(v)[:, None, None] for v in (tower.CLIP_MEAN, tower.CLIP_STD))
    after = model.bn1(model.conv_stem((pixels - mean) / std))
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(after[inner], before[inner], rtol=1e-4, atol=1e-5)


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


def test_the_recipe_of_tiny_tells_its_accuracy(parts):
    recipe = json.loads((ASSETS / "tiny_recipe.json").read_text(encoding="utf-8"))
    told = recipe["zero_shot"]["digits, the data set's template"]
    assert parts("freeze_tiny").template_accuracy() == pytest.approx(told, abs=0.2)
