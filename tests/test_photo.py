"""The embedded model `photo`, and the parts that `tools/build_photo.py` makes it of."""

import importlib
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from PIL import Image
from safetensors.torch import save_file
from support import REPO, seeded
from torchvision import transforms as T

LICENCE = "  1 This software and database is being provided to you\n"
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
    for name in [name for name in sys.modules if name.split(".")[0] == "photo"]:
        monkeypatch.delitem(sys.modules, name)
    return lambda name: importlib.import_module(f"photo.{name}")


@pytest.fixture
def wordnet(parts, tmp_path):
    for name, text in {"data.noun": NOUNS, "index.noun": INDEX}.items():
        (tmp_path / name).write_text(LICENCE + text)
    (tmp_path / "cntlist.rev").write_text("dog%1:05:00:: 1 42\ndog%2:38:00:: 1 7\n")
    return parts("wordnet").WordNet(tmp_path)


def test_wordnet_is_read(wordnet):
    dog = wordnet.synsets["00000002"]
    assert dog.words == ("dog", "domestic dog") and dog.parents == ("00000001",)
    assert (dog.category, dog.gloss) == (5, "a barking animal")
    assert wordnet.chain("00000004", 5) == ["dog", "thing"]
    assert wordnet.above("00000004") == {"00000001", "00000002", "00000004"}
    everything = wordnet.synsets.keys()
    assert wordnet.shares("dog", everything) == pytest.approx(
        {"00000002": 42.5 / 43, "00000003": 0.5 / 43}
    )
    assert wordnet.shares("dog", {"00000003"}) == {"00000003": 1}
    assert wordnet.shares("Puppy", everything) == {"00000004": 1}
    assert wordnet.shares("unheard of", everything) == {}


def test_a_missing_wordnet_says_how_to_get_it(parts, tmp_path):
    with pytest.raises(SystemExit, match=r"data.noun cannot be read .*--wordnet"):
        parts("wordnet").WordNet(tmp_path)


def test_a_build_goes_on_with_its_own_parts_and_settings_alone(parts, tmp_path):
    parts("wordnet")  # the folder of tools is where modules are looked for
    claim, rate = importlib.import_module("build_photo").claim, {"settings": {"rate": 0.001}}
    claim(tmp_path / "build", rate)
    claim(tmp_path / "build", rate)
    with pytest.raises(SystemExit, match="other parts or settings"):
        claim(tmp_path / "build", {"settings": {"rate": 0.1}})


def test_prototypes_are_the_classifier(parts):
    """`(V f) . (U S)`, before its lengths are made one, differs between classes as logits do."""
    model = torch.nn.Module()
    model.classifier = torch.nn.Linear(40, 12)
    directions, prototypes = parts("tower").prototypes(model, 12)
    features = torch.randn(7, 40, generator=seeded(1))
    rows = model.classifier.weight - model.classifier.weight.mean(0)
    expected = features @ rows.T
    found = (features @ directions.T) @ (prototypes * rows.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_meaning_of_the_classifier_keeps_its_prototype(parts, wordnet):
    teacher = parts("teacher")
    offsets, classes = sorted(wordnet.synsets), ["00000002", "00000003"]
    described = F.normalize(torch.randn(4, 8, generator=seeded(2)), dim=1)
    prototypes = F.normalize(torch.randn(2, 5, generator=seeded(3)), dim=1)
    targets = teacher.teach(wordnet, offsets, described, classes, prototypes)
    torch.testing.assert_close(targets[[1, 2]], prototypes)
    torch.testing.assert_close(targets.norm(dim=1), torch.ones(4))
    alike = torch.cat([described[:3], described[1:2]])  # puppy is described as dog is
    targets = teacher.teach(wordnet, offsets, alike, classes, prototypes)
    assert targets[3] @ prototypes[0] > 0.7 > targets[3] @ prototypes[1]


def test_the_first_layers_take_clips_pixels(parts):
    """Folded, the tower says of CLIP's input what it said of its own, but at the border."""
    import timm

    tower = parts("tower")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    pixels = torch.rand(1, 3, 32, 32, generator=seeded(4))
    before = model.bn1(model.conv_stem((pixels - 0.5) / 0.5))
    tower.fold_normalisation(model)
    mean, std = (torch.tensor(v)[:, None, None] for v in (tower.CLIP_MEAN, tower.CLIP_STD))
    after = model.bn1(model.conv_stem((pixels - mean) / std))
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(after[inner], before[inner], rtol=1e-4, atol=1e-5)


def test_packed_weights_are_read_again(parts, tmp_path):
    g = seeded(5)
    state = {
        "token_embedding.weight": torch.randn(30, 256, generator=g),
        "kernel": torch.randn(64, 8, 3, 3, generator=g)
        * torch.logspace(-6, 1, 64)[:, None, None, None],
        "bias": torch.randn(64, generator=g),
        "bn.running_var": torch.full((64,), 1e6),
        "bn.num_batches_tracked": torch.tensor(3),
        "zero": torch.zeros(64, 64),
    }
    rows = torch.arange(0, 60, 2)
    save_file(parts("packing").pack(state, rows), tmp_path / "photo.safetensors")
    config = {"model_cfg": {"text_cfg": {"vocab_size": 100}}}
    (tmp_path / "photo.json").write_text(json.dumps(config))
    read = embedded_state_dict("photo", tmp_path)
    table = read.pop("token_embedding.weight")
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
    oracle = LocalOracle(model)
    size, (mean, std) = (
        model.description.image_size,
        (model.description.mean, model.description.std),
    )
    prepare = T.Compose(
        [T.Resize(max(size)), T.CenterCrop(size), T.ToTensor(), T.Normalize(mean, std)]
    )
    pictures = torch.stack([prepare(Image.fromarray(a)) for a in load_sample_images().images])
    names = ["temple", "flower", "dog", "car", "guitar", "pizza", "boat", "chair", "horse", "cup"]
    oracle.set_classes(names, "a photo of a {}.")
    logits = oracle.query(oracle.upload(pictures), Prompt())[0]
    assert [names[i] for i in logits.argmax(1)] == ["temple", "flower"]
