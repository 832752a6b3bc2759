"""The fast paths are exact: whatever the model, the names and the precision, they answer what the
plain model answers.
"""

import random

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip import blocks, patches
from dassl_blackbox.trainers.blackbox.openclip.embedded import EMBEDDED
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from oracles import SMALL, contexts_of, make, pixels
from support import difference

LARGE = ["ViT-B-32-quickgelu", "ViT-B-16", "RN50-quickgelu"]  # seconds each: one case
KINDS = [*EMBEDDED, *SMALL, *LARGE]
WORDS = [
    "red",
    "old",
    "stone",
    "bridge",
    "over",
    "a",
    "small",
    "quiet",
    "river",
    "near",
    "the",
    "north",
    "wooden",
    "tower",
    "house",
    "with",
    "two",
    "large",
    "round",
    "windows",
    "and",
    "grey",
    "roof",
]


@pytest.fixture(scope="module")
def oracles():
    kept = {}

    def get(kind):
        if kind not in kept:
            kept[kind] = LocalOracle(make(kind))
        return kept[kind]

    return get


def plain_logits(oracle, images, contexts):
    """The model's own towers over all positions, every candidate and class."""
    with torch.no_grad(), oracle.autocast():
        image = F.normalize(oracle.model.encode_image(images.to(oracle.dtype)).float(), dim=-1)
        text = F.normalize(oracle.text.encode_plain(contexts).float(), dim=-1)
    return oracle.scale * image @ text.transpose(1, 2) + (0 if oracle.bias is None else oracle.bias)


def some_names(rng, count):
    """Names of 1 to 20 words, all of them one token long, with a duplicate."""
    names = [" ".join(rng.choices(WORDS, k=rng.choice([1, 2, 3, 5, 20]))) for _ in range(count)]
    return names + names[:1] if count > 1 else names


def largest_context(oracle):
    return oracle.description.context_length - 2 - max(len(text) for text in oracle.text.texts)


@pytest.mark.parametrize(
    "kind, n, count",
    [
        *[
            (kind, n, count)
            for kind in KINDS
            if kind not in LARGE
            for n in (0, 1, 8, "largest")
            for count in (1, 5)
        ],
        *[(kind, 8, 5) for kind in LARGE],
    ],
)
def test_logits_are_the_plain_ones(oracles, kind, n, count):
    oracle, rng = oracles(kind), random.Random(f"{kind} {n} {count}")
    oracle.set_classes(some_names(rng, count))
    n = largest_context(oracle) if n == "largest" else n
    images, contexts = pixels(oracle, B=2, seed=count), contexts_of(oracle, 2, n, count)
    assert (
        difference(
            oracle.query(oracle.upload(images), Prompt(contexts)),
            plain_logits(oracle, images, contexts),
        )
        < 1e-5
    )


def test_which_towers_take_the_short_ways(oracles):
    short = {kind: (oracles(kind).text.short, oracles(kind).short) for kind in KINDS}
    plain_text = {"not causal", "last"}
    assert all(text == (kind not in plain_text) for kind, (text, _) in short.items())
    convolutional = {"photo", "resnet", "RN50-quickgelu"}
    assert {kind for kind, (_, image) in short.items() if not image} == convolutional


@pytest.mark.parametrize("at_once", [1, 50, 2**14])
@pytest.mark.parametrize("kind", ["tiny", "vit", "quickgelu"])
def test_image_tokens_by_parts_equal_the_hooked_tower(oracles, kind, at_once, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_POSITIONS", at_once)
    model = make(kind)
    fast, slow = (LocalOracle(model, ("contexts", "logits", "image_tokens")) for _ in range(2))
    slow.short = False
    images = pixels(fast, B=5)
    tokens = (
        torch.randn(3, 4, fast.description.image_width, generator=torch.Generator().manual_seed(2))
        * 0.1
    )
    contexts = contexts_of(fast, 3, 2, 1)
    for oracle in (fast, slow):
        oracle.set_classes(["one", "two", "a longer name"])
    answers = [
        oracle.query(oracle.upload(images), Prompt(contexts, tokens)) for oracle in (fast, slow)
    ]
    assert difference(*answers) < 1e-5 and difference(answers[0][:1], answers[0][1:2]) > 1e-3


def test_a_vit_of_one_layer():
    model = make("vit")
    del model.model.visual.transformer.resblocks[1:], model.model.transformer.resblocks[1:]
    oracle = LocalOracle(model, ("contexts", "logits", "image_tokens"))
    assert oracle.short and oracle.text.short
    oracle.set_classes(["one", "two"])
    images, contexts = pixels(oracle), contexts_of(oracle, 2, 3, 1)
    assert (
        difference(
            oracle.query(oracle.upload(images), Prompt(contexts)),
            plain_logits(oracle, images, contexts),
        )
        < 1e-5
    )
    tokens = torch.randn(2, 4, oracle.description.image_width)
    fast, oracle.short = oracle.query(oracle.upload(images), Prompt(contexts, tokens)), False
    assert difference(fast, oracle.query(oracle.upload(images), Prompt(contexts, tokens))) < 1e-5


@pytest.mark.parametrize("change", ["average pool", "both outputs", "no ln_pre"])
def test_a_vit_that_is_read_otherwise(change):
    model = make("vit")
    visual = model.model.visual
    if change == "average pool":
        visual.pool_type = "avg"
    elif change == "both outputs":
        visual.output_tokens = True
    else:
        visual.ln_pre = torch.nn.Identity()
    assert patches.fits(visual) == (change == "no ln_pre")
    if change != "both outputs":
        oracle = LocalOracle(model)
        oracle.set_classes(["one", "two"])
        images, contexts = pixels(oracle), contexts_of(oracle, 2, 3, 1)
        assert (
            difference(
                oracle.query(oracle.upload(images), Prompt(contexts)),
                plain_logits(oracle, images, contexts),
            )
            < 1e-5
        )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp"])
def test_predictions_in_half_precision(digits, precision, device):
    """Equal save where the two best classes of the plain path are closer than that path's own
    rounding.
    """
    exact, half = (LocalOracle(load_model("tiny", kind, device)) for kind in ("fp32", precision))
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for oracle in (exact, half):
        oracle.set_classes(names)
    images, contexts = (
        digits.to(device),
        contexts_of(exact, 3, 4, 0).to(device) + exact.embed("a photo of a"),
    )
    fast, plain = (
        half.query(half.upload(images), Prompt(contexts)),
        plain_logits(half, images, contexts),
    )
    rounding = (plain - plain_logits(exact, images, contexts)).abs().amax(-1)
    best = plain.topk(2, dim=-1).values
    differ = fast.argmax(-1) != plain.argmax(-1)
    assert (
        (best[..., 0] - best[..., 1])[differ] <= 2 * rounding[differ]
    ).all() and differ.float().mean() < 0.1


@pytest.mark.cuda
def test_the_budget_follows_the_free_memory():
    transformer = load_model("tiny", "fp32", "cuda").model.transformer
    before = blocks.positions_at_once(transformer)
    held = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.9), dtype=torch.uint8, device="cuda")
    assert 2**10 <= blocks.positions_at_once(transformer) < before
    del held
